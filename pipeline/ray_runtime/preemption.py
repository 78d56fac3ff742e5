"""Stop a training in order: when its driver must end, or a node is drained, no step is lost.

Rank 0 alone commits the checkpoint, since every rank holds the same weights; the ranks exchange nothing for it. Rank 0
and the driver use one key a member in the key-value store of Ray's head: no cache of a file system delays that.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import ray.util
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup

from pipeline.cli import sigterm
from pipeline.ray_runtime.internals import draining_nodes, kv_delete, kv_get, kv_put

RUNNING, ASKED, LEFT = b"running", b"asked to stop", b"stopped at step "
WAIT_S = 14.0
"""Seconds that rank 0 has to answer: enough for a step, a batch of the test and a checkpoint."""
LOOK_EVERY_S = 0.5


class PreemptionWatch:
    """Rank 0's watch for a reason to stop, in this context: the driver asks it to, or Ray drains one of its nodes.

    Args:
        folder: folder of the member.
        group: placement group of the training.
    """

    def __init__(self, folder: Path, group: PlacementGroup) -> None:
        self._folder = folder
        self._nodes = set(ray.util.placement_group_table(group)["bundles_to_node_id"].values())
        self._stop = threading.Event()
        self._over = threading.Event()

    def __enter__(self) -> Self:
        """Start to watch."""
        _write(self._folder, RUNNING)
        threading.Thread(target=self._watch, name="preemption-watch", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop watching."""
        self._over.set()

    def should_stop(self) -> bool:
        """Return whether there is a reason to stop; costs nothing."""
        return self._stop.is_set()

    def on_stopped(self, step: int) -> None:
        """Report to the driver that everything up to `step` is on disk."""
        _write(self._folder, LEFT + str(step).encode())

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S) and not self._stop.is_set():
            with contextlib.suppress(RayError):  # the head is away
                if _read(self._folder) == ASKED or self._nodes & draining_nodes():
                    self._stop.set()


def forget_training(folder: Path) -> None:
    """Forget the state of a member's earlier trainings."""
    kv_delete(_key(folder))


def ask_trainings_to_stop(folders: Iterable[Path]) -> list[str]:
    """Ask the trainings of these members to stop, and wait for them, if SIGTERM ends the driver.

    Returns:
        A sentence for each training that stopped. A training that has done no step yet, or does not answer within
        `WAIT_S`, has none: it keeps its newest checkpoint.
    """
    if not sigterm.sigterm_received():
        return []
    deadline = time.monotonic() + WAIT_S
    try:
        waiting = [folder for folder in folders if _read(folder) == RUNNING]
        for folder in waiting:
            _write(folder, ASKED)
        left = []
        while waiting and time.monotonic() < deadline:
            answers = {folder: _read(folder) for folder in waiting}
            left += [f"{folder.name} {word.decode()}" for folder, word in answers.items() if word.startswith(LEFT)]
            waiting = [folder for folder, word in answers.items() if word == ASKED]
            time.sleep(0.05)
    except RayError:
        return []  # the head is gone, and with it the trainings
    return left


def _key(folder: Path) -> bytes:
    return f"training:{folder}".encode()


def _read(folder: Path) -> bytes:
    return kv_get(_key(folder))


def _write(folder: Path, state: bytes) -> None:
    kv_put(_key(folder), state)
