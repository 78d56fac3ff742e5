"""Feed mutated inputs to readers. It is a program, because an input may kill the process that reads it.

python tests/support/attack.py FOLDER SECONDS SEED CORPUS TARGET...

It prints one line of JSON per target: inputs, accepted inputs, and the first crashes with the files of their inputs.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from fuzz_targets import GROUPS, Group, Target
from fuzzing import corpus, inputs

from ast_core.errors import ClipError, UserError

MEMORY = 6 << 30
"""Bytes of address space that an input may use."""
MOST = 5
"""Number of crashes after which a target is not attacked any more."""


def attack(name: str, target: Target, folder: Path, seconds: float, seed: str, known: Path) -> dict[str, Any]:
    """Feed a target for some seconds. Any exception but an error for the user is a crash, and its input is kept."""
    count, accepted, crashes, last = 0, 0, [], folder / "last"
    for data in chain(corpus(known, name), inputs(target.seeds, target.mutate, f"{seed}{name}", seconds)):
        count += 1
        last.write_bytes(data)  # if a crash ends this process, this file is its input
        try:
            target.read(data)
            accepted += 1
        except (UserError, ClipError):
            pass
        except BaseException:  # noqa: BLE001, these are the crashes to find
            kept = last.rename(folder / f"{name}-{len(crashes)}")
            crashes.append(_crash(traceback.format_exc()[-1500:], kept))
        if len(crashes) == MOST:
            break
    return {"target": name, "inputs": count, "accepted": accepted, "crashes": crashes}


def _crash(error: str, path: Path) -> dict[str, str]:
    return {"error": error, "input": str(path)}


def group_in_child(group: Group, root: Path, seconds: float, seed: str, known: Path, names: list[str]) -> None:
    """Attack the targets of a group in this process, with limited memory and stderr in a file."""
    held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    folder = root / group.__name__
    folder.mkdir()
    with (folder / "stderr").open("w") as quiet:
        os.dup2(quiet.fileno(), 2)  # messages of decoders, and the help text for each recipe
        for name, target in group(folder).items():
            if not names or name in names:
                say(attack(name, target, folder, seconds, seed, known))


def say(row: dict[str, Any]) -> None:
    os.write(1, f"{json.dumps(row)}\n".encode())


def main() -> None:
    """Attack the named targets, or all of them, with one process for each group."""
    root, seconds, seed, known, *names = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for group in GROUPS:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                group_in_child(group, Path(root), float(seconds), seed, Path(known), names)
                status = 0
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        if status:
            crash = _crash(f"the process ended with the wait status {status}", Path(root) / group.__name__ / "last")
            say({"target": group.__name__, "inputs": 1, "accepted": 0, "crashes": [crash]})


if __name__ == "__main__":
    main()
