"""How many workers a stage starts, and whether they use GPUs."""

from __future__ import annotations

import ray
import ray.util
import torch


def worker_count(asked: int, batch_size: int = 0) -> int:
    """Workers of a stage: what was asked for, else one a GPU of the cluster, else one a CPU.

    Args:
        asked: 0 for as many as there is room for.
        batch_size: of a training, whose workers share it evenly: the published 12 keeps 6 of 8 GPUs busy.
    """
    if asked > 0:
        return asked
    resources = ray.cluster_resources()
    most = max(1, int(resources.get("GPU", 0) or resources.get("CPU", 1)))
    return next(workers for workers in range(most, 0, -1) if batch_size % workers == 0)


def uses_gpu() -> bool:
    """Whether the cluster has a GPU that this build of torch could use."""
    return ray.cluster_resources().get("GPU", 0) > 0 and torch.version.cuda is not None
