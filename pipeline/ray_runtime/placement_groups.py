"""Release the CPUs and GPUs that worker groups held and that Ray does not release by itself."""

from __future__ import annotations

from pathlib import Path

import ray
import ray.util
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup

from ast_core.storage.atomic_files import remove_file


def release_placement_group(held: Path) -> None:
    """Give back what workers held whose controller was killed: no cleaner of Ray's, which needs a dashboard, does it.

    Args:
        held: where rank 0 noted its placement group; of a group that is gone, or of another cluster, nothing is done.
    """
    if not held.is_file():
        return
    name = held.read_text(encoding="utf-8")
    state = ray.util.placement_group_table().get(name, {}).get("state", "REMOVED")
    if state != "REMOVED":
        ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))
    remove_file(held)


def release_own_placement_groups() -> None:
    """Give back what worker groups of this driver hold that could not be formed: Ray forgets them, nobody else knows.

    Such a group would keep the CPUs from its successor for ever. Inside a trial nothing is done: others run beside it.
    """
    if ray.util.get_current_placement_group() is not None:
        return
    job = ray.get_runtime_context().get_job_id()  # the end of its groups' names
    for name, group in ray.util.placement_group_table().items():
        if name.endswith(job) and group["state"] != "REMOVED":
            ray.util.remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))
