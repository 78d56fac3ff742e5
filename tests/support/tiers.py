"""Tiers of the tests: what each test starts, the guard that keeps the markers true, and the ten slowest tests."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

STARTED_BY = {"ray_session": "ray", "ray_cluster": "ray", "main_job": "ray", "s3_store": "server", "tracker": "server"}
"""Markers of the tests that use a fixture; other tests that start Ray or a server have the marker in their file."""
SHARED = {
    "ray_session": "ray_session", "searched": "ray_session", "main_job": "main_job", "ray_cluster": "ray_cluster",
    "tracker": "tracker", "s3_store": "s3_store", "uri": "s3_store",
}  # fmt: skip
"""Groups of the tests that use a fixture which takes long to make; a group runs in one process, which makes it once."""
FORKS = "forked_trainings"
"""Module whose server of forks imports torch for seconds; the files that import from it are a group, too."""
PROGRAMS = {"gcs_server": "ray", "raylet": "ray", "moto.server": "server", "postgres": "server", "initdb": "server"}
COMMANDS = {("ray", "start"): "ray", ("mlflow", "server"): "server"}
LONGEST_GROUPS = (
    "ray_session", "test_interrupted_training", "main_job", "test_nodes", "test_disk_full", "tracker", FORKS,
    "ray_cluster",
)  # fmt: skip
"""Groups of tests that run one after the other in one process and take minutes; the longest is first."""
SLOWEST = 10
PROVES = "proves"
"""Name of the property of a test report that says what the test proves."""
_allowed: set[str] | None = None
"""Markers of the running test that allow it to start something; None between the tests."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="inject as many faults as docs/concepts/reliability.md says")


def pytest_configure(config: pytest.Config) -> None:
    sys.addaudithook(_refuse_unmarked_starts)
    gc.disable()  # the imports of all tests make a million objects that stay; looking for garbage among them costs 18 %


def pytest_collection_finish() -> None:
    """Collect garbage from now on, but not among the objects of the imports."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the markers that follow from fixtures, group tests that share fixtures, and put long ones first."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        for marker in {STARTED_BY[name] for name in STARTED_BY.keys() & fixtures}:
            item.add_marker(marker)
        group = next((group for name, group in SHARED.items() if name in fixtures), _group_of_file(item))
        item.add_marker(pytest.mark.xdist_group(group))
        if item.get_closest_marker("long") and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="part of the long form: make test-all"))
        item.user_properties.append((PROVES, _first_line(item)))
    items.sort(key=lambda item: (_group_rank(item), not _markers(item), item.get_closest_marker("slow") is None))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Refuse the start of Ray and of servers to tests without the marker, in this process and in its children."""
    global _allowed  # noqa: PLW0603 - an audit hook has no other way to know the running test
    _allowed = _markers(item)
    try:
        with pytest.MonkeyPatch.context() as patch:
            if "ray" not in _allowed:
                patch.setenv(
                    "RAY_ADDRESS", "this-test-needs-the-marker-ray"
                )  # also stops the stages that a test starts
            return (yield)
    finally:
        _allowed = None


def _group_rank(item: pytest.Item) -> int:
    """Return the place of the test's group among those that take minutes, so that these start first."""
    marker = item.get_closest_marker("xdist_group")
    assert marker is not None
    return LONGEST_GROUPS.index(marker.args[0]) if marker.args[0] in LONGEST_GROUPS else len(LONGEST_GROUPS)


def _group_of_file(item: pytest.Item) -> str:
    names = vars(getattr(item, "module", None) or object).values()
    return FORKS if any(getattr(value, "__module__", "") == FORKS for value in names) else item.path.stem


def _markers(item: pytest.Item) -> set[str]:
    return {marker for marker in ("ray", "server") if item.get_closest_marker(marker)}


def _first_line(item: pytest.Item) -> str:
    """Return the first line of the docstring of the test, or of its file."""
    own = getattr(getattr(item, "obj", None), "__doc__", None)
    text: str = own or getattr(getattr(item, "module", None), "__doc__", None) or item.name
    return text.strip().splitlines()[0]


def _refuse_unmarked_starts(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "subprocess.Popen" or _allowed is None:
        return
    marker = _needed_marker(arguments[1])
    if marker and marker not in _allowed:
        pytest.fail(f"This test starts {arguments[1]}, so it needs the marker `{marker}`; see CONTRIBUTING.md.")


def _needed_marker(command: str | bytes | os.PathLike[str] | Sequence[object]) -> str | None:
    """Return the marker that a test needs which runs this command."""
    parts = command.split() if isinstance(command, str | bytes) else command if isinstance(command, Sequence) else ()
    names = [Path(os.fsdecode(part)).name for part in parts if isinstance(part, str | bytes | os.PathLike)]
    for first, second in zip(names, [*names[1:], ""], strict=True):
        marker = PROGRAMS.get(first) or COMMANDS.get((first, second))
        if marker:
            return marker
    return None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the slowest tests with what they prove."""
    seconds: dict[str, float] = {}
    proofs: dict[str, str] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid] = seconds.get(report.nodeid, 0) + report.duration
                proofs[report.nodeid] = dict(report.user_properties).get(PROVES, "")
    slowest = sorted(seconds, key=lambda name: -seconds[name])[:SLOWEST]
    if len(seconds) > SLOWEST:
        terminalreporter.section(f"the {SLOWEST} slowest tests, and what they prove")
        for name in slowest:
            terminalreporter.line(f"{seconds[name]:6.1f} s  {name}\n          {proofs[name]}")
