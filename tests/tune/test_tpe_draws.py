"""TPE's points without Ray: they continue after a kill at any moment, and learn from scores."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ast_core.errors import DamagedError, UserError
from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from tune import tpe_draws
from tune.studies import Variant
from tune.study_space import Axis, TpeSpace, draw_random
from tune.tpe_draws import JOURNAL, TpeDraws

AXES = (
    Axis("optim.learning_rate", 1e-5, 1e-1, log=True),
    Axis("optim.epochs", 2, 30),
    Axis("model.positions", choices=("bilinear", "nearest")),
)
SPACE = TpeSpace(AXES, samples=9, startup=4, seed=3)
BEST = (1e-3, 10)
"""Learning rate and epochs with the best score."""


def score(variant: Variant) -> float | None:
    """Return 0 for the best point and less for others; a very high learning rate fails."""
    rate = variant.changes["optim.learning_rate"]
    distance = abs(math.log10(rate / BEST[0])) + abs(variant.changes["optim.epochs"] - BEST[1]) / 10
    return None if rate > 0.05 else -distance


def launch(folder: Path, space: TpeSpace = SPACE, steps: int = 10**6) -> list[str]:
    """Run a search one point after the other, and end it without warning after this many steps.

    Returns:
        Names of all points so far.
    """

    def step() -> Iterator[None]:
        draws = TpeDraws(space, folder, "recipe and data")
        for variant in draws.variants:  # as a search does with the results on disk
            yield
            draws.tell(variant.name, score(variant))
        while variant := draws.draw():
            yield
            draws.tell(variant.name, score(variant))
            yield

    for _ in zip(range(steps), step(), strict=False):
        pass
    return names(folder)


def names(folder: Path, space: TpeSpace = SPACE) -> list[str]:
    return [variant.name for variant in TpeDraws(space, folder, "recipe and data").variants]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    launch(folder)
    return folder


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.integers(1, 19), max_size=3))
def test_search_that_was_killed_at_any_moments_draws_the_points_of_an_undisturbed_one(
    tmp_path_factory: pytest.TempPathFactory, whole: Path, kills: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("killed")
    for steps in kills:
        launch(folder, steps=steps)
    assert launch(folder) == names(whole)
    assert (folder / JOURNAL).read_bytes() == (whole / JOURNAL).read_bytes()


def test_more_samples_continue_a_finished_search(tmp_path: Path, whole: Path) -> None:
    launch(tmp_path)
    more = TpeSpace(AXES, 12, SPACE.startup, SPACE.seed)
    launch(tmp_path, more)
    assert names(tmp_path, more)[:9] == names(whole)
    assert len(names(tmp_path, more)) == 12


def test_tpe_draws_nearer_to_the_best_point_than_tune_at_random() -> None:
    space = TpeSpace(AXES, samples=40, startup=8, seed=1)
    search = tpe_draws.make_search(space)
    scores = []
    for number in range(space.samples):
        own = score(Variant("", space.point_of(search.suggest(str(number)))))
        scores.append(-9 if own is None else own)
        search.on_trial_complete(str(number), None if own is None else {"score": own})
    drawn = [score(Variant("", point)) for point in draw_random(Path("x"), AXES, 40, 1)]
    at_random = [-9 if own is None else own for own in drawn]
    assert sum(sorted(scores[-20:])[10:]) > sum(sorted(at_random[-20:])[10:])


def test_points_of_another_version_of_optuna_are_kept_and_followed_by_new_ones(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(tmp_path, steps=11)
    before = names(tmp_path)
    make = tpe_draws.make_search

    def make_other(space: TpeSpace, enqueued: Any = ()) -> Any:
        return make(TpeSpace(space.axes, space.samples, space.startup, space.seed + 1), enqueued)

    monkeypatch.setattr(tpe_draws, "make_search", make_other)
    launch(tmp_path)
    found = names(tmp_path)
    assert len(found) == 9
    assert found[: len(before)] == before
    assert found != names(whole)


def test_other_ranges_or_data_draw_new_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch(tmp_path, steps=5)
    assert TpeDraws(SPACE, tmp_path, "other data").variants == []
    assert TpeDraws(TpeSpace(AXES[:1], 9, 4, 3), tmp_path, "recipe and data").variants == []
    assert capsys.readouterr().out.count("have changed: TPE draws new points") == 2


def test_point_that_is_drawn_again_has_the_score_of_the_first_and_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = TpeSpace((Axis("optim.epochs", 1, 2),), samples=8, startup=2, seed=0)
    draws = TpeDraws(space, tmp_path, "")
    found = []
    while variant := draws.draw():
        found.append(variant.name)
        draws.tell(variant.name, float(variant.changes["optim.epochs"]))
    assert sorted(found) == ["epochs=1", "epochs=2"]
    assert capsys.readouterr().out.count("it is not trained twice") == 6
    assert draws.note == (
        "TPE drew 8 points, the first 2 at random. 6 of them were drawn before and not trained again."
    )
    events = read_hashed_json(tmp_path / JOURNAL, "Journal")["events"]
    assert sum(event["kind"] == "scored" for event in events) == 8


def test_failed_point_that_succeeds_later_counts_with_its_score(tmp_path: Path) -> None:
    draws = TpeDraws(SPACE, tmp_path, "")
    variant = draws.draw()
    assert variant is not None
    assert variant.sampler == "tpe at random"
    draws.tell(variant.name, None)
    for state in (TpeDraws(SPACE, tmp_path, ""), draws):
        assert [trial.value for trial in state._search._ot_study.trials] == [None]
    draws.tell(variant.name, 0.5)
    draws.tell(variant.name, 0.5)
    again = TpeDraws(SPACE, tmp_path, "")
    for state in (again, draws):
        assert [trial.value for trial in state._search._ot_study.trials] == [None, 0.5]
    following = [again.draw(), draws.draw()]
    assert following[0] == following[1]


def test_damaged_or_invalid_journal_is_refused_by_name(tmp_path: Path) -> None:
    launch(tmp_path, steps=7)
    path = tmp_path / JOURNAL
    good = read_hashed_json(path, "Journal")
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(DamagedError, match=r"tpe\.json is damaged"):
        names(tmp_path)
    for key, value, says in (
        ("kind", "lost", "events.0..kind is 'lost'; give one of drawn, scored"),
        ("drawn", {"optim.epochs": 3}, "has points outside of the study's ranges"),
        ("drawn", {**good["events"][0]["drawn"], "optim.epochs": 99}, "has points outside of the study's ranges"),
        ("point", 7, "has points outside of the study's ranges"),
    ):
        write_hashed_json(path, {**good, "events": [{**good["events"][0], key: value}, *good["events"][1:]]})
        with pytest.raises(UserError, match=rf"tpe\.json.* {says}"):
            names(tmp_path)


def test_missing_optuna_is_one_sentence_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"needs Optuna, .* run pip install 'ast-pipeline\[optuna\]'\.$"):
        TpeDraws(SPACE, tmp_path, "")
