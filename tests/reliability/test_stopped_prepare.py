"""R20, prepare: a worker that is stopped is reported and replaced; one that is only busy is not reported."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from killed_prepares import part_makers
from listed_audio import prepare_settings, require_balance, write_clips, write_list
from stopped_workers import Stopper, said_to
from trainings import run_fault

from pipeline.prepare import prepare
from pipeline.ray_runtime import liveness

CLIPS = 150
SHORT_S = 12.0
"""Patience of the short form; longer than a worker on a busy machine takes between two heartbeats."""


@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(400)
def test_a_stopped_worker_is_reported_and_replaced(
    tmp_path: Path,
    many: Callable[[float, float], float],
    monkeypatch: pytest.MonkeyPatch,
    measured: Callable[..., None],
) -> None:
    monkeypatch.setattr(liveness, "SILENT_S", many(SHORT_S, liveness.SILENT_S))
    names = write_clips(tmp_path / "data", CLIPS)
    settings = prepare_settings(write_list(tmp_path / "data" / "list.csv", names), tmp_path / "shards", 5)
    said = tmp_path / "said.log"
    stopper = Stopper(lambda: next(iter(part_makers()), None), said)
    with said_to(said), run_fault(stopper):
        index = prepare(settings)
    reported = re.search(
        r"orker (\S*) ?\(process (\d+) on (\S+)\) (?:has sent no heartbeat for|was stopped before) .* replaces it",
        said.read_text(),
    )
    assert reported, said.read_text()
    assert (int(reported[2]), reported[3]) == (stopper.process, os.uname().nodename)
    assert said.read_text().count("replaces it") == 1
    require_balance(index, settings.shards, len(names))
    measured("R20", patience_s=liveness.SILENT_S, part=reported[1], named_s=stopper.named_s, gone_s=stopper.gone_s)
