"""Table of the published models on the hub: licence, training data, strides and published result."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ast_core.serialization import from_dict
from ast_core.weights.hub.hub_address import HubAddress

_FILE = Path(__file__).with_name("known_models.toml")


@dataclass(frozen=True)
class KnownModel:
    """A published model."""

    name: str
    """Organisation and name on the hub."""
    licence: str
    """SPDX identifier of the licence of its weights."""
    data: str
    """Data that it was trained on."""
    freq_stride: int
    """Distance between patches in mel bins."""
    time_stride: int
    """Distance between patches in frames."""
    frames: int
    """Number of frames of a clip."""
    result: str
    """Result that its authors published."""


@functools.cache
def known_models() -> dict[str, KnownModel]:
    """Return the known models by name, in the order of the documentation."""
    rows = tomllib.loads(_FILE.read_text(encoding="utf-8"))["model"]
    return {row["name"]: from_dict(KnownModel, row) for row in rows}


def describe_licence(address: HubAddress) -> str:
    """Return one sentence on what binds a user who trains from a model."""
    known = known_models().get(address.name)
    if known is None:
        return f"{address}: its licence is on {address.page}."
    return (
        f"{address}: {known.data}, {known.result}, licence {known.licence}. Keep its copyright notice with weights "
        "that you pass on."
    )
