"""Time, activation memory and optimizer of a training step, against the published model's and transformers' steps.

On a GPU it also prints TFLOP/s.

python benchmarks/train_step.py
python benchmarks/train_step.py --recipe demo --rounds 100
python benchmarks/train_step.py --device cuda --precision bf16 --compile --batch 96 --peer-batch 24

Our step is that of the trainer: clips read from shards, augmentation, forward, backward, fused Adam. The step of a peer
is forward, backward and Adam on one batch that stays in memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers.comparison import (
    Seconds,
    arguments,
    interleave,
    one_core,
    print_machine,
    print_medians,
    print_ratio,
    verdict,
)
from peers.made_data import CLASSES, write_shards
from peers.training import (
    OurStep,
    PeerStep,
    clock_of,
    finishing,
    job_on,
    print_profile,
    published_step,
    saved_mib,
    transformers_step,
)

from ast_core.config import AugmentConfig, FrontEndConfig, Job, ModelConfig
from ast_core.model.cost import model_cost
from ast_core.serialization import from_dict

GOALS = {"cpu": {"published": 1.7}, "cuda": {"published": 3.0, "transformers sdpa": 1.5}}
ACTIVATIONS_GOAL = 0.5
PEAK_SHARE_GOAL = 0.55
CPU_ROUNDS, GPU_ROUNDS = 3, 20


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = arguments(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--backbone", default="deit_base_distilled_patch16_384")
    parser.add_argument("--recipe", help="a recipe's model, front end, augmentation and batch; ours alone")
    parser.add_argument("--stride", type=int, default=10)
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1, help="clips of our step")
    parser.add_argument("--peer-batch", type=int, help="clips of the peers' steps, if their memory needs fewer")
    parser.add_argument("--patchout", type=int, nargs=2, default=(0, 0), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--compile", action="store_true", help="our blocks through torch.compile")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--peak-tflops", type=float, default=790, help="of the GPU's matrix products; an H200 in bf16")
    parser.add_argument("--no-peers", action="store_true", help="ours alone")
    parser.add_argument("--profile", action="store_true", help="print the costliest operators of one of our steps")
    args = parser.parse_args()
    if args.quick:
        args.backbone, args.frames, args.rounds = "ast_micro", 128, 2
    if args.recipe:
        sections = read_recipe(args.recipe)
        args.no_peers, args.batch, args.backbone = True, sections["optim"]["batch_size"], sections["model"]["backbone"]
    args.peer_batch = args.peer_batch or args.batch
    args.rounds = args.rounds or (CPU_ROUNDS if args.device == "cpu" else GPU_ROUNDS)
    return args


def read_recipe(name: str) -> dict[str, Any]:
    """Return the sections of one of the pipeline's recipes."""
    path = Path(__file__).resolve().parents[1] / "pipeline" / "recipes" / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def make_job(args: argparse.Namespace, folder: Path) -> Job:
    """Return AudioSet's recipe with the command line's sizes, after writing shards of at least four batches."""
    job = job_on(
        folder, batch=args.batch, backbone=args.backbone, stride=args.stride, frames=args.frames,
        precision=args.precision, patchout=tuple(args.patchout), compiled=args.compile,
    )  # fmt: skip
    if args.recipe:
        sections = read_recipe(args.recipe)
        job = dataclasses.replace(
            job,
            front_end=from_dict(FrontEndConfig, sections.get("front_end", {})),
            model=from_dict(ModelConfig, sections["model"] | {"init": "scratch"}),
            augment=from_dict(AugmentConfig, sections.get("augment", {})),
        )
    write_shards(job.shards, {"train": max(16, 4 * args.batch)}, job.front_end)
    return job


def make_peer_steps(args: argparse.Namespace, job: Job, device: torch.device) -> dict[str, PeerStep]:
    """Return the published model's step, and transformers' with either attention if transformers is installed."""
    theirs = dataclasses.replace(job, optim=dataclasses.replace(job.optim, batch_size=args.peer_batch))
    steps = {"published": published_step(theirs, device)}
    try:
        for attention in ("eager", "sdpa"):
            steps[f"transformers {attention}"] = transformers_step(theirs, device, attention)
    except ImportError:
        print("transformers is not installed: its steps are not timed")
    return steps


def time_steps(steps: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> Seconds:
    """Return the seconds of each step: CPU time, or on a GPU wall time until it has finished."""
    finished = {name: finishing(step, device) for name, step in steps.items()}
    return interleave(finished, rounds, clock_of(device), warm=True)


def compare_activations(ours: OurStep, peers: dict[str, PeerStep], device: torch.device, per: dict[str, int]) -> None:
    """Print the memory of a step for each clip; this run is also the warm-up of each step."""
    what = "peak above the state between steps" if device.type == "cuda" else "saved for the backward pass"
    own = saved_mib(ours, ours.state.model, device) / per["ours"]
    theirs = {name: saved_mib(step, step.model, device) / per[name] for name, step in peers.items()}
    print(", ".join(f"{name} {value:.0f} MiB" for name, value in [*theirs.items(), ("ours", own)]) + f" a clip: {what}")
    if theirs:
        share = own / theirs["published"]
        goal = f"goal {ACTIVATIONS_GOAL} or less: {verdict(share <= ACTIVATIONS_GOAL)}"
        print(f"activations {share:.2f} of published; {goal}")


def compare_adam(ours: OurStep, published: PeerStep, device: torch.device) -> None:
    """Time the optimizers alone, on the gradients of the last step."""
    steps: dict[str, Callable[[], object]] = {"Adam as published": published.optimizer.step}
    steps["ours"] = ours.state.optimizer.step
    seconds = time_steps(steps, 5, device)
    print_medians(seconds, "an optimizer's step")
    print_ratio(seconds, "Adam as published")


def print_throughput(ours: OurStep, seconds: list[float], peak_tflops: float) -> None:
    """Print clips and floating-point operations per second, and their share of the device's peak."""
    gmacs = model_cost(ours.job.model, ours.job.front_end, CLASSES, ours.job.augment).macs / 1e9
    clips_per_s = 1 / statistics.median(seconds)
    tflops = clips_per_s * 6 * gmacs / 1000  # forward, and twice that backward; two operations a multiply-accumulate
    share = tflops / peak_tflops
    goal = f"goal {PEAK_SHARE_GOAL:.0%}: {verdict(share >= PEAK_SHARE_GOAL)}"
    print(f"{clips_per_s:.3g} clips/s, {6 * gmacs:.3g} GFLOP each: {tflops:.3g} TFLOP/s, ", end="")
    print(f"{share:.1%} of {peak_tflops:g}; {goal}" if peak_tflops and ours.state.device.type == "cuda" else "fp32")


def main() -> None:
    """Compare memory, then time, then the optimizers."""
    args = parse()
    if args.device == "cpu":
        one_core()
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as name:
        job = make_job(args, Path(name))
        ours = OurStep(job, device)
        peers = {} if args.no_peers else make_peer_steps(args, job, device)
        per = dict.fromkeys(peers, args.peer_batch) | {"ours": args.batch}
        compare_activations(ours, peers, device, per)
        seconds = time_steps({**peers, "ours": ours}, args.rounds, device)
        seconds = {name: [value / per[name] for value in values] for name, values in seconds.items()}
        print_medians(
            seconds,
            f"a clip's training step, {args.recipe or args.backbone}, stride {job.model.time_stride}, {args.precision}",
        )
        for peer in peers:
            print_ratio(seconds, peer, goal=GOALS[device.type].get(peer))
        print_throughput(ours, seconds["ours"], args.peak_tflops)
        if peers:
            compare_adam(ours, peers["published"], device)
        if args.profile:
            with print_profile(device):
                ours()
    print_machine(args.device)


if __name__ == "__main__":
    main()
