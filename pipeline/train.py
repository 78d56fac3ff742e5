"""Train one member on the shards, on as many workers as there are GPUs or cores; the same command again resumes.

python pipeline/train.py --recipe esc50 --run-dir work/esc50 --seed 0
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ast_core.config import Job
from ast_core.redaction import without_secrets
from ast_core.serialization import to_dict
from ast_core.shards.index import ShardIndex
from ast_core.storage.json_files import write_json
from ast_core.training.trainer import is_finished
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import TrainSettings
from pipeline.ray_runtime import cluster_size, connection
from pipeline.ray_runtime.training_supervisor import placement_group_file, supervise
from pipeline.reporting.history import read_history
from pipeline.reporting.progress_bars import EpochBar, metrics_table
from pipeline.run_folder import folder_lock, sync
from pipeline.scoring.distillation import score_teacher
from pipeline.tracking import metrics_follower, mlflow_store, runs
from pipeline.tracking.run_note import write_run_note


def train(settings: TrainSettings) -> Path:
    """Train the member `seed-N` of a run.

    Returns:
        The member's folder, with `epochs/`, `checkpoints/` and `metrics.jsonl`.

    Raises:
        UserError: the shards are missing or of other settings, another launch holds the run, or the loss is not finite.
    """
    _bring(settings)
    index = ShardIndex.load(settings.shards)
    job = dataclasses.replace(job_of(settings), teacher_scores=score_teacher(settings))
    run = {
        "settings": without_secrets(to_dict(settings))
        | {"run_dir": str(settings.run_dir), "shards": str(settings.shards)}
    }
    name = f"{settings.experiment}-{job.folder.name}"
    tags = {
        "stage": "train",
        "seed": str(settings.seed),
        "data_hash": index.data_hash,
        "run_dir": str(settings.run_dir),
        "folder_id": runs.folder_id(job.folder),
    } | ({runs.PARENT_RUN_TAG: settings.parent_run} if settings.parent_run else {})
    with folder_lock.lock_folder(job.folder, "trained"):
        mlflow_store.open_store(settings.tracking)
        write_json(job.folder / "run.json", run)
        history = job.folder / "metrics.jsonl"
        with (
            runs.start_run(settings.experiment, name, run["settings"], tags) as run_id,
            metrics_follower.MetricsFollower(run_id, history),
            EpochBar(f"train {job.folder.name}", history, job.optim.epochs),
            sync.StoreFollower([history]),
        ):
            write_run_note(job.folder, run_id)
            if is_finished(job):  # what the tracker lacks of it follows all the same
                Console().print(f"{job.folder.name} is trained already.")
            else:
                with connection.connect(settings.address, settings.workers):
                    workers = cluster_size.worker_count(settings.workers, job.optim.batch_size)
                    supervise(job, workers, sync.object_stores(settings))
        runs.log_artifacts(run_id, job.folder / "run.json")
    Console().print(metrics_table(f"{job.folder.name}: training", history))
    return job.folder


def _bring(settings: TrainSettings) -> None:
    """From the run's store, what this process reads; workers bring what they read themselves."""
    own = f"members/seed-{settings.seed}"
    names = ("metrics.jsonl", "run.json", ".folder-id", ".mlflow-run", placement_group_file(Path()).name)
    sync.download_inputs(settings, files=[f"{own}/{name}" for name in names])
    if len(read_history(settings.run_dir / own / "metrics.jsonl")) >= settings.optim.epochs:  # it may be finished
        sync.download_inputs(settings, settings.data.train_splits, [f"{own}/epochs/*"])
        sync.download_checkpoint(settings.run_dir / own / "checkpoints")


def job_of(settings: TrainSettings) -> Job:
    """What `ast_core` needs of a stage's settings."""
    return Job(
        folder=settings.run_dir / "members" / f"seed-{settings.seed}",
        shards=settings.shards,
        seed=settings.seed,
        data=settings.data,
        front_end=settings.front_end,
        model=settings.model,
        augment=settings.augment,
        optim=settings.optim,
        distil=settings.distil,
        accept_other_data=settings.accept_other_data,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: train(parse_settings(TrainSettings, __doc__, argv)))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.train import main  # workers import this module by its name, not as __main__

    main()
