"""The device that computes the filterbanks of `prepare`: a CPU, or GPUs where the user asks for them."""

from __future__ import annotations

from typing import Literal

from ast_core.errors import UserError
from pipeline.ray_runtime import cluster_size

Device = Literal["cpu", "cuda"]


def choose_device(asked: str, known: str) -> Device:
    """Return the device of the parts that are still to be written, on the cluster that this process is connected to.

    Args:
        asked: `prepare.device`.
        known: device of the parts that exist; "" if no part exists. `auto` goes on with it, so that a data set has the
            same bytes whenever and wherever `prepare` was stopped.

    Raises:
        UserError: GPUs are to compute, and the cluster has none and can start none.
    """
    automatic = known or ("cuda" if cluster_size.uses_gpu("auto") else "cpu")
    if (automatic if asked == "auto" else asked) == "cpu":
        return "cpu"
    try:
        cluster_size.require_gpus("yes")
    except UserError:
        why = "prepare.device is cuda" if asked == "cuda" else "prepare.device is auto and GPUs made the shards so far"
        raise UserError(
            f"{why}, but no node of the Ray cluster has a GPU, and no autoscaler could start one. Join a cluster with "
            "GPUs (--address), or give --prepare.device cpu, which makes shards that GPUs made again."
        ) from None
    return "cuda"


def count_gpus() -> int:
    """Return the GPUs that the cluster has or may start, as far as Ray reports them, and at least one."""
    return max(1, cluster_size.room("yes"))
