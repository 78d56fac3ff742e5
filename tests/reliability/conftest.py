"""Fixtures of the tests of promises: the number of faults, their seed, the trainings that they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from prepared import write_shards

Many = Callable[[int, int], int]


@pytest.fixture
def many(request: pytest.FixtureRequest) -> Many:
    """Return `many(short, long)`, which says how many faults this form of the tests injects."""
    return lambda short, long: long if request.config.getoption("--long") else short


@pytest.fixture
def fault_seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of every random instant and byte."""
    seed: int = request.config.getoption("--fault-seed")
    return seed


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, new_store: Callable[[Path], str]) -> Path:
    """Write the shards and the store of all trainings of these tests; each has its own run folder next to them."""
    path = tmp_path_factory.mktemp("trainings")
    new_store(path)
    write_shards(path / "shards", {"train": 42, "test": 21})
    return path


@pytest.fixture(scope="session")
def whole(folder: Path) -> Path:
    """Return the folder of a member that was trained without a fault, on two ranks without Ray."""
    from launches import training_flags  # noqa: PLC0415  # most of these tests train nothing
    from trainings import EPOCHS, fit_without_ray  # noqa: PLC0415

    from pipeline.cli.command_line import parse_settings  # noqa: PLC0415
    from pipeline.cli.stages import TrainSettings  # noqa: PLC0415

    return fit_without_ray(parse_settings(TrainSettings, "", training_flags(folder, "whole", EPOCHS)), workers=2)
