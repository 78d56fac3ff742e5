"""Bytes, machines, hours, money and bottleneck of AudioSet's two million clips and Ensemble-M on 1, 8 and 64 GPUs.

This run measures the time to prepare a clip. The speeds of GPUs, disks and networks, and the prices, are assumptions:
they are printed with the table, and each is a flag.

python benchmarks/scaling.py [--batch 96 --gpu-share 0.3 --gpu-hour 3]
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from peers.comparison import arguments, cpu_seconds, one_core, print_machine
from peers.made_data import save_sounds
from prepare import make_part

from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.model.cost import ModelCost, model_cost
from pipeline.preparation.part_writer import write_shard_part

CLIPS, CLASSES = 1_953_082, 527
"""Balanced and unbalanced training clips of the published run."""
EPOCHS, BATCH = 5, 12
"""Epochs and batch size of the published full recipe."""
STRIDES = (10, 10, 10, 12, 14, 16)
"""Strides of the members of Ensemble-M."""
SIZES = (1, 8, 64)
"""Numbers of GPUs in the table."""
MACHINE_GPUS = 8
PARAMETER_BYTES = 4
OPERATIONS = 6
"""Operations for each multiply-accumulate in a training step: two forward, and twice that backward."""
MIXED = 0.5
"""Share of training clips that are read with a partner."""
TEST_CLIPS = 20_371
"""Clips of the official evaluation set."""
KEPT = 2
"""Checkpoints that a training keeps."""
GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """One size of cluster, with the fastest way to train the members on it."""

    gpus: int
    """GPUs of the cluster."""
    at_once: int
    """Members that train at the same time."""
    each: int
    """GPUs for each member."""
    hours: dict[str, float]
    """Hours that each part alone would take; the parts of a step overlap, the others follow each other."""
    train_h: float
    """Hours of training."""
    read_gib_s: float
    """GiB per second that are read from a machine's own disk."""

    @property
    def machines(self) -> int:
        """Machines that hold the GPUs in use."""
        return -(-self.at_once * self.each // MACHINE_GPUS)

    @property
    def wall_h(self) -> float:
        """Hours from recordings to the last member."""
        return self.hours["decode"] + self.hours["copy"] + self.train_h

    @property
    def bottleneck(self) -> str:
        """What takes longest."""
        return max(self.hours, key=lambda part: self.hours[part])

    def money(self, args: argparse.Namespace) -> float:
        """Return the price of the cores while they decode, and of the GPUs in use while they copy and train."""
        rented = self.at_once * self.each * (self.hours["copy"] + self.train_h)
        return float(self.hours["decode"] * args.cores * args.core_hour + rented * args.gpu_hour)


def plan(gpus: int, args: argparse.Namespace, clip_s: float) -> Plan:
    """Return the fastest way to share GPUs among members; among equally fast ways, the one with the fewest GPUs."""
    shares = [workers for workers in range(1, args.batch + 1) if args.batch % workers == 0]
    ways = [(at_once, each) for at_once in range(1, len(STRIDES) + 1) for each in shares if at_once * each <= gpus]
    plans = [_estimate(gpus, at_once, each, args, clip_s) for at_once, each in ways]
    return min(plans, key=lambda one: (round(one.wall_h, 3), one.at_once * one.each))


def _estimate(gpus: int, at_once: int, each: int, args: argparse.Namespace, clip_s: float) -> Plan:
    steps = EPOCHS * CLIPS / args.batch
    parts = [_step_s(_member_cost(stride), each, args) for stride in STRIDES]
    rounds = [parts[first : first + at_once] for first in range(0, len(parts), at_once)]
    longest = [max(members, key=lambda part: max(part.values())) for members in rounds]
    machines = -(-at_once * each // MACHINE_GPUS)
    hours = {name: steps * sum(part[name] for part in longest) / 3600 for name in longest[0]}
    hours["decode"] = CLIPS * clip_s / args.cores / 3600
    hours["copy"] = machines * CLIPS * _shard_bytes() / (args.storage_gib_s * GIB) / 3600
    train_h = steps * sum(max(part.values()) for part in longest) / 3600
    read = len(STRIDES) * CLIPS * EPOCHS * (1 + MIXED) * _shard_bytes() / GIB / (train_h * 3600) / machines
    return Plan(gpus, at_once, each, hours, train_h, read)


@functools.cache
def _member_cost(stride: int) -> ModelCost:
    return model_cost(ModelConfig(freq_stride=stride, time_stride=stride), FrontEndConfig(), CLASSES)


def _step_s(one: ModelCost, each: int, args: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of each part of one step.

    The parts overlap: kernels are queued, and gradients are exchanged during the backward pass.
    """
    compute = OPERATIONS * one.macs * args.batch / each / (args.gpu_tflops * 1e12 * args.gpu_share)
    link = args.link_gib_s if each <= MACHINE_GPUS else args.network_gib_s
    exchange = 2 * (each - 1) / each * one.parameters * PARAMETER_BYTES / (link * GIB)  # ring all-reduce
    read = (1 + MIXED) * args.batch * _shard_bytes() / (args.disk_gib_s * GIB)
    return {"GPUs": compute, "launches": args.launch_ms / 1000, "gradients": exchange, "read": read}


def _shard_bytes() -> int:
    front = FrontEndConfig()
    return front.target_frames * front.num_mel_bins * 2


def measure_clip_s(quick: bool) -> float:
    """Return the CPU seconds to decode, filter and write a 10 s clip of 44.1 kHz ogg, the slowest usual format."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = save_sounds(folder / "ogg", ".ogg", 44_100, 2 if quick else 24, 1)
        part, times = make_part(paths, folder / "shards"), []
        for _ in range(2 if quick else 5):
            started = cpu_seconds()
            write_shard_part(part)
            times.append((cpu_seconds() - started) / len(paths))
    return statistics.median(times)


def show(plans: list[Plan], args: argparse.Namespace, clip_s: float) -> None:
    """Print the assumptions and a Markdown table."""
    print(f"measured: {1000 * clip_s:.1f} ms of one core a clip (10 s, 44.1 kHz ogg): decode, filter, write")
    print(
        f"assumed: {args.gpu_tflops:g} TFLOP/s a GPU, {args.gpu_share:.0%} of it used, no step under "
        f"{args.launch_ms:g} ms; {args.cores} cores decode; GiB/s: {args.storage_gib_s:g} of the object store to all "
        f"machines together, {args.disk_gib_s:g} of a machine's disk, {args.link_gib_s:g} between a machine's GPUs, "
        f"{args.network_gib_s:g} between machines; {args.gpu_hour:g} a GPU hour, {args.core_hour:g} a core hour"
    )
    print(
        f"shards: {CLIPS:,} clips, {CLIPS * _shard_bytes() / GIB:,.0f} GiB, copied to each machine once; "
        f"Ensemble-M: {len(STRIDES)} members of {EPOCHS} epochs, batch {args.batch}\n"
    )
    parts = ["decode", "copy", "GPUs", "launches", "gradients", "read"]
    heads = ["GPUs", "machines", "members x GPUs", *(f"{part} h" for part in parts), "in all h", "disk GiB/s", "money"]
    print(f"| {' | '.join([*heads, 'bottleneck'])} |")
    print(f"|{'---|' * (len(heads) + 1)}")
    for one in plans:
        cells = [str(one.gpus), str(one.machines), f"{one.at_once} x {one.each}"]
        cells += [f"{one.hours[part]:.2f}" for part in parts] + [f"{one.wall_h:.1f}", f"{one.read_gib_s:.2f}"]
        print(f"| {' | '.join([*cells, f'{one.money(args):,.0f}', one.bottleneck])} |")
    print(f"\nratio {plans[0].wall_h / plans[-1].wall_h:.3g}: time on {SIZES[0]} GPU against {SIZES[-1]}")


def show_bytes() -> None:
    """Print the sizes on disk as a Markdown table."""
    weights = model_cost(ModelConfig(), FrontEndConfig(), CLASSES).parameters * PARAMETER_BYTES
    rows = {
        "shards": CLIPS * _shard_bytes(),
        "a member's checkpoints: weights, Adam's two moments": KEPT * 3 * weights,
        "a member's epochs": EPOCHS * weights,
        "a member's bundle": weights,
        "its stored probabilities of the test clips": TEST_CLIPS * CLASSES * PARAMETER_BYTES,
    }
    print("\n| what | GiB |\n|---|---|")
    for name, size in rows.items():
        print(f"| {name} | {size / GIB:.2f} |")


def main() -> None:
    """Print the plans of three sizes of cluster."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=BATCH, help="clips a step over a member's GPUs")
    parser.add_argument("--gpu-tflops", type=float, default=790, help="bf16 matrix products of one GPU (an H200's)")
    parser.add_argument("--gpu-share", type=float, default=0.4, help="share of it that a training step uses")
    parser.add_argument("--launch-ms", type=float, default=15, help="least time of a step, however few its clips")
    parser.add_argument("--cores", type=int, default=256, help="cores that decode")
    parser.add_argument(
        "--storage-gib-s", type=float, default=2, help="speed of the object store, to all machines together"
    )
    parser.add_argument("--disk-gib-s", type=float, default=3, help="speed of a machine's own disk, at random")
    parser.add_argument("--link-gib-s", type=float, default=200, help="speed between a machine's GPUs")
    parser.add_argument("--network-gib-s", type=float, default=10, help="speed between machines, for one GPU")
    parser.add_argument("--gpu-hour", type=float, default=3, help="price, in your money")
    parser.add_argument("--core-hour", type=float, default=0.04, help="price, in your money")
    args = parser.parse_args()
    one_core()
    clip_s = measure_clip_s(args.quick)
    show([plan(gpus, args, clip_s) for gpus in SIZES], args, clip_s)
    show_bytes()
    print_machine()


if __name__ == "__main__":
    main()
