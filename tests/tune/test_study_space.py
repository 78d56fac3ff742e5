"""The ranges of a study: what they accept, and the points that Ray Tune and Optuna draw of them, without Ray."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ast_core.errors import UserError
from tune.studies import is_folder_name, load_study, name_point
from tune.study_space import LARGEST, Axis, TpeSpace, draw_random, parse_axes
from tune.tpe_draws import make_search

PATH = Path("mine.toml")
FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def axis(draw: st.DrawFn) -> Axis:
    key = f"{draw(st.sampled_from(['optim', 'model']))}.{draw(st.text('abcdefgh', min_size=1, max_size=8))}"
    if draw(st.booleans()):
        values = st.one_of(st.integers(0, 99), st.booleans(), st.text("xyz", min_size=1, max_size=4))
        return Axis(key, choices=tuple(draw(st.lists(st.one_of(values, st.lists(values, max_size=2)), min_size=1))))
    log = draw(st.booleans())
    ends = st.integers(1 if log else -(10**9), 10**9) | st.floats(1e-12 if log else -LARGEST, LARGEST)
    low, high = sorted([draw(ends), draw(ends)])
    assume(low < high)
    return Axis(key, low, high, log)


axes = st.lists(axis(), min_size=1, max_size=4, unique_by=lambda own: own.key).map(tuple)


def check_point(space: tuple[Axis, ...], point: dict[str, Any]) -> None:
    """Check that each value belongs to its axis, with the axis's type."""
    assert list(point) == [own.key for own in space]
    for own in space:
        value = point[own.key]
        if own.choices:
            assert value in own.choices
        else:
            assert own.low <= value <= own.high
            assert isinstance(value, int) == own.whole


@FEW
@given(space=axes, count=st.integers(1, 12), more=st.integers(0, 6), seed=st.integers(0, 2**32 - 1))
def test_random_points_are_in_their_ranges_differ_and_begin_alike_for_any_number(space, count, more, seed) -> None:
    try:
        points = draw_random(PATH, space, count + more, seed)
    except UserError as error:
        refused = re.search(r"samples is (\d+), but \[range\] has only (\d+) different points", str(error))
        points = draw_random(PATH, space, int(refused[2]), seed) if refused else []
        count, more = len(points), 0
    assert points
    for point in points:
        check_point(space, point)
    assert len({repr(point) for point in points}) == count + more
    assert draw_random(PATH, space, count, seed) == points[:count]


@FEW
@given(space=axes, seed=st.integers(0, 2**32 - 1), scores=st.lists(st.floats(0, 1) | st.none(), min_size=1, max_size=6))
def test_points_of_tpe_are_in_their_ranges(space, seed, scores) -> None:
    tpe = TpeSpace(space, len(scores), 2, seed)
    search = make_search(tpe)
    for number, score in enumerate(scores):
        check_point(space, tpe.point_of(search.suggest(str(number))))
        search.on_trial_complete(str(number), None if score is None else {"score": score})


@FEW
@given(space=axes)
def test_axes_are_read_as_they_are_written(space) -> None:
    tables: dict[str, Any] = {}
    for own in space:
        section, key = own.key.split(".")
        table = {"choices": list(own.choices)} if own.choices else {"low": own.low, "high": own.high, "log": own.log}
        tables.setdefault(section, {})[key] = table
    found = parse_axes(PATH, tomllib.loads(tomli_w.dumps(tables)))
    assert sorted(found, key=lambda own: own.key) == sorted(space, key=lambda own: own.key)


KEYS = ["title", "note", "variants", "grid", "range", "samples", "sampler", "startup", "seed", "early_stopping"]
PLAIN = st.one_of(
    st.integers(-3, 9), st.booleans(), st.floats(), st.sampled_from(["tpe", "asha", "a/b", ""]), st.dates()
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["optim", "low", "high", "log", "choices", "repeats", "epochs"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_any_table_is_a_study_or_a_user_error(tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "any.toml"
    path.write_text(tomli_w.dumps(values))
    try:
        names = [variant.name for variant in load_study(str(path)).variants]
    except UserError as error:
        names = [str(error).partition(str(path))[1] and "refused by the file's name"]
    assert all(map(is_folder_name, names))


@pytest.mark.parametrize(("drawn", "value"), [(0.00123456, 0.001235), (1e-4, 1e-4), (0.009999999, 0.01)])
def test_floats_have_four_digits_and_name_the_trial(drawn: float, value: float) -> None:
    assert Axis("optim.learning_rate", 1e-4, 1e-2, log=True).value_of(drawn) == value
    assert name_point({"optim.learning_rate": value, "model.x": [1, 2]}) == f"learning_rate={value},x=1+2"
