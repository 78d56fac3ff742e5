"""Settings of `listen`; the attributes' docstrings are the texts of `--help`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from pipeline.cli.gpu_choice import Gpus

MICROPHONE, PIPE = "microphone", "-"
"""Sources that are no files."""


@dataclass(frozen=True)
class ListenSettings:
    """Settings of `listen`."""

    source: Annotated[str, tyro.conf.Positional] = MICROPHONE
    """Sound to listen to: `microphone`, `-` for a pipe of WAV or of raw PCM, or a recording."""
    model: str = "models:/ast-demo@champion"
    """Model to use: a registry URI, a bundle folder such as work/demo/bundles/ensemble, or a model of Hugging Face's
    hub, hf:ORG/NAME."""
    hop_s: Annotated[float | None, tyro.conf.arg(help_behavior_hint="(default: 1, or a window if that is shorter)")] = (
        None
    )
    """Seconds between two results. Each is of a window as long as a training clip, which ends with the newest sound."""
    top_k: int = 5
    """Number of classes to show."""
    json_lines: bool = False
    """Switch for programs: one line of JSON for each window, in place of the table."""
    real_time: bool = False
    """Switch that takes a recording or a pipe no faster than its sound lasts."""
    sample_rate_hz: int = 16000
    """Sampling rate of raw PCM in a pipe, which has 16-bit samples in little-endian order. WAV says its own."""
    channels: int = 1
    """Channels of raw PCM in a pipe, which are mixed to one."""
    device: str = ""
    """Microphone to use: a part of its name, or its number, as `python -m sounddevice` lists them. By default that of
    the system."""
    gpus: Gpus = "auto"
    """Use of GPUs, of this machine: `auto` if torch finds any, `yes` or an error, `no` for CPUs."""
    tracking: Annotated[
        str, tyro.conf.arg(help_behavior_hint="(default: MLFLOW_TRACKING_URI, else sqlite in work/mlflow.db)")
    ] = field(default="", repr=False)
    """MLflow tracking URI of the registry."""
