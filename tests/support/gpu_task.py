"""A program that asks a cluster for GPUs by name, and runs a task on one of them.

python tests/support/gpu_task.py ADDRESS FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")


def main(address: str, folder: Path) -> None:
    """Say what the cluster has before and after the wait, and how many GPUs the node of a task has."""
    import ray  # noqa: PLC0415  # with this checkout on the path

    from pipeline.ray_runtime import cluster_size, connection, placement_groups  # noqa: PLC0415

    with connection.connect(address, 1, "yes"):
        say("before", len(ray.nodes()), cluster_size.uses_gpu("auto"), cluster_size.may_grow("yes"))
        placement_groups.wait_for_gpus(2, folder / ".placement-group")
        say("after", len(ray.nodes()), cluster_size.room("yes"), (folder / ".placement-group").exists())
        task = ray.remote(num_gpus=1)(lambda: ray.get_runtime_context().get_node_id())
        node = ray.get(task.remote())
        gpus = {each["NodeID"]: each["Resources"].get("GPU", 0) for each in ray.nodes()}
        say("task", gpus[node])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1], Path(sys.argv[2]))
