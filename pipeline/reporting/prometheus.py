"""The metrics that a run exports to Prometheus through Ray's metrics agents.

Ray adds the prefix `ray_` to each name. docs/guides/monitoring.md explains the metrics.
"""

from __future__ import annotations

import logging
from functools import cache

from ray.util.metrics import Counter, Gauge, Histogram

from ast_core.config import Job
from ast_core.training.callback import StepResult, TrainerCallback
from pipeline.ray_runtime.preemption import PreemptionWatch

LOG = logging.getLogger("ast_core")
MEMBER = ("run", "member")
RANK = (*MEMBER, "rank")
SECONDS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]


def member_labels(job: Job) -> dict[str, str]:
    """Return the labels of a member: the run's folder and the member's name."""
    return {"run": str(job.folder.parents[1]), "member": job.folder.name}


class PrometheusCallback(TrainerCallback):
    """Exporter of a rank's progress that also asks `watch` whether to stop.

    Args:
        labels: labels of each metric: run, member and rank.
        watch: the watch for preemption of rank 0; None on other ranks.
    """

    def __init__(self, labels: dict[str, str], watch: PreemptionWatch | None) -> None:
        self._watch = watch
        self._step = Gauge("ast_step", "Optimiser steps done", RANK)
        self._epoch = Gauge("ast_epoch", "Epoch, from 1", RANK)
        self._loss = Gauge("ast_loss", "Loss of the last step, the mean over all ranks", RANK)
        self._rate = Gauge("ast_learning_rate", "Learning rate of the last step", RANK)
        self._clips = Counter("ast_clips_trained", "Clips that this rank trained on", RANK)
        self._seconds = Histogram("ast_step_seconds", "Seconds from one step to the next", SECONDS, RANK)
        self._waiting = Counter("ast_data_wait_seconds", "Seconds that steps waited for their batch", RANK)
        self._checkpoint = Histogram("ast_checkpoint_seconds", "Seconds to write a checkpoint", SECONDS, RANK)
        for metric in vars(self).values():
            if isinstance(metric, Gauge | Counter | Histogram):
                metric.set_default_tags(labels)

    def on_train_begin(self, step: int) -> None:
        """Export the step at which the training starts or continues."""
        self._step.set(step)

    def on_step_end(self, done: StepResult) -> None:
        """Export and log the finished step."""
        self._step.set(done.step)
        self._epoch.set(done.epoch)
        self._loss.set(done.loss)
        self._rate.set(done.learning_rate)
        self._clips.inc(done.clips)
        self._seconds.observe(done.seconds)
        if done.waiting_s > 0:  # Ray's counters refuse 0
            self._waiting.inc(done.waiting_s)
        LOG.debug(
            "Step %d, loss %.6g, %.3f s, of which %.3f s waiting for data",
            done.step,
            done.loss,
            done.seconds,
            done.waiting_s,
        )

    def on_checkpoint_saved(self, step: int, seconds: float) -> None:  # noqa: ARG002
        """Export the duration of the checkpoint that was written."""
        self._checkpoint.observe(seconds)

    def should_stop(self) -> bool:
        """Return True if rank 0 was asked to stop."""
        return self._watch is not None and self._watch.should_stop()

    def on_stopped(self, step: int) -> None:
        """Tell the watch that the checkpoint is on disk and the training has stopped."""
        if self._watch is not None:
            self._watch.on_stopped(step)


def count_restart(job: Job, cause: str) -> None:
    """Count a restart of a member's workers; `cause` is `lost` or `preempted`."""
    _restarts().inc(1, member_labels(job) | {"cause": cause})


def count_prepared(run: str, clips: int, rejected: int, missing: int) -> None:
    """Count prepared clips by outcome: kept, rejected, or missing because the file does not exist."""
    for outcome, count in (("kept", clips - rejected - missing), ("rejected", rejected), ("missing", missing)):
        if count:  # Ray's counters refuse 0
            _prepared().inc(count, {"run": run, "outcome": outcome})


@cache
def _restarts() -> Counter:
    return Counter("ast_restarts", "Restarts of a member's workers", (*MEMBER, "cause"))


@cache
def _prepared() -> Counter:
    return Counter("ast_clips_prepared", "Clips prepared", ("run", "outcome"))
