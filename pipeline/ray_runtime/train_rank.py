"""What one training worker runs.

Apart from `train`, and importing late, because Ray's controller and workers all import this module: MLflow and the
command line would cost each of them ten seconds of start.
"""

from __future__ import annotations

import os
from typing import Any

import ray.train
import ray.util


def train_rank(config: dict[str, Any]) -> None:
    """One rank's training, inside Ray Train's process group; `config["job"]` is the `Job`.

    Its node's folders become working copies of `config["stores"]`, and it writes to the member's as the generation
    `config["generation"]`. Rank 0 notes at `config["held"]` which CPUs or GPUs the group holds, for `cluster.release`,
    and watches whether the training must leave.
    """
    import torch  # noqa: PLC0415
    from ray.train.torch import get_device  # noqa: PLC0415

    from ast_core.storage import writer_fence  # noqa: PLC0415
    from ast_core.storage.atomic_files import atomic_write  # noqa: PLC0415
    from ast_core.training.trainer import fit  # noqa: PLC0415
    from pipeline.ray_runtime import preemption  # noqa: PLC0415
    from pipeline.reporting import log_lines, prometheus  # noqa: PLC0415
    from pipeline.run_folder import sync  # noqa: PLC0415

    sync.attach_stores(config["stores"])
    context = ray.train.get_context()
    group = ray.util.get_current_placement_group()
    rank, job, watch = context.get_world_rank(), config["job"], None
    writer_fence.enter_generation(job.folder, config["generation"])
    preemption.register_rank(job.folder, rank)
    labels = prometheus.member_labels(job) | {"rank": str(rank)}
    log_lines.label_log_lines(labels)
    if rank == 0 and group is not None:
        with atomic_write(config["held"]) as temporary:
            temporary.write_text(group.id.hex(), encoding="utf-8")
        watch = preemption.PreemptionWatch(job.folder, group)
    sync.download_rank_inputs(job)
    if not torch.cuda.is_available():
        # One thread a rank: two threads on one core lose more in waiting for each other than they gain.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    fit(job, rank, context.get_world_size(), get_device(), prometheus.PrometheusCallback(labels, watch))
