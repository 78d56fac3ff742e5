"""What a process and all that it started hold in memory, watched while something runs. Linux only."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
import ray

from pipeline.reporting.poller import Poller

TREE_EVERY = 4
"""Samples for one of the whole tree: the kernel walks every mapping for that."""


@dataclass
class Peak:
    """The most that was seen, in MiB."""

    driver: float = 0.0
    """Resident memory of the process itself."""
    driver_own: float = 0.0
    """Of that, what is not a file's: shards that are mapped count as resident, and the kernel takes them back."""
    worker: float = 0.0
    """Of the Ray worker that has most; the same two."""
    worker_own: float = 0.0
    tree: float = 0.0
    """Of all processes together, shared pages counted once (PSS)."""
    shared: float = 0.0
    """Of that, shared memory: Ray's object store and whatever else is in /dev/shm."""
    objects: float = 0.0
    """In Ray's object store, as Ray counts."""

    def note(self, **seen: float) -> None:
        """Keep what is more than before."""
        for name, value in seen.items():
            setattr(self, name, max(getattr(self, name), value))


class Watch:
    """Samples a process's memory in a thread; `peak` is what it saw."""

    def __init__(self, pid: int, every_s: float = 0.25) -> None:
        self.peak = Peak()
        self._process = psutil.Process(pid)
        self._count = 0
        self._poller = Poller(every_s, self._look)

    def __enter__(self) -> Self:
        """Start to sample."""
        self._look()
        self._poller.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._poller.__exit__(kind, error, trace)

    def _look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may end before the last look
            processes = [self._process, *self._process.children(recursive=True)]
            self._sample(processes)
            if self._count % TREE_EVERY == 0:
                whole = [_kibibytes(process.pid, "smaps_rollup") for process in processes]
                tree, shared = (sum(rows.get(key, 0) for rows in whole) / 1024 for key in ("Pss", "Pss_Shmem"))
                self.peak.note(tree=tree, shared=shared, objects=objects_mb())
            self._count += 1

    def _sample(self, processes: list[psutil.Process]) -> None:
        for number, process in enumerate(processes):
            rows = _kibibytes(process.pid, "status")
            whole, own = rows.get("VmRSS", 0) / 1024, rows.get("RssAnon", 0) / 1024
            if number == 0:
                self.peak.note(driver=whole, driver_own=own)
            elif _is_ray_worker(process.pid):
                self.peak.note(worker=whole, worker_own=own)


def objects_mb() -> float:
    """What Ray's object store holds, in MiB; 0 where no Ray runs."""
    if not ray.is_initialized():
        return 0.0
    name = "object_store_memory"
    return float(ray.cluster_resources().get(name, 0) - ray.available_resources().get(name, 0)) / 2**20


def resident_mb(pid: int) -> float:
    """Resident memory of a process and all that it started, in MiB; pages that they share are counted for each."""
    process = psutil.Process(pid)
    tree = [process, *process.children(recursive=True)]
    return sum(_kibibytes(each.pid, "status").get("VmRSS", 0) for each in tree) / 1024


def open_files(pid: int) -> int:
    """Open files, sockets and pipes of a process and all that it started."""
    process = psutil.Process(pid)
    return sum(each.num_fds() for each in [process, *process.children(recursive=True)])


def _is_ray_worker(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::")
    except OSError:
        return False


def _kibibytes(pid: int, table: str) -> dict[str, int]:
    """The lines of one of a process's tables that are sizes; none where the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/{table}").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    cells = [line.replace(":", " ").split() for line in lines if line.endswith(" kB")]
    return {name: int(value) for name, value, _ in cells}
