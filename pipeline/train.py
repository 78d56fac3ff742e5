"""Train one member on the shards, on as many workers as there are GPUs or cores; the same command again resumes.

python pipeline/train.py --recipe esc50 --run-dir work/esc50 --seed 0
"""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from ray.exceptions import OutOfDiskError
from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from rich.console import Console

from ast_core.config import Job, to_dict
from ast_core.errors import Preempted, UserError
from ast_core.redaction import without_secrets
from ast_core.shards.reader import ShardIndex
from ast_core.storage import writer_fence
from ast_core.storage.atomic_files import stored_in, write_json
from ast_core.storage.disk_space import FULL, not_written
from ast_core.storage.object_store import Store
from ast_core.training.trainer import is_finished
from ast_core.weights import checkpoint
from pipeline.cli.stages import TrainSettings, parse, run_stage
from pipeline.ray_runtime import connection, preemption, watched_start
from pipeline.ray_runtime.lean_trainer import Trainer
from pipeline.ray_runtime.train_rank import train_rank
from pipeline.reporting import prometheus
from pipeline.reporting.history import EpochBar, metrics_table, read_history
from pipeline.run_folder import folder_lock, sync
from pipeline.scoring.distillation import teach
from pipeline.tracking import mlflow_store
from pipeline.tracking.run_note import note_run

RESTARTS = 3
"""Times that lost workers are started again without a new checkpoint between; a long training may lose many more."""


def train(settings: TrainSettings) -> Path:
    """Train the member `seed-N` of a run.

    Returns:
        The member's folder, with `epochs/`, `checkpoints/` and `metrics.jsonl`.

    Raises:
        UserError: the shards are missing or of other settings, another launch holds the run, or the loss is not finite.
    """
    _bring(settings)
    index = ShardIndex.load(settings.shards)
    job = dataclasses.replace(job_of(settings), teacher_scores=teach(settings))
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
        "folder_id": mlflow_store.folder_id(job.folder),
    } | ({mlflow_store.PARENT: settings.parent_run} if settings.parent_run else {})
    with folder_lock.alone(job.folder, "trained"):
        mlflow_store.open_store(settings.tracking)
        write_json(job.folder / "run.json", run)
        history = job.folder / "metrics.jsonl"
        with (
            mlflow_store.start_run(settings.experiment, name, run["settings"], tags) as run_id,
            mlflow_store.MetricsFollower(run_id, history),
            EpochBar(f"train {job.folder.name}", history, job.optim.epochs),
            sync.Follower([history]),
        ):
            note_run(job.folder, run_id)
            if is_finished(job):  # what the tracker lacks of it follows all the same
                Console().print(f"{job.folder.name} is trained already.")
            else:
                with connection.connected(settings.address, settings.workers):
                    workers = connection.worker_count(settings.workers, job.optim.batch_size)
                    _supervise(job, workers, sync.stores_of(settings))
        mlflow_store.log_artifacts(run_id, job.folder / "run.json")
    Console().print(metrics_table(f"{job.folder.name}: training", history))
    return job.folder


def _bring(settings: TrainSettings) -> None:
    """From the run's store, what this process reads; workers bring what they read themselves."""
    own = f"members/seed-{settings.seed}"
    names = ("metrics.jsonl", "run.json", ".folder-id", ".mlflow-run", held_by(Path()).name)
    sync.bring(settings, files=[f"{own}/{name}" for name in names])
    if len(read_history(settings.run_dir / own / "metrics.jsonl")) >= settings.optim.epochs:  # it may be finished
        sync.bring(settings, settings.data.train_splits, [f"{own}/epochs/*"])
        sync.bring_checkpoint(settings.run_dir / own / "checkpoints")


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


def held_by(folder: Path) -> Path:
    """Where a member's workers note what they hold of the cluster."""
    return folder / ".placement-group"


def _supervise(job: Job, workers: int, stores: tuple[Store, ...]) -> None:
    """Run the workers to the end; start them again if they die of anything but an error that the user must mend.

    Ray's own restarts would repeat those errors too, and its list of checkpoints does not survive a kill inside a
    write; ours do, so each start is a fresh run to Ray.
    """
    scratch, losses = job.folder / ".ray", 0
    try:
        while True:
            before = _newest_step(job)
            try:
                return _fit_once(job, workers, stores, scratch)
            except TrainingFailedError as error:
                if (user_error := _cause(error, UserError)) is not None:
                    raise UserError(str(user_error)) from None
                _require_disk(error, scratch)
                preempted = _cause(error, Preempted)
                losses = (losses if _newest_step(job) == before else 0) + (preempted is None)
                if losses > RESTARTS:
                    raise UserError(
                        f"Workers of {job.folder.name} died {losses} times without a new checkpoint between; the last "
                        f"time: {_lost(job, error)} ({error}). The newest checkpoint is kept: run the same command "
                        "again once the cause is mended."
                    ) from error
                _note_restart(job, preempted or error)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                raise not_written(scratch, error, 0, 0) from error  # Ray's own files are in the run's folder
            except KeyboardInterrupt:
                for sentence in preemption.end([job.folder]):
                    Console(stderr=True).print(sentence)
                raise
    finally:
        writer_fence.shut_out(job.folder)
        sync.drop(scratch)


def _newest_step(job: Job) -> str:
    """Name of the newest committed checkpoint, wherever it was committed."""
    folder = job.folder / "checkpoints"
    markers = [*folder.glob(f"*/{checkpoint.MARKER}"), *stored_in(folder)]
    return max((path.parent.name for path in markers if path.name == checkpoint.MARKER), default="")


def _require_disk(error: TrainingFailedError, scratch: Path) -> None:
    """`NoRoomError`, if Ray's own files met a full disk: workers that are started again meet it again."""
    if _cause(error, OutOfDiskError) is not None:
        raise connection.no_room_to_spill() from error
    system = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if str(system.strerror) in str(error) or getattr(_cause(error, OSError), "errno", 0) in FULL:
        raise not_written(scratch, system, 0, 0) from error


def _note_restart(job: Job, error: BaseException) -> None:
    console = Console(stderr=True, soft_wrap=True)
    if isinstance(error, Preempted):
        console.print(f"A node is taken away: {error} It goes on elsewhere, once there is room.")
    else:
        console.print(f"Workers were lost: {_lost(job, error)}. Starting again from the checkpoint.", markup=False)
    prometheus.count_restart(job, "preempted" if isinstance(error, Preempted) else "lost")


def _lost(job: Job, error: BaseException) -> str:
    """Which workers died or no longer answer: the others' errors are of having lost these."""
    failures = getattr(error, "worker_failures", {})
    fates = {WorkerHealthCheckFailedError: "died", WorkerHealthCheckTimeoutError: "stopped, for it does not answer"}
    known = preemption.workers(job.folder)
    named = [
        f"rank {rank} ({known.get(rank, 'of unknown process')}) {fate}"
        for rank, failure in sorted(failures.items())
        for kind, fate in fates.items()
        if isinstance(failure, kind)
    ]
    return ", ".join(named) or type(error).__name__


def _fit_once(job: Job, workers: int, stores: tuple[Store, ...], scratch: Path) -> None:
    sync.bring_note(held_by(job.folder))
    connection.release(held_by(job.folder))  # of a launch whose controller was killed
    connection.release_own()
    connection.settle_train()
    preemption.begin(job.folder)
    gpu = connection.uses_gpu()
    config = {
        "job": job,
        "held": held_by(job.folder),
        "stores": stores,
        "generation": writer_fence.take_over(job.folder),
    }
    trainer = Trainer(
        train_rank,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            **sync.ray_storage(scratch),
            logging_config=LoggingConfig(log_level="CRITICAL"),  # type: ignore[call-arg]  # mypy sees an older class
        ),
    )
    with watched_start.watched(job.folder, workers):
        trainer.fit()


def _cause(error: BaseException, kind: type[BaseException]) -> BaseException | None:
    """The first error of a kind among a training failure's causes."""
    failures = getattr(error, "worker_failures", {})
    for failure in [*failures.values(), error]:
        seen: BaseException | None = failure
        while seen is not None:
            if isinstance(seen, kind):
                return seen
            seen = getattr(seen, "_base_exc", None) or seen.__cause__
    return None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: train(parse(TrainSettings, __doc__, argv)))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.train import main  # workers import this module by its name, not as __main__

    main()
