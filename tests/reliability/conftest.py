"""Fixtures of the tests of promises: the number of faults, their seed, the printed figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prepared import write_shards

if TYPE_CHECKING:
    from terminations import Termination

FIGURES = pytest.StashKey[dict[str, list[str]]]()
Many = Callable[[int, int], int]
Measured = Callable[..., None]


@pytest.fixture
def many(request: pytest.FixtureRequest) -> Many:
    """Return `many(short, long)`, which says how many faults this form of the tests injects."""
    return lambda short, long: long if request.config.getoption("--long") else short


@pytest.fixture
def fault_seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of every random instant and byte."""
    seed: int = request.config.getoption("--fault-seed")
    return seed


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Return `measured("R1", kills=20)`, which prints figures at the end; docs/reliability.md has no others."""

    def note(row: str, **figures: object) -> None:
        shown = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in figures.items())
        request.config.stash.setdefault(FIGURES, {}).setdefault(row, []).append(f"{request.node.name}: {shown}")

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(FIGURES, {})
    if figures:
        form = "long" if config.getoption("--long") else "short"
        seed = config.getoption("--fault-seed")
        terminalreporter.section(f"what was measured: the {form} form, --fault-seed {seed}")
    for row in sorted(figures, key=lambda name: (name[:1], int(name[1:]) if name[1:].isdecimal() else 0, name)):
        for line in figures[row]:
            terminalreporter.line(f"{row:>4}  {line}")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the shards that all trainings of these tests use; each training has its own run folder next to them."""
    path = tmp_path_factory.mktemp("trainings")
    write_shards(path / "shards", {"train": 42, "test": 21})
    return path


@pytest.fixture(scope="session")
def terminated(folder: Path) -> Termination:
    """Return a training that got SIGTERM."""
    from terminations import terminate  # noqa: PLC0415  # most of these tests train nothing

    return terminate(folder, "asked")


@pytest.fixture(scope="session")
def whole(folder: Path) -> Path:
    """Return the folder of a member that was trained without a fault, on two ranks without Ray."""
    from launches import training_flags  # noqa: PLC0415  # most of these tests train nothing
    from trainings import EPOCHS, fit_without_ray  # noqa: PLC0415

    from pipeline.cli.command_line import parse_settings  # noqa: PLC0415
    from pipeline.cli.stages import TrainSettings  # noqa: PLC0415

    return fit_without_ray(parse_settings(TrainSettings, "", training_flags(folder, "whole", EPOCHS)), workers=2)
