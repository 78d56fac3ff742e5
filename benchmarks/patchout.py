"""Time of a training step without 4 rows and 40 columns of patches, as in PaSST-S, against one with all patches.

python benchmarks/patchout.py
python benchmarks/patchout.py --device cuda --precision bf16 --compile --batch 96
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from peers.comparison import arguments, interleave, one_core, print_machine, print_medians, print_ratio
from peers.made_data import write_shards
from peers.training import OurStep, clock_of, finishing, job_on

GOAL = 2
PATCHOUT = (4, 40)
"""Rows (of 12) and columns (of 101) that are removed, drawn anew for each clip."""
CPU_ROUNDS, GPU_ROUNDS = 3, 20


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = arguments(__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--backbone", default="deit_base_distilled_patch16_384")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    args.backbone = "ast_micro" if args.quick else args.backbone
    return args


def main() -> None:
    """Time two trainers over the same shards that differ only in patchout."""
    args = parse()
    device = torch.device(args.device)
    if args.device == "cpu":
        one_core()
    rounds = 2 if args.quick else CPU_ROUNDS if args.device == "cpu" else GPU_ROUNDS
    with tempfile.TemporaryDirectory() as name:
        steps = {}
        for what, patchout in (("all patches", (0, 0)), ("patchout", PATCHOUT)):
            job = job_on(
                Path(name), batch=args.batch, backbone=args.backbone, precision=args.precision, patchout=patchout,
                compiled=args.compile,
            )  # fmt: skip
            if not job.shards.exists():
                write_shards(job.shards, {"train": max(16, 4 * args.batch)}, job.front_end)
            steps[what] = finishing(OurStep(job, device), device)
        seconds = interleave(steps, rounds, clock_of(device))
    print_medians(seconds, f"a clip's training step, {args.backbone}, {args.precision}", per=args.batch)
    print_ratio(seconds, "all patches", "patchout", goal=GOAL)
    print_machine(args.device)


if __name__ == "__main__":
    main()
