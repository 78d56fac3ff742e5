"""Every figure and check that needs a GPU, within eight minutes: speed, memory, and equality with the CPU.

make bench-gpu PYTHON=python3
python benchmarks/gpu.py --out gpu.json

It needs torch, torchaudio and pyarrow; timm, transformers, Ray, MLflow and soundfile may be missing. Each part has a
share of the time, and the time that it does not use goes to the parts after it. Parts that did not fit are listed.
Without a GPU it runs small sizes on the CPU, which only shows that all parts run.
"""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project need not be installed

from peers import gpu_parts
from peers.comparison import arguments, print_machine, verdict
from peers.gpu_parts import Figure, Sizes

BUDGET_S = 480
PEERS = ("transformers sdpa", "published")
VARIANTS = ("ours", "ours compile", *PEERS, "ours patchout", "ours compile patchout")


class OutOfTimeError(BaseException):
    """The part's time is over. Not an `Exception`: code of torch that handles all of those must not handle it."""


@dataclass(frozen=True)
class Part:
    """One part of the benchmark."""

    name: str
    share: float
    """Weight of its share of the time."""
    measure: Callable[[], Iterator[Figure]]


@dataclass
class Outcome:
    """Everything that the program writes."""

    device: str
    torch: str
    figures: list[Figure] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    did_not_fit: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Parts whose peer is not installed."""
    failed: dict[str, str] = field(default_factory=dict)

    def is_good(self) -> bool:
        """Return whether no part failed and every goal of a figure is reached."""
        return not self.failed and all(figure.reached for figure in self.figures)


def list_parts(sizes: Sizes) -> list[Part]:
    """Return the parts in their order: the most important first."""
    parts = [
        Part("equal to the CPU", 25, functools.partial(gpu_parts.compare_with_cpu, sizes)),
        Part("peak", 5, functools.partial(gpu_parts.measure_peak, sizes)),
        Part("front end", 10, functools.partial(gpu_parts.measure_front_end, sizes)),
        Part("prediction", 30, functools.partial(gpu_parts.measure_prediction, sizes)),
    ]
    for variant in VARIANTS:
        for backbone, stride in ((sizes.base, 10), (sizes.tiny, 10), (sizes.base, 16), (sizes.tiny, 16)):
            share = 28 if "compile" in variant else 14
            measure = functools.partial(gpu_parts.measure_training, sizes, backbone, stride, variant)
            parts.append(Part(f"{variant}, {backbone}, stride {stride}", share, measure))
    return parts


@contextlib.contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in the body when the time is over."""

    def stop(*_: object) -> None:
        raise OutOfTimeError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run_parts(parts: list[Part], budget_s: float, outcome: Outcome) -> None:
    """Run the parts, each within its share of the time that is left."""
    ends = time.monotonic() + budget_s
    for number, part in enumerate(parts):
        started = time.monotonic()
        own_s = (ends - started) * part.share / sum(other.share for other in parts[number:])
        try:
            with limit(max(own_s, 1e-3)):
                for figure in part.measure():
                    outcome.figures.append(figure)
                    print_figure(figure)
        except OutOfTimeError:
            outcome.did_not_fit.append(f"{part.name} ({own_s:.0f} s)")
        except ImportError as error:
            outcome.missing.append(f"{part.name} ({error})")
        except Exception as error:  # noqa: BLE001, the other parts go on
            traceback.print_exc()
            outcome.failed[part.name] = f"{type(error).__name__}: {error}"
        outcome.seconds[part.name] = time.monotonic() - started
        gpu_parts.free_memory()


def print_figure(figure: Figure) -> None:
    """Print one row of the table."""
    goal = f"goal {figure.goal}: {verdict(figure.reached)}" if figure.goal else ""
    print(f"{figure.name:<80} {figure.value:>10.4g} {figure.unit:<13} {goal}".rstrip(), flush=True)


def print_ratios(figures: list[Figure]) -> None:
    """Print how many times as fast as each peer our variants train."""
    speed = {figure.name.removeprefix("training, "): figure.value for figure in figures if figure.unit == "clips/s"}
    for name, value in speed.items():
        variant, _, rest = name.partition(", ")
        peers = {peer: speed[f"{peer}, {rest}"] for peer in PEERS if f"{peer}, {rest}" in speed}
        if variant.startswith("ours") and peers:
            ratios = ", ".join(f"{value / theirs:.2f} x {peer}" for peer, theirs in peers.items())
            print(f"ratio {ratios}: speed of {name}")


def main() -> None:
    """Run all parts, print the table, and write JSON; exit with 1 if a part failed or a check found a difference."""
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, help="JSON file for all figures")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds for all parts together")
    args = parser.parse_args()
    cuda = torch.cuda.is_available() and not args.quick
    sizes = gpu_parts.LARGE if cuda else gpu_parts.SMALL
    if not cuda:
        torch.set_num_threads(1)
        torch.compiler.set_stance("force_eager")  # C++ compilers take minutes, and say nothing about a GPU
    outcome = Outcome(torch.cuda.get_device_name() if cuda else "cpu", torch.__version__)
    run_parts(list_parts(sizes), args.budget_s, outcome)
    print_ratios(outcome.figures)
    for what, names in (("did not fit the time", outcome.did_not_fit), ("not installed", outcome.missing)):
        for name in names:
            print(f"{what}: {name}")
    for name, error in outcome.failed.items():
        print(f"failed: {name}: {error}")
    print_machine(sizes.device.type)
    if args.out:
        args.out.write_text(json.dumps(asdict(outcome), indent=1), encoding="utf-8")
    sys.exit(0 if outcome.is_good() else 1)


if __name__ == "__main__":
    main()
