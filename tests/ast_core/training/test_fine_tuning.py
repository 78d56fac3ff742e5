"""Fine-tuning: which weights train, at which rates, and that resumes and merged weights hold."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import forked_trainings
import numpy as np
import pytest
import torch
from prepared import FRONT_END, LABELS, write_shards
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

from ast_core.config import AugmentConfig, DataConfig, Job, ModelConfig, OptimConfig
from ast_core.errors import UserError
from ast_core.evaluation.predictor import Predictor
from ast_core.model.transformer import AST
from ast_core.serialization import to_identity
from ast_core.shards.reader import ShardReader
from ast_core.storage.json_files import sha256_of_json
from ast_core.training.batches import iterate_batches
from ast_core.training.optimizer_step import optimizer_step
from ast_core.training.run_identity import build_identity
from ast_core.training.state import initial_state
from ast_core.training.trainable import group_parameters, is_backbone_frozen
from ast_core.training.trainer import fit, is_finished
from ast_core.weights import checkpoint
from ast_core.weights.average import average_weights
from ast_core.weights.bundle import Bundle, write_bundle

CPU = torch.device("cpu")
EPOCHS, STEPS = 3, 4
MODEL = ModelConfig(backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch")
BEFORE = "8755bd6868d09c02bdf4a1e6e3ce989f9aeb7f367ceb50eff4a07646af1fd078"
"""Hash of the default `ModelConfig` before the keys of fine-tuning were added."""


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a bundle of other labels, and shards next to it."""
    folder = tmp_path_factory.mktemp("pretrained")
    write_shards(folder / "shards", {"train": 24, "test": 9})
    torch.manual_seed(7)
    weights = AST(MODEL, FRONT_END.num_mel_bins, FRONT_END.target_frames, 5).state_dict()
    identity = {
        "model": to_identity(MODEL), "front_end": to_identity(FRONT_END), "labels": list("abcde"), "mean": -6.0,
        "std": 4.0, "loss": "bce",
    }  # fmt: skip
    write_bundle(folder / "bundle", [("seed-0", weights, identity)], single_label=False)
    return folder


@pytest.fixture
def job(tmp_path: Path, pretrained: Path) -> Job:
    return make_job(tmp_path / "member", pretrained)


def make_job(folder: Path, pretrained: Path, **keys: Any) -> Job:
    """Return a training of three epochs of four steps, with changed keys of model and optim."""
    optim = OptimConfig(
        epochs=EPOCHS, batch_size=6, learning_rate=1e-3, warmup_steps=3, loss="cross_entropy", sampler="shuffle",
        checkpoint_every_steps=2, weights="last",
    )  # fmt: skip
    made = Job(
        folder=folder, shards=pretrained / "shards", seed=0, data=DataConfig(), front_end=FRONT_END,
        model=dataclasses.replace(MODEL, init=str(pretrained / "bundle")),
        augment=AugmentConfig(freq_mask_bins=4, time_mask_frames=8), optim=optim,
    )  # fmt: skip
    return change(made, **keys)


def change(job: Job, **keys: Any) -> Job:
    """Return the training with other values of keys of model and optim."""
    model = {key: value for key, value in keys.items() if hasattr(job.model, key)}
    optim = {key: value for key, value in keys.items() if key not in model}
    return dataclasses.replace(
        job, model=dataclasses.replace(job.model, **model), optim=dataclasses.replace(job.optim, **optim)
    )


def weights_of(folder: Path, epoch: int = EPOCHS, table: str = "model") -> dict[str, torch.Tensor]:
    return load_file(folder / "epochs" / f"epoch-{epoch:04d}" / f"{table}.safetensors")


def first_weights(job: Job) -> dict[str, torch.Tensor]:
    model = initial_state(job, ShardReader(job.shards, ["train"]), CPU, 1).model
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed_names(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


HEAD = {"head_norm.weight", "head_norm.bias", "head.weight", "head.bias"}


def test_defaults_make_one_group_of_all_parameters_in_the_order_of_the_model(job: Job) -> None:
    state = initial_state(job, ShardReader(job.shards, ["train"]), CPU, 1)
    (group,) = state.optimizer.param_groups
    assert [id(value) for value in group["params"]] == [id(value) for value in state.model.parameters()]
    assert group["peak"] == group["lr"] == job.optim.learning_rate
    assert all(value.requires_grad for value in state.model.parameters())


def test_rates_fall_from_the_head_to_the_embeddings(job: Job) -> None:
    own = change(job, layer_decay=0.5, head_learning_rate=1e-2, learning_rate=1.0)
    model = initial_state(own, ShardReader(job.shards, ["train"]), CPU, 1).model
    names = {id(value): name for name, value in model.named_parameters()}
    rates = {names[id(value)]: group["peak"] for group in group_parameters(model, own) for value in group["params"]}
    assert rates.keys() == set(names.values())
    assert {name: rates[name] for name in HEAD} == dict.fromkeys(HEAD, 1e-2)
    assert rates["norm.weight"] == 1
    assert [rates[f"blocks.{number}.attn.qkv.weight"] for number in range(4)] == [1 / 16, 1 / 8, 1 / 4, 1 / 2]
    assert {rates[name] for name in ("pos_embed", "cls_token", "dist_token", "patch_proj.weight")} == {1 / 32}


def test_each_group_follows_the_schedule_from_its_own_rate(job: Job) -> None:
    own = change(job, layer_decay=0.5, head_learning_rate=1e-2, decay_first_epoch=1, decay_factor=0.1)
    train = ShardReader(job.shards, ["train"])
    state = initial_state(own, train, CPU, 1)
    state.progress.step = 4
    optimizer_step(state, own, next(iterate_batches(own, train, 2, 0, 1, 0)), train, 2, -6.0, 4.0)
    assert {round(group["lr"] / group["peak"], 9) for group in state.optimizer.param_groups} == {0.1}


def test_frozen_backbone_keeps_its_bits_and_has_no_part_in_the_optimizer(job: Job) -> None:
    own = change(
        job, freeze_backbone_epochs=-1, weight_decay=0.1, head_learning_rate=1e-2, ema_decay=0.5, clip_norm=1.0
    )
    before = first_weights(own)
    fit(own, 0, 1, CPU)
    assert changed_names(before, weights_of(own.folder)) == HEAD
    assert changed_names(before, weights_of(own.folder, table="ema")) == HEAD
    newest, _ = checkpoint.newest(own.folder / "checkpoints")
    assert newest is not None
    assert {name.partition(".")[0] for name in load_file(newest / "optimizer.safetensors")} == set("0123")
    rows = [json.loads(line) for line in (own.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["head_learning_rate"] == pytest.approx(10 * rows[-1]["learning_rate"])


def test_backbone_is_released_after_its_frozen_epochs(job: Job) -> None:
    own = change(job, freeze_backbone_epochs=1)
    assert [is_backbone_frozen(own.optim, epoch) for epoch in (1, 2, 3)] == [True, False, False]
    before = first_weights(own)
    fit(own, 0, 1, CPU)
    assert changed_names(before, weights_of(own.folder, 1)) == HEAD
    assert changed_names(before, weights_of(own.folder, 2)) == set(before)


def count_flops(job: Job) -> int:
    """Return the floating-point operations of the matrix products in one step."""
    train = ShardReader(job.shards, ["train"])
    state = initial_state(job, train, CPU, 1)
    batch = next(iterate_batches(job, train, 1, 0, 1, 0))
    with FlopCounterMode(display=False) as counter:
        optimizer_step(state, job, batch, train, 1, -6.0, 4.0)
    return counter.get_total_flops()


@pytest.mark.parametrize("recompute", [False, True])
def test_backward_pass_leaves_out_what_does_not_train(job: Job, recompute: bool) -> None:
    own = change(job, activation_checkpointing=recompute)
    complete = count_flops(own)
    forward_share = 1 / 4 if recompute else 1 / 3
    assert count_flops(change(own, freeze_backbone_epochs=1)) / complete < forward_share + 0.05
    assert count_flops(change(own, lora_rank=2)) / complete < 1 - 0.8 * forward_share


FINE_TUNINGS = [
    pytest.param({"freeze_backbone_epochs": 1, "layer_decay": 0.7, "head_learning_rate": 2e-3}, id="frozen-at-first"),
    pytest.param({"freeze_backbone_epochs": 1, "lora_rank": 2, "ema_decay": 0.9, "clip_norm": 0.5}, id="lora"),
    pytest.param(
        {"freeze_backbone_epochs": 1, "precision": "fp16", "activation_checkpointing": True, "ema_decay": 0.9},
        id="fp16",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("keys", FINE_TUNINGS)
def test_resume_keeps_every_bit_before_at_and_after_the_release(job: Job, monkeypatch, keys: dict[str, Any]) -> None:
    monkeypatch.setattr("ast_core.training.state.KEPT_CHECKPOINTS", 100)
    own = change(job, **keys)
    fit(own, 0, 1, CPU)
    tables = ["model", "ema"] if own.optim.ema_decay else ["model"]
    wanted = [weights_of(own.folder, table=table) for table in tables]
    for last in (2 * STEPS + 2, STEPS + 2, STEPS, 2):  # of 4 steps an epoch; each round removes more
        for folder in (own.folder / "checkpoints").iterdir():
            if int(folder.name.removeprefix("step-")) > last:
                (folder / checkpoint.MARKER).unlink(missing_ok=True)
        for folder in (own.folder / "epochs").iterdir():
            if int(folder.name.removeprefix("epoch-")) > last // STEPS:
                (folder / checkpoint.MARKER).unlink()
        assert not is_finished(own)
        fit(own, 0, 1, CPU)
        for table, whole in zip(tables, wanted, strict=True):
            assert changed_names(whole, weights_of(own.folder, table=table)) == set(), (last, table)


def test_lora_trains_only_its_matrices_and_the_head_and_stores_merged_epochs(job: Job, tmp_path: Path) -> None:
    own = change(job, lora_rank=2, lora_alpha=6.0, head_learning_rate=1e-2)
    before = first_weights(own)
    fit(own, 0, 1, CPU)
    newest, _ = checkpoint.newest(own.folder / "checkpoints")
    assert newest is not None
    trained, merged = load_file(newest / "model.safetensors"), weights_of(own.folder)
    low_rank = {name for name in before if "lora" in name}
    assert changed_names(before, trained) == HEAD | low_rank
    assert merged.keys() == first_weights(job).keys() == before.keys() - low_rank
    for name in merged:
        update = 0.0
        if name.replace("weight", "lora_a") in low_rank:
            update = 3.0 * trained[name.replace("weight", "lora_b")] @ trained[name.replace("weight", "lora_a")]
        torch.testing.assert_close(merged[name], trained[name] + update)
    first, second = (checkpoint.epoch_folders(own.folder / "epochs")[epoch] for epoch in (2, 3))
    identity = checkpoint.read_state(first)["identity"]
    assert not [key for key in identity["model"] if "lora" in key]
    write_bundle(tmp_path / "bundle", [("seed-0", average_weights([first, second]), identity)], single_label=True)
    bundle = Bundle.load(tmp_path / "bundle")
    scores_BC = Predictor(bundle).from_fbank(np.full((2, 32, 16), -6, np.float32), np.full(2, 32))
    assert scores_BC.shape == (2, len(LABELS))
    again = change(job, init=str(tmp_path / "bundle"), lora_rank=3)  # a merged bundle is a start like any other
    assert torch.equal(first_weights(again)["head.weight"], bundle.members[0].model.state_dict()["head.weight"])


def test_new_keys_with_their_defaults_are_in_no_identity(job: Job) -> None:
    identity = build_identity(job, ShardReader(job.shards, ["train"]), None).to_json()
    assert sorted(identity["run"]["way_in"]) == ["init", "positions", "projection"]
    new = {"lora_rank", "lora_alpha", *OptimConfig.LATER_KEYS}
    assert not new & {*identity["run"]["optim"], *identity["member"]["model"]}
    values = identity["member"]["model"]
    known = ["backbone", "freq_stride", "mask_padding", "patch_freq", "patch_time", "time_stride"]
    assert sorted(values) == known  # the digests of bundles are over these
    assert sha256_of_json(to_identity(ModelConfig())) == BEFORE


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"lora_rank": 2}, r"run\.way_in differ"),
        ({"freeze_backbone_epochs": 1}, r"run\.optim differ"),
        ({"layer_decay": 0.5}, r"run\.optim differ"),
        ({"head_learning_rate": 0.5}, r"run\.optim differ"),
    ],
)
def test_run_with_a_changed_key_is_another_run(job: Job, keys: dict[str, Any], named: str) -> None:
    fit(change(job, epochs=1), 0, 1, CPU)
    with pytest.raises(UserError, match=named):
        is_finished(change(job, **keys))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"lora_rank": 2, "freeze_backbone_epochs": -1}, "LoRA's updates of the backbone would never train"),
        ({"lora_rank": 2, "init": "scratch"}, r"model\.lora-rank is 2 and model\.init is scratch"),
        ({"freeze_backbone_epochs": 3, "init": "scratch"}, r"optim\.freeze-backbone-epochs is 3 and model\.init is"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(job: Job, keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fit(change(job, **keys), 0, 1, CPU)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_rank", -1), ("lora_alpha", 0.0), ("freeze_backbone_epochs", -2), ("head_learning_rate", -1e-3),
        ("layer_decay", 0.0), ("layer_decay", 1.5), ("early_stopping_epochs", -1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused_by_name(job: Job, key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"{key.replace('_', '-')} is {value}; give"):
        change(job, **{key: value})


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"lora_rank": 2}], ids=["complete", "lora"])
def test_two_ranks_release_the_backbone_together_and_resume_with_the_same_bits(
    tmp_path: Path, pretrained: Path, keys: dict[str, Any]
) -> None:
    one = make_job(tmp_path / "one", pretrained, freeze_backbone_epochs=1, **keys)
    two = dataclasses.replace(one, folder=tmp_path / "two")
    cut = dataclasses.replace(one, folder=tmp_path / "cut")
    fit(one, 0, 1, CPU)
    assert [rank.exitcode for rank in forked_trainings.train(two, 2).ranks] == [0, 0]
    for name, value in weights_of(two.folder).items():
        torch.testing.assert_close(value, weights_of(one.folder)[name], atol=1e-4, rtol=1e-3)
    for epochs in (1, 2, 3):  # ends at the release, and after it
        short = change(cut, epochs=epochs)
        assert [rank.exitcode for rank in forked_trainings.train(short, 2).ranks] == [0, 0]
    assert changed_names(weights_of(two.folder), weights_of(cut.folder)) == set()


@pytest.mark.slow
def test_two_ranks_stop_at_the_same_epoch(tmp_path: Path, pretrained: Path) -> None:
    own = make_job(tmp_path / "member", pretrained, early_stopping_epochs=1, epochs=30, learning_rate=1e-2)
    own = dataclasses.replace(own, data=DataConfig(validation_split="test", test_split="train"))
    training = forked_trainings.train(own, 2)
    assert [rank.exitcode for rank in training.ranks] == [0, 0], training.errors()
    assert is_finished(own)
    assert training.steps(0) == training.steps(1)
    assert len(training.steps()) < 30 * STEPS
