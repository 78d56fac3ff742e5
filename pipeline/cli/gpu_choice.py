"""The values of `--gpus`, apart from the settings: workers need no command line parser."""

from __future__ import annotations

from typing import Literal

Gpus = Literal["auto", "yes", "no"]
"""`auto`: GPUs of the nodes that are alive, else CPUs. `yes`: GPUs, for which an autoscaler may start nodes. `no`: no
GPUs."""
