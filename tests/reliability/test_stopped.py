"""A worker that is stopped (SIGSTOP) is reported and replaced within a minute; no one waits for it for ever."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import psutil
import pytest
from prepared import write_shards
from stopped_workers import Stopper, said_to
from trainings import WORKER, epochs_of, outcome, ranks_of, run_fault, titled, trained

from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import EvaluateSettings
from pipeline.evaluate import evaluate
from pipeline.ray_runtime import liveness
from pipeline.scoring import bundle_scores

CLIPS = 4000
SCORER = "ray::Scorer.score"


@pytest.mark.long  # minutes of restarts; the short form stops a worker of prepare, and one in test_liveness
@pytest.mark.timeout(900)
def test_a_rank_that_is_stopped_while_it_starts_or_later_is_named_and_replaced(
    folder: Path, whole: Path, ray_session, fault_seed, measured
) -> None:
    rank, member = random.Random(fault_seed).randrange(2), folder / "stopped" / "members" / "seed-0"
    earlier = {own.pid for own in titled(WORKER)}

    def starting() -> psutil.Process | None:
        return next((own for own in titled(WORKER) if own.pid not in earlier), None)

    def later() -> psutil.Process | None:
        return ranks_of(member).get(rank) if epochs_of(member) >= 3 else None

    said = folder / "stopped.log"
    at_start, in_training = Stopper(starting, said), Stopper(later, said)

    def both() -> None:
        at_start()
        in_training()

    with said_to(said), run_fault(both):
        trained(folder, "stopped")
    assert "was stopped before its first heartbeat" in at_start.name
    assert f"Worker rank {rank} (process" in in_training.name
    assert "Starting again from the checkpoint" in said.read_text()
    assert outcome(member) == outcome(whole)
    figures = {"while_it_starts_named_s": at_start.named_s, "named_s": in_training.named_s}
    measured("R20", stopped_rank=rank, patience_s=liveness.SILENT_S, **figures, gone_s=in_training.gone_s)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_stopped_scorer_is_named_and_replaced(trained_bundle: Path, ray_session, measured, monkeypatch) -> None:
    run = trained_bundle.parents[1]
    write_shards(run / "shards", {"test": CLIPS})
    flags = ["--recipe", "esc50_small", "--run-dir", str(run), "--data.test-split", "test", "--workers", "1"]
    flags += ["--tracking", f"sqlite:///{run / 'mlflow.db'}"]
    monkeypatch.setattr(bundle_scores, "CHUNK", 1)  # so many answers that it is stopped before the last
    began: list[float] = []

    def victim() -> psutil.Process | None:
        """Wait until the scorer has scored for a while, and return it."""
        scorers = titled(SCORER)
        began.extend([time.monotonic()] if scorers else [])
        return scorers[0] if scorers and time.monotonic() > began[0] + 1.5 else None

    stopper = Stopper(victim, run / "said.log")
    with said_to(run / "said.log"), run_fault(stopper):
        results = evaluate(parse_settings(EvaluateSettings, "", flags))
    assert "Worker scorer (process" in stopper.name
    again = evaluate(parse_settings(EvaluateSettings, "", [*flags, "--run-dir", str(_copy(run))]))
    assert again == results
    measured("R20", stopped="a scorer", patience_s=liveness.SILENT_S, named_s=stopper.named_s, gone_s=stopper.gone_s)


def _copy(run: Path) -> Path:
    """Copy the bundle and the shards to a folder where nothing is scored yet."""
    copy = run / "again"
    for name in ("bundles", "shards"):
        shutil.copytree(run / name, copy / name)
    return copy
