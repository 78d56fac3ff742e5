"""Release the CPUs and GPUs that worker groups held and that Ray does not release by itself."""

from __future__ import annotations

from pathlib import Path

import ray
import ray.util

from ast_core.storage.atomic_files import remove_file
from pipeline.ray_runtime.internals import placement_group_of


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
