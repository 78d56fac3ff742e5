"""Studies: the paper's, and a user's own from TOML."""

from __future__ import annotations

from pathlib import Path

import pytest

from ast_core.errors import UserError
from ast_core.model.cost import model_cost
from pipeline.cli.command_line import load_recipe, with_changes
from tune.studies import PAPER_STUDIES, load_study


@pytest.mark.parametrize("name", PAPER_STUDIES)
def test_every_variant_changes_a_recipe_to_what_it_says(name: str) -> None:
    recipe = load_recipe("audioset_balanced")
    for variant in load_study(name).variants:
        changed = with_changes(recipe, variant.changes)
        for key, value in variant.changes.items():
            section, field = key.split(".")
            found = getattr(getattr(changed, section), field)
            assert (list(found) if isinstance(found, tuple) else found) == value


def test_overlaps_have_the_papers_patches_and_cost() -> None:
    recipe = load_recipe("audioset_full")
    costs = {}
    for variant in PAPER_STUDIES["overlap"].variants:
        changed = with_changes(recipe, variant.changes)
        costs[variant.name] = model_cost(changed.model, changed.front_end, 527)
    assert [own.patches for own in costs.values()] == [512, 657, 850, 1212]
    assert [round(own.macs / 1e9, 1) for own in costs.values()] == [48.6, 64.1, 85.9, 130.5]


def study(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_a_grid_crosses_its_axes_and_ranges_draw_the_same_again(tmp_path: Path) -> None:
    text = """
    title = "Mine"
    samples = 3
    sampler = "sobol"
    early_stopping = "asha"
    [grid.model]
    time_stride = [8, 4]
    [range.optim]
    learning_rate = {low = 1e-4, high = 1e-2, log = true}
    epochs = {low = 2, high = 9}
    """
    found = load_study(str(study(tmp_path, text)))
    assert found == load_study(str(tmp_path / "mine.toml"))
    assert len(found.variants) == 6
    assert found.early_stopping == "asha"
    for variant in found.variants:
        assert variant.changes["model.time_stride"] in {8, 4}
        assert 1e-4 <= variant.changes["optim.learning_rate"] <= 1e-2
        assert variant.changes["optim.epochs"] in range(2, 10)
    assert len({variant.changes["optim.learning_rate"] for variant in found.variants}) == 3


def test_named_variants_may_have_their_own_repeats(tmp_path: Path) -> None:
    text = "[variants.base]\n[variants.fine]\nrepeats = 1\nmodel.time_stride = 4\n"
    base, fine = load_study(str(study(tmp_path, text))).variants
    assert (base.changes, base.repeats) == ({}, None)
    assert (fine.changes, fine.repeats) == ({"model.time_stride": 4}, 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "nothing to try"),
        ("grids = 1", "keys .'grids'."),
        ("[grid]\nmodel = 3", "must be a list"),
        ("[range.optim]\nepochs = {low = 1, high = 2}", "samples = N"),
        ("samples = 2\n[range.optim]\nepochs = {low = 2, high = 1}", "low below a high"),
        ("samples = 2\n[range.optim]\nlearning_rate = {low = 0, high = 1, log = true}", "start above 0"),
        ("early_stopping = 'hyperband'", "none or asha"),
        ("[variants.a]\nrepeats = 0", "repeats is 0"),
        ("[variants.'../a']", "folder"),
        ("title = ", "not TOML"),
        (f"samples = {'9' * 5000}", "not TOML"),
    ],
)
def test_what_is_no_study_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        load_study(str(study(tmp_path, text)))


def test_an_unknown_study_is_told_the_known_ones() -> None:
    with pytest.raises(UserError, match="overlap, patch, positions"):
        load_study("overlaps")


def test_a_wrong_key_is_told_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        with_changes(load_recipe("demo"), {"model.time_strid": 4})
    assert "time-stride" in capsys.readouterr().err
