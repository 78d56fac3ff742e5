"""Interleaved rounds of several ways to do one thing, and what they say: medians, ratio, spread, goal, machine."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

Seconds = dict[str, list[float]]
"""Of each way, one a round."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The parser that every benchmark begins with."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds: does it run at all?")
    return parser


def one_core() -> None:
    """One thread for torch, OpenMP and BLAS, as Ray's workers have."""
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):  # part of scikit-learn
        from threadpoolctl import threadpool_limits  # noqa: PLC0415

        threadpool_limits(1)


def cpu_seconds() -> float:
    """CPU time of this process with its threads, and of the processes that it started and that live."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    nanoseconds = [int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) for pid in pids]
    return time.process_time() + 1e-9 * sum(nanoseconds)


def interleave(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
    warm: bool = False,
) -> Seconds:
    """Time each way once a round, so that what slows the machine slows all.

    Args:
        ways: by name; every other round runs them from the last to the first.
        rounds: counted ones.
        clock: in seconds; CPU time of this process and its threads unless said otherwise.
        warm: whether all have run already; else each runs once more before, uncounted.
    """
    for call in () if warm else ways.values():
        call()
    seconds: Seconds = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            started = clock()
            ways[name]()
            seconds[name].append(clock() - started)
    return seconds


def print_medians(seconds: Seconds, what: str, per: float = 1.0) -> None:
    """One line of medians in milliseconds.

    Args:
        seconds: of the ways.
        what: was timed, of what.
        per: things that a call did; the medians are of one.
    """
    rounds = min(len(values) for values in seconds.values())
    medians = ", ".join(f"{name} {1000 * statistics.median(values) / per:.3g} ms" for name, values in seconds.items())
    print(f"{medians}: {what}; medians of {rounds} interleaved rounds")


def print_ratio(seconds: Seconds, peer: str, ours: str = "ours", goal: float | None = None) -> float:
    """How many times as fast as a peer: the median over the rounds, its quartiles, and whether the goal is reached."""
    ratios = sorted(theirs / own for theirs, own in zip(seconds[peer], seconds[ours], strict=True))
    low, middle, high = (ratios[len(ratios) * quarter // 4] for quarter in (1, 2, 3))
    aim = "" if goal is None else f"; goal {goal:g}x: {verdict(middle >= goal)}"
    print(f"ratio {middle:.3g}: speed of {ours} against {peer} (quartiles {low:.3g} to {high:.3g}){aim}")
    return middle


def verdict(reached: bool) -> str:
    """How a goal's line ends."""
    return "reached" if reached else "not reached"


def print_machine(device: str = "cpu") -> None:
    """What it ran on, and what else ran there."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    accelerator = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    load = f"load average {os.getloadavg()[0]:.1f}"
    print(
        f"{accelerator}{os.cpu_count()} cores of {name}, torch threads: {torch.get_num_threads()}, {versions}, {load}"
    )
