"""Interleaved timing of several ways to do one thing, and the lines that report it: medians, ratio, goal, machine."""

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
"""Seconds of each way, one number for each round."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds, to check that it runs")
    return parser


def one_core() -> None:
    """Limit torch, OpenMP and BLAS to one thread, as in Ray's workers."""
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):  # part of scikit-learn
        from threadpoolctl import threadpool_limits  # noqa: PLC0415

        threadpool_limits(1)


def cpu_seconds() -> float:
    """Return the CPU time of this process with its threads, and of its child processes that are alive."""
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    nanoseconds = [int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) for pid in pids]
    return time.process_time() + 1e-9 * sum(nanoseconds)


def interleave(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
    warm: bool = False,
) -> Seconds:
    """Time each way once in every round, so that a slow moment of the machine affects all of them.

    Args:
        ways: functions by name; every other round runs them from the last to the first.
        rounds: number of timed rounds.
        clock: clock in seconds; by default the CPU time of this process and its threads.
        warm: whether all ways have run already; otherwise each runs once before, untimed.
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
    """Print one line of medians in milliseconds.

    Args:
        seconds: result of `interleave`.
        what: description of the timed work.
        per: items that one call handled; the medians are for one item.
    """
    rounds = min(len(values) for values in seconds.values())
    medians = ", ".join(f"{name} {1000 * statistics.median(values) / per:.3g} ms" for name, values in seconds.items())
    print(f"{medians}: {what}; medians of {rounds} interleaved rounds")


def print_ratio(seconds: Seconds, peer: str, ours: str = "ours", goal: float | None = None) -> float:
    """Print and return how many times as fast as a peer we are: the median over the rounds, with quartiles and goal."""
    ratios = sorted(theirs / own for theirs, own in zip(seconds[peer], seconds[ours], strict=True))
    low, middle, high = (ratios[len(ratios) * quarter // 4] for quarter in (1, 2, 3))
    aim = "" if goal is None else f"; goal {goal:g}x: {verdict(middle >= goal)}"
    print(f"ratio {middle:.3g}: speed of {ours} against {peer} (quartiles {low:.3g} to {high:.3g}){aim}")
    return middle


def verdict(reached: bool) -> str:
    """Return the last words of a goal's line."""
    return "reached" if reached else "not reached"


def print_machine(device: str = "cpu") -> None:
    """Print the machine, the versions and the load."""
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
