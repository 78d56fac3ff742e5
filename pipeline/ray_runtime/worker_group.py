"""The driver's side of a group of Ray Train workers that trains one member after the other in the same processes.

A start costs more than a small training: a controller, a process for each rank with torch in it, a process group. The
driver therefore hands each training to the group as a task in the key-value store of Ray's head, and rank 0 answers
there. `train_rank` is the workers' side.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from ray import cloudpickle
from ray.exceptions import RayError
from ray.train import LoggingConfig, RunConfig, ScalingConfig
from ray.train.constants import TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S

from pipeline.ray_runtime import internals, placement_groups
from pipeline.ray_runtime.train_internals import LeanTorchTrainer
from pipeline.ray_runtime.train_rank import END, TrainRankConfig, finished_key, serve_trainings, task_key
from pipeline.run_folder import downloads, sync

TRAIN = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # ours knows the driver's SIGTERM too
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # with Ray's 2 s, every end and every loss is noticed so much later
    TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S: "5",  # Ray's 30 s are waited for ranks that hang in a collective
}
"""Settings of Ray Train, unless the environment of the training's driver has others. Ray Train's own health check is
only to notice workers that died; `LivenessWatch` ends those that are stopped."""
LOOK_EVERY_S = 0.05
END_S = 30.0
"""Seconds that workers which train nothing have to end by themselves."""
STOP_S = 5.0
"""Seconds that Ray Train has to notice that its controller is gone."""


def configure_ray_train() -> None:
    """Set the environment variables of `TRAIN`, which Ray Train's controller and workers take from this process."""
    for name, value in TRAIN.items():
        os.environ.setdefault(name, value)
    internals.propagate_to_train_workers(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)  # Ray hands only some on by itself


class WorkerGroup:
    """A group of training workers that starts with its first training and ends with this context.

    The group also ends with a training that fails; the next training starts a new one.
    """

    def __init__(self) -> None:
        self._run: _Run | None = None

    def __enter__(self) -> Self:
        """Return this group, which has no processes yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the workers; after an error without waiting for them."""
        self._end(0.0 if error is not None else END_S)

    def close(self) -> None:
        """End the workers, so that others can have their CPUs and GPUs; the next training starts new workers."""
        self._end(END_S)

    def train(self, config: TrainRankConfig, workers: int, use_gpu: bool) -> None:
        """Train one member, in the processes of the training before if these are as many.

        Args:
            config: the training.
            workers: number of ranks.
            use_gpu: whether each rank has a GPU.

        Raises:
            TrainingFailedError: a rank raised an error or died.
        """
        if self._run is not None and (self._run.ended.done() or self._run.shape != (workers, use_gpu)):
            self.close()
        if self._run is None:
            self._run = _Run(config, workers, use_gpu)
        try:
            self._run.train(config)
        finally:
            if self._run.ended.done():
                self._end(0.0)

    def uses(self, scratch: Path) -> bool:
        """Return whether Ray Train's own files of the running group are in this folder."""
        return self._run is not None and self._run.scratch == scratch

    def _end(self, patience_s: float) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.end(patience_s)


class _Run:
    """One run of Ray Train, whose workers wait for trainings.

    Args:
        first: the first training; Ray's own files are in its member's folder.
        workers: number of ranks.
        use_gpu: whether each rank has a GPU.
    """

    def __init__(self, first: TrainRankConfig, workers: int, use_gpu: bool) -> None:
        self.shape = (workers, use_gpu)
        self.ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        """Done when Ray Train has ended, with its error if it failed."""
        self._name = uuid.uuid4().hex
        self.scratch = scratch_folder(first.job.folder)
        self._count = 0
        downloads.download_if_changed(first.placement_group_file)
        placement_groups.release_placement_group(first.placement_group_file)  # of a launch whose controller was killed
        placement_groups.release_own_placement_groups()
        if first.gpus == "yes":
            placement_groups.wait_for_gpus(workers, first.placement_group_file)
        configure_ray_train()
        self._trainer = LeanTorchTrainer(
            functools.partial(serve_trainings, self._name),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
            run_config=RunConfig(
                name=self._name,
                **sync.ray_storage_arguments(self.scratch),
                logging_config=LoggingConfig(log_level="CRITICAL"),  # type: ignore[call-arg]  # mypy sees an older class
            ),
        )
        threading.Thread(target=self._fit, name="ray-train", daemon=True).start()

    def train(self, config: TrainRankConfig) -> None:
        """Hand a training to the workers and wait until rank 0 has finished it."""
        self._count += 1
        internals.kv_put(task_key(self._name, self._count), cloudpickle.dumps(config))
        while not self._is_finished():
            concurrent.futures.wait([self.ended], LOOK_EVERY_S)
            if self.ended.done() and not self._is_finished():
                self.ended.result()
                raise RuntimeError(f"Ray Train ended before {config.job.folder.name} was trained.")

    def end(self, patience_s: float) -> None:
        """Let the workers end; after some seconds, kill them and release their CPUs and GPUs."""
        try:
            with contextlib.suppress(RayError):
                internals.kv_put(task_key(self._name, self._count + 1), END)
                concurrent.futures.wait([self.ended], patience_s)
        finally:
            self._kill()

    def _kill(self) -> None:
        """End what has not ended by itself, and remove the traces of this run."""
        if not self.ended.done():
            with contextlib.suppress(RayError):
                self._trainer.stop()
            with contextlib.suppress(RayError):
                placement_groups.release_own_placement_groups()
            concurrent.futures.wait([self.ended], STOP_S)  # a thread in Ray would abort the exit of this process
        with contextlib.suppress(RayError):
            internals.kv_delete_prefix(task_key(self._name, None))
        sync.remove_scratch(self.scratch)

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except BaseException as error:  # noqa: BLE001  # raised again in the driver's main thread
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    def _is_finished(self) -> bool:
        try:
            return internals.kv_get(finished_key(self._name, self._count)) != b""
        except RayError:  # the head is away; if it stays away, Ray Train ends
            return False


def scratch_folder(folder: Path) -> Path:
    """Return the folder for Ray Train's own files in a member's folder."""
    return folder / ".ray"
