"""Train one member on the shards, on as many workers as there are GPUs or cores; the same command again resumes.

ast-pipeline train --recipe esc50 --run-dir work/esc50 --seed 0
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["train", *sys.argv[1:]])
    sys.exit()


from rich.console import Console

from ast_core.config import Job, OptimConfig
from ast_core.errors import NoRoomError, TakenOverError, UserError
from ast_core.redaction import without_secrets
from ast_core.serialization import to_dict
from ast_core.shards.index import ShardIndex
from ast_core.storage.json_files import write_json
from ast_core.training.early_stopping import describe_early_stop, find_last_epoch
from ast_core.training.member_folder import MemberFolder
from ast_core.training.trainer import is_finished
from ast_core.weights.hub.hub_address import is_hub_address
from ast_core.weights.hub.known_models import describe_licence
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import TrainSettings
from pipeline.ray_runtime import cluster_size, connection
from pipeline.ray_runtime.training_supervisor import placement_group_file, supervise
from pipeline.ray_runtime.worker_group import WorkerGroup, scratch_folder
from pipeline.reporting.history import EpochRow, read_history
from pipeline.reporting.progress_bars import EpochBar, metrics_table
from pipeline.run_folder import downloads, sync
from pipeline.run_folder.folder_lock import lock_folder
from pipeline.run_folder.layout import RunFolder, member_files
from pipeline.run_folder.pinned_models import fetch_pinned, find_pinned, pin_initial_weights
from pipeline.scoring.distillation import score_teacher
from pipeline.tracking import mlflow_store, runs
from pipeline.tracking.metrics_follower import MetricsFollower
from pipeline.tracking.run_note import NOTE, write_run_note


def train(settings: TrainSettings, group: WorkerGroup | None = None) -> Path:
    """Train one member of a run, `seed-N`.

    Args:
        settings: settings of the stage.
        group: workers of the training before, if there was one, and of the next; by default, new workers that end with
            this training.

    Returns:
        The member's folder (`ast_core.training.member_folder`).

    Raises:
        UserError: the shards are missing or of other settings, another launch holds the run, or the loss is not finite.
    """
    run, member = RunFolder.of(settings), RunFolder.of(settings).member(settings.seed)
    _download(settings, member)
    settings = pin_initial_weights(settings)
    index = ShardIndex.load(run.shards)
    make_room = group.close if group is not None else None
    job = dataclasses.replace(job_of(settings), teacher_scores=score_teacher(settings, make_room))
    with lock_folder(member.path, "train"):
        mlflow_store.open_store(settings.tracking)
        stored = _write_settings(settings, member)
        name, tags = f"{settings.experiment}-{member.name}", _tags(settings, member, index)
        with (
            runs.start_run(settings.experiment, name, stored, tags) as run_id,
            MetricsFollower(run_id, member.history),
            EpochBar(f"train {member.name}", member.history, job.optim.epochs),
            sync.follow_store(member.path, lambda: [member.history]),
        ):
            write_run_note(member.path, run_id)
            scratch = scratch_folder(member.path)
            if group is None or not group.uses(scratch):  # of a launch that was killed
                sync.remove_scratch(scratch)
            if is_finished(job):  # metrics that MLflow lacks are sent all the same
                Console().print(f"{member.name} is trained already.")
            else:
                _fetch_initial_weights(settings)
                with connection.connect(settings.address, settings.workers, settings.gpus):
                    workers = cluster_size.worker_count(settings.workers, settings.gpus, job.optim.batch_size)
                    with contextlib.nullcontext(group) if group is not None else WorkerGroup() as used:
                        supervise(job, workers, settings.gpus, sync.object_stores(settings), used)
        runs.log_artifacts(run_id, member.settings_file)
        _log_last_epoch(run_id, job.optim, read_history(member.history))
    Console().print(metrics_table(f"{member.name}: training", member.history))
    if stopped := describe_early_stop(job.optim, read_history(member.history)):
        Console(soft_wrap=True, highlight=False).print(f"{member.name}: {stopped}", markup=False)
    return member.path


class MemberTrainings:
    """Trainings of several members in the same workers, one after the other, while this context is open.

    A member that fails does not keep the others from being trained: its error is raised at the end of the context.
    """

    def __init__(self) -> None:
        self._group = WorkerGroup()
        self._trained: list[str] = []
        self._errors: dict[str, UserError] = {}

    def __enter__(self) -> Self:
        """Return these trainings."""
        self._group.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers, and raise UserError if a member failed."""
        self._group.__exit__(kind, error, trace)
        if error is None and self._errors:
            raise self._summarise()

    def train(self, name: str, settings: TrainSettings) -> Path | None:
        """Train one member; return its folder, or None if it failed.

        Args:
            name: name of the member for the user, such as "seed 0".
            settings: settings of the member's training.

        Raises:
            NoRoomError: a disk is full; it would be full for the other members, too.
            TakenOverError: another launch of the run has started.
        """
        try:
            folder = train(settings, self._group)
        except (NoRoomError, TakenOverError):
            raise
        except UserError as error:
            self._errors[name] = error
            Console(stderr=True, soft_wrap=True).print(f"{name} failed: {error}", markup=False)
            return None
        self._trained.append(name)
        return folder

    def _summarise(self) -> UserError:
        """Return one error for all members that failed."""
        sentences = {str(error): None for error in self._errors.values()}
        if not self._trained and len(sentences) == 1:
            return next(iter(self._errors.values()))
        failed = " ".join(f"{name} failed: {error}" for name, error in self._errors.items())
        trained = ", ".join(self._trained) or "No member"
        return UserError(
            f"{failed} Trained and kept: {trained}. Fix the cause and run the same command again: it trains the others."
        )


def _write_settings(settings: TrainSettings, member: MemberFolder) -> dict[str, Any]:
    """Write the settings into the member's folder, without passwords, and return them."""
    paths = {"run_dir": str(settings.run_dir), "shards": str(settings.shards)}
    stored = without_secrets(to_dict(settings)) | paths
    write_json(member.settings_file, {"settings": stored} | _describe_initial_weights(settings))
    return stored | _describe_initial_weights(settings)


def _describe_initial_weights(settings: TrainSettings) -> dict[str, Any]:
    """Return commit and hashes of initial weights from Hugging Face's hub, as the run noted them; else nothing."""
    if not is_hub_address(settings.model.init):
        return {}
    found = find_pinned(settings.model.init, settings.run_dir)
    return {"initial_weights": {"address": found.pinned, "sha256": found.sha256}} if found else {}


def _fetch_initial_weights(settings: TrainSettings) -> None:
    """Download initial weights from Hugging Face's hub before any worker needs them, and print their licence."""
    if is_hub_address(settings.model.init):
        found = fetch_pinned(settings.model.init, settings.run_dir)
        Console(soft_wrap=True, highlight=False).print(describe_licence(found.address), markup=False)


def _log_last_epoch(run_id: str, optim: OptimConfig, history: Sequence[EpochRow]) -> None:
    """Log the epoch that a training with early stopping ended at."""
    if optim.early_stopping_epochs and history:
        runs.log_metrics(run_id, {"last_epoch": float(min(len(history), find_last_epoch(optim, history)))})


def _tags(settings: TrainSettings, member: MemberFolder, index: ShardIndex) -> dict[str, str]:
    """Return the tags of the MLflow run; a run with the same tags is resumed."""
    tags = {
        "stage": "train",
        "seed": str(settings.seed),
        "data_hash": index.data_hash,
        "run_dir": str(settings.run_dir),
        "folder_id": runs.folder_id(member.path),
    }
    return tags | ({runs.PARENT_RUN_TAG: settings.parent_run} if settings.parent_run else {})


def _download(settings: TrainSettings, member: MemberFolder) -> None:
    """Download what this process reads; the workers download what they read themselves."""
    notes = (".folder-id", NOTE, placement_group_file(Path()).name)
    names = (member.history.name, member.settings_file.name, *notes)
    sync.download_inputs(settings, files=member_files(settings.seed, names))
    history = read_history(member.history)
    if len(history) >= find_last_epoch(settings.optim, history):  # the training may be finished
        epochs = member_files(settings.seed, [f"{member.epochs.name}/*"])
        sync.download_inputs(settings, settings.data.train_splits, epochs)
        downloads.download_checkpoint(member.checkpoints)


def job_of(settings: TrainSettings) -> Job:
    """Return the settings that `ast_core` trains with."""
    return Job(
        folder=RunFolder.of(settings).member(settings.seed).path,
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
