"""Every recipe parses, and the paper's recipes have the published numbers."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from ast_core.config import FrontEndConfig, ModelConfig, OptimConfig, Recipe
from ast_core.training.schedule import learning_rate
from ast_core.weights.published import TRAININGS
from pipeline.cli.command_line import load_recipe
from pipeline.cli.recipe_file import RECIPES

EVERY = sorted(path.stem for path in RECIPES.glob("*.toml"))
PAPER = ("audioset_full", "audioset_balanced", "esc50", "speech_commands")


EPOCHS_IN_THE_PAPER = {"audioset_full": 5, "audioset_balanced": 25, "esc50": 20, "speech_commands": 20}
"""Numbers of epochs in the text of the paper."""


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_variant_differs_as_the_text_of_the_paper_says(name: str) -> None:
    published, paper = load_recipe(name), load_recipe(name, "paper")
    assert (published.front_end.window, published.model.projection) == ("hanning", "sum")
    assert (paper.front_end.window, paper.model.projection) == ("hamming", "mean")
    assert paper.optim.epochs == EPOCHS_IN_THE_PAPER[name]
    same = replace(
        paper, front_end=published.front_end, model=published.model, augment=published.augment,
        optim=replace(paper.optim, epochs=published.optim.epochs),
    )  # fmt: skip
    assert same == published
    assert paper.augment.mixup_rate == (0.5 if name == "speech_commands" else published.augment.mixup_rate)


@pytest.mark.parametrize(("name", "rate"), [("esc50", 1e-5), ("speech_commands", 2.5e-4)])
def test_ast_p_differs_from_ast_s_in_its_initial_weights_and_rate_only(name: str, rate: float) -> None:
    pretrained, own = load_recipe(f"{name}_ast_p"), load_recipe(name)
    assert pretrained.model == replace(own.model, init="hf:MIT/ast-finetuned-audioset-10-10-0.4593")
    assert pretrained.optim == replace(own.optim, learning_rate=rate)
    assert (pretrained.data, pretrained.front_end, pretrained.augment) == (own.data, own.front_end, own.augment)
    assert load_recipe(f"{name}_ast_p", "paper").optim.epochs == 20


def test_patchout_is_audioset_full_with_fewer_patches() -> None:
    recipe, own = load_recipe("audioset_patchout"), load_recipe("audioset_full")
    assert recipe == replace(own, augment=replace(own.augment, patchout_freq=4, patchout_time=40))


@pytest.mark.parametrize(("classes", "name"), [(527, "audioset_full"), (50, "esc50"), (35, "speech_commands")])
def test_published_checkpoints_load_with_the_numbers_of_their_recipe(classes: int, name: str) -> None:
    own, recipe = TRAININGS[classes], load_recipe(name)
    assert (own.mean, own.std, own.loss) == (recipe.data.mean, recipe.data.std, recipe.optim.loss)
    assert own.target_frames == recipe.front_end.target_frames


def test_every_documented_recipe_exists() -> None:
    assert set(EVERY) >= {
        "demo",
        "own",
        *PAPER,
        "esc50_ast_p",
        "own_ast_p",
        "audioset_patchout",
        "esc50_small",
        "speech_commands_small",
        "audioset_small",
    }


@pytest.mark.parametrize("name", EVERY)
def test_every_recipe_parses_and_is_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    assert recipe.data.train_splits
    assert recipe.data.test_split not in recipe.data.train_splits


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_recipes_have_the_published_model_and_front_end(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.model == ModelConfig(backbone="deit_base_distilled_patch16_384", init="imagenet")
    assert (recipe.model.patch_freq, recipe.model.patch_time) == (16, 16)
    assert (recipe.model.freq_stride, recipe.model.time_stride) == (10, 10)
    front = asdict(recipe.front_end) | {"target_frames": 0}
    assert front == asdict(FrontEndConfig()) | {"target_frames": 0}
    assert (recipe.front_end.sample_rate_hz, recipe.front_end.num_mel_bins) == (16_000, 128)
    assert (recipe.front_end.frame_length_ms, recipe.front_end.frame_shift_ms) == (25.0, 10.0)


# Gong, Chung, Glass 2021 and the recipes published with it: frames, mean, std; mixup, masks in bins and frames, noise;
# loss, sampler, rate, warm-up steps, epochs, batch; which weights a member has, and the first epoch of its mean.
PUBLISHED = {
    "audioset_balanced": (
        (1024, -4.2677393, 4.5689974),
        (0.5, 48, 192, False),
        ("bce", "shuffle", 5e-5, 1000, 25, 12),
        ("averaged", 6),
    ),
    "audioset_full": (
        (1024, -4.2677393, 4.5689974),
        (0.5, 48, 192, False),
        ("bce", "balanced", 1e-5, 1000, 5, 12),
        ("averaged", 1),
    ),
    "esc50": (
        (512, -6.6268077, 5.358466),
        (0.0, 24, 96, False),
        ("cross_entropy", "shuffle", 1e-4, 0, 25, 48),
        ("last", None),
    ),
    "speech_commands": (
        (128, -6.845978, 5.5654526),
        (0.6, 48, 48, True),
        ("bce", "shuffle", 2.5e-4, 0, 30, 128),
        ("best", None),
    ),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_recipes_have_the_published_numbers(name: str) -> None:
    recipe = load_recipe(name)
    data, augment, optim = recipe.data, recipe.augment, recipe.optim
    front_end, augmentation, optimiser, (weights, first_epoch) = PUBLISHED[name]
    assert (recipe.front_end.target_frames, data.mean, data.std) == front_end
    assert augmentation == (augment.mixup_rate, augment.freq_mask_bins, augment.time_mask_frames, augment.noise)
    assert augment.mixup_alpha == 10.0
    assert optimiser == (
        optim.loss, optim.sampler, optim.learning_rate, optim.warmup_steps, optim.epochs, optim.batch_size
    )  # fmt: skip
    assert optim.weight_decay == 5e-7
    assert optim.weights == weights
    if first_epoch is not None:
        assert optim.average_first_epoch == first_epoch


DECAYS = {
    "audioset_balanced": (0.5, [10, 15, 20]),
    "audioset_full": (0.5, [2, 3, 4]),
    "esc50": (0.85, list(range(5, 25))),
    "speech_commands": (0.85, list(range(5, 30))),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_learning_rate_falls_after_the_published_epochs(name: str) -> None:
    optim: OptimConfig = load_recipe(name).optim
    factor, after = DECAYS[name]
    rates = [learning_rate(optim, epoch, 10_000) for epoch in range(1, optim.epochs + 1)]
    fallen = [epoch for epoch in range(1, optim.epochs) if rates[epoch] < rates[epoch - 1]]
    assert fallen == after
    assert rates[0] == optim.learning_rate
    assert rates[-1] == pytest.approx(optim.learning_rate * factor ** len(after))
