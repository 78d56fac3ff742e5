"""Studies of the paper, and studies that users write as TOML files."""

from __future__ import annotations

from pathlib import Path

import pytest

from ast_core.errors import UserError
from ast_core.model.cost import model_cost
from pipeline.cli.command_line import load_recipe, with_changes
from tune.studies import PAPER_STUDIES, load_study
from tune.study_space import Axis, TpeSpace

TPE = "sampler = 'tpe'\n[range.optim]\nepochs = {low = 1, high = 90}"


@pytest.mark.parametrize("name", PAPER_STUDIES)
def test_each_variant_of_a_paper_study_sets_its_recipe_keys(name: str) -> None:
    recipe = load_recipe("audioset_balanced")
    for variant in load_study(name).variants:
        changed = with_changes(recipe, variant.changes)
        for key, value in variant.changes.items():
            section, field = key.split(".")
            found = getattr(getattr(changed, section), field)
            assert (list(found) if isinstance(found, tuple) else found) == value


def test_overlap_variants_have_the_patches_and_the_cost_of_the_paper() -> None:
    recipe = load_recipe("audioset_full")
    costs = {}
    for variant in PAPER_STUDIES["overlap"].variants:
        changed = with_changes(recipe, variant.changes)
        costs[variant.name] = model_cost(changed.model, changed.front_end, 527)
    assert [own.patches for own in costs.values()] == [512, 657, 850, 1212]
    assert [round(own.macs / 1e9, 1) for own in costs.values()] == [48.6, 64.1, 85.9, 130.5]


def write_study(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_grid_is_crossed_with_points_that_each_load_draws_alike(tmp_path: Path) -> None:
    text = """
    title = "Mine"
    samples = 3
    sampler = "random"
    early_stopping = "asha"
    [grid.model]
    time_stride = [8, 4]
    [range.optim]
    learning_rate = {low = 1e-4, high = 1e-2, log = true}
    epochs = {low = 2, high = 9}
    """
    found = load_study(str(write_study(tmp_path, text)))
    assert found == load_study(str(tmp_path / "mine.toml"))
    assert len(found.variants) == 6
    assert found.early_stopping == "asha"
    for variant in found.variants:
        assert variant.changes["model.time_stride"] in {8, 4}
        assert 1e-4 <= variant.changes["optim.learning_rate"] <= 1e-2
        assert variant.changes["optim.epochs"] in range(2, 10)
    assert len({variant.changes["optim.learning_rate"] for variant in found.variants}) == 3
    assert {variant.sampler for variant in found.variants} == {"random"}


def test_tpe_draws_while_the_study_runs_next_to_its_named_variants(tmp_path: Path) -> None:
    text = """
    sampler = "tpe"
    samples = 8
    startup = 3
    seed = 5
    [variants.base]
    [range.optim]
    learning_rate = {low = 1e-4, high = 1e-2, log = true}
    [range.model]
    time_stride = {choices = [8, 4, 2]}
    """
    found = load_study(str(write_study(tmp_path, text)))
    axes = (Axis("optim.learning_rate", 1e-4, 1e-2, log=True), Axis("model.time_stride", choices=(8, 4, 2)))
    assert found.tpe == TpeSpace(axes, samples=8, startup=3, seed=5)
    lowest = {"optim.learning_rate": 1e-4, "model.time_stride": 8}
    further = [{**lowest, "optim.learning_rate": 1e-2}, *({**lowest, "model.time_stride": value} for value in (4, 2))]
    assert found.extremes() == [{}, lowest, *further]


def test_named_variant_keeps_its_own_repeats(tmp_path: Path) -> None:
    text = "[variants.base]\n[variants.fine]\nrepeats = 1\nmodel.time_stride = 4\n"
    base, fine = load_study(str(write_study(tmp_path, text))).variants
    assert (base.changes, base.repeats) == ({}, None)
    assert (fine.changes, fine.repeats) == ({"model.time_stride": 4}, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no variants"),
        ("grids = 1", "unknown keys .'grids'."),
        ("[grid]\nmodel = 3", "must be a list"),
        ("[range.optim]\nepochs = {low = 1, high = 2}", "samples = N"),
        ("samples = 2\n[range.optim]\nepochs = {low = 2, high = 1}", "set low below high"),
        ("samples = 2\n[range.optim]\nlearning_rate = {low = 0, high = 1, log = true}", "set low above 0"),
        ("samples = 4\n[range.optim]\nepochs = {low = 1, high = 3}", "has only 3 different points. Set samples to 3"),
        ("samples = 2\n[range.optim]\nepochs = {low = 1}", "epochs has no high; give both ends"),
        ("samples = 2\n[range.optim]\nepochs = {low = 1, high = 'x'}", "high = 'x'; give a number"),
        ("samples = 2\n[range.optim]\nepochs = {low = 1, high = inf}", "high = inf; give a number"),
        ("samples = 2\n[range.optim]\nepochs = {low = 1, high = 9, step = 2}", "unknown keys .'step'.*low, log, high"),
        ("samples = 2\n[range.optim]\nepochs = {choices = []}", "give a list of texts, numbers"),
        ("samples = 2\nseed = -1\n[range.optim]\nepochs = {low = 1, high = 9}", "seed is -1"),
        ("sampler = 'sobol'", 'Write sampler = "random", or sampler = "tpe"'),
        ("sampler = 'grid'", "set it to random or tpe"),
        (f"samples = 2\n{TPE}", "TPE draws the first 10 points at random. Set samples above 10"),
        (f"samples = 12\nstartup = 0\n{TPE}", "startup is 0"),
        (f"samples = 12\n{TPE}\n[grid.model]\ntime_stride = [8]", "time_stride = {choices = .8, 4.}"),
        (f"samples = 12\n{TPE}\n[range.front_end]\nnum_mel_bins = {{low = 64, high = 128}}", "shards of its own"),
        ("samples = 12\nsampler = 'tpe'\nrange = {}", "is empty"),
        ("startup = 3\n[variants.a]", 'startup is for sampler = "tpe" only'),
        ("variants = 3", "variants is 3; it must be a table"),
        ("early_stopping = 'hyperband'", "none or asha"),
        ("[variants.a]\nrepeats = 0", "repeats is 0"),
        ("[variants.'../a']", "cannot be folder names"),
        ("title = ", "not TOML"),
        (f"samples = {'9' * 5000}", "not TOML"),
    ],
)
def test_invalid_study_raises_a_user_error_that_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_study(str(write_study(tmp_path, text)))


def test_unknown_study_raises_a_user_error_that_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="overlap, patch, positions"):
        load_study("overlaps")


def test_misspelled_recipe_key_exits_with_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        with_changes(load_recipe("demo"), {"model.time_strid": 4})
    assert "time-stride" in capsys.readouterr().err
