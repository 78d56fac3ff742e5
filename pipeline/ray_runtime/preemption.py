"""Leaving in good order: a driver that must go, or a node that is taken away, costs no step.

Rank 0 alone commits the checkpoint, since every rank holds the same weights; no rank speaks to another for it. It and
the driver meet in the key-value store of Ray's head, one key a member: no file system's cache delays that.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import ray._private.state
import ray.util
from ray.exceptions import RayError
from ray.experimental import internal_kv
from ray.util.placement_group import PlacementGroup

from pipeline.cli import sigterm

NAMESPACE = b"ast-pipeline"
RANKS = b":rank:"
RUNNING, ASKED, LEFT = b"running", b"asked to leave", b"left at step "
WAIT_S = 14.0
"""For rank 0's answer; a step, a batch of a test and a checkpoint must fit."""
LOOK_EVERY_S = 0.5


class PreemptionWatch:
    """Rank 0's: whether the driver asks it to leave, or Ray drains one of its training's nodes.

    Args:
        folder: of the member.
        group: what the training holds of the cluster.
    """

    def __init__(self, folder: Path, group: PlacementGroup) -> None:
        self._folder = folder
        self._nodes = set(ray.util.placement_group_table(group)["bundles_to_node_id"].values())
        self._leave = threading.Event()
        _write(folder, RUNNING)
        threading.Thread(target=self._look, name="preemption-watch", daemon=True).start()

    def should_stop(self) -> bool:
        """Whether somebody asked; costs nothing."""
        return self._leave.is_set()

    def on_stopped(self, step: int) -> None:
        """Tell the driver that all up to `step` is on disk."""
        _write(self._folder, LEFT + str(step).encode())

    def _look(self) -> None:
        while not self._leave.wait(LOOK_EVERY_S):
            with contextlib.suppress(RayError):  # the head is away: there is nobody to ask
                if _read(self._folder) == ASKED or self._nodes & set(_draining()):
                    self._leave.set()


def forget_ranks(folder: Path) -> None:
    """Forget what was said of a member's earlier trainings."""
    internal_kv._internal_kv_del(_key(folder), namespace=NAMESPACE)  # noqa: SLF001
    internal_kv._internal_kv_del(_key(folder) + RANKS, del_by_prefix=True, namespace=NAMESPACE)  # noqa: SLF001


def register_rank(folder: Path, rank: int) -> None:
    """Note which process a rank of a member's training is: once it is stopped or dead it cannot say so."""
    _put(_key(folder) + RANKS + str(rank).encode(), f"process {os.getpid()} on {os.uname().nodename}".encode())


def rank_processes(folder: Path) -> dict[int, str]:
    """Process and node by rank, of a member's newest training; nothing if Ray's head is away."""
    start = _key(folder) + RANKS
    try:
        keys = internal_kv._internal_kv_list(start, namespace=NAMESPACE)  # noqa: SLF001
        found = {int(key.removeprefix(start)): _get(key).decode() for key in keys}
        return {rank: process for rank, process in found.items() if process}  # one may go between the two questions
    except RayError:
        return {}


def ask_trainings_to_stop(folders: Iterable[Path]) -> list[str]:
    """If SIGTERM is why the driver ends, ask the trainings of these members to leave, and wait for it.

    Returns:
        A sentence for each that left. One that has done no step yet, or does not answer in `WAIT_S`, is not among them:
        its newest checkpoint is what it has.
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


def _draining() -> dict[str, int]:
    """Nodes that Ray drains, by id, and when they end; what Ray Train's own watcher asks, too."""
    draining: dict[str, int] = ray._private.state.state.get_draining_nodes()  # noqa: SLF001
    return draining


def _key(folder: Path) -> bytes:
    return f"training:{folder}".encode()


def _read(folder: Path) -> bytes:
    return _get(_key(folder))


def _write(folder: Path, word: bytes) -> None:
    _put(_key(folder), word)


def _get(key: bytes) -> bytes:
    return internal_kv._internal_kv_get(key, namespace=NAMESPACE) or b""  # noqa: SLF001


def _put(key: bytes, word: bytes) -> None:
    internal_kv._internal_kv_put(key, word, namespace=NAMESPACE)  # noqa: SLF001
