"""Wait for the GPUs of a worker group; release the CPUs and GPUs of groups that Ray does not release by itself."""

from __future__ import annotations

from pathlib import Path

import ray
import ray.util

from ast_core.storage.atomic_files import atomic_write, remove_file
from pipeline.ray_runtime.cluster_size import GpuWait
from pipeline.ray_runtime.internals import placement_group_of

LOOK_EVERY_S = 1.0


def release_placement_group(held: Path) -> None:
    """Release the placement group of a training whose controller was killed; Ray's own cleaner needs a dashboard.

    Args:
        held: file in which rank 0 noted its placement group. Nothing is released if the group no longer exists, or
            is another cluster's.
    """
    if not held.is_file():
        return
    name = held.read_text(encoding="utf-8")
    state = ray.util.placement_group_table().get(name, {}).get("state", "REMOVED")
    if state != "REMOVED":
        ray.util.remove_placement_group(placement_group_of(name))
    remove_file(held)


def release_own_placement_groups() -> None:
    """Release the placement groups of this driver whose workers could not start: Ray forgets these groups.

    Such a group would keep its CPUs from its successor for ever. Inside a trial this does nothing, since the driver's
    other groups belong to trials that run at the same time.
    """
    if ray.util.get_current_placement_group() is not None:
        return
    job = ray.get_runtime_context().get_job_id()  # the driver's groups have names that end so
    for name, group in ray.util.placement_group_table().items():
        if name.endswith(job) and group["state"] != "REMOVED":
            ray.util.remove_placement_group(placement_group_of(name))


def wait_for_gpus(count: int, held: Path) -> None:
    """Wait until so many GPUs are free at the same time; an autoscaler starts nodes for them.

    Ray Train itself waits, too, but says nothing, and takes its request back every minute.

    Args:
        count: number of GPUs.
        held: file that names the placement group while this waits, so that the next start releases the group if this
            process is killed.

    Raises:
        UserError: the cluster has fewer GPUs, and no autoscaler starts more.
    """
    wait = GpuWait(count)
    group = ray.util.placement_group([{"GPU": 1}] * count)
    with atomic_write(held) as temporary:
        temporary.write_text(group.id.hex(), encoding="utf-8")
    try:
        while not group.wait(LOOK_EVERY_S):
            wait.look()
    finally:
        release_placement_group(held)
