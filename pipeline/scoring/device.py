"""The device on which a process computes."""

from __future__ import annotations

import os
from typing import Literal

import torch

from ast_core.errors import require
from pipeline.cli.gpu_choice import Gpus


def choose_device(gpus: Gpus) -> Literal["cuda", "cpu"]:
    """Return the device of this process for a value of `--gpus`.

    Raises:
        UserError: `gpus` is "yes", and torch finds no GPU here.
    """
    if gpus == "no":
        return "cpu"
    found = torch.cuda.is_available()
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
    require(
        found or gpus != "yes",
        f"--gpus yes, but torch {torch.__version__} (built for {build}) finds no GPU on {os.uname().nodename}. Check "
        "the node's driver (nvidia-smi) and its image, or give --gpus no.",
    )
    return "cuda" if found else "cpu"
