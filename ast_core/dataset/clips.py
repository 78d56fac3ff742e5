"""The clips that a data set lists."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clip:
    """One listed recording.

    Attributes:
        clip_id: unique in its manifest.
        path: absolute path of its file, "" when the clip is listed but has no file.
        labels: indices into `Manifest.labels`, ascending.
        split: name of its split, fit for a folder name.
    """

    clip_id: str
    path: str
    labels: tuple[int, ...]
    split: str


@dataclass(frozen=True)
class Manifest:
    """All clips of a data set, its label names in index order, whether every clip has one label, and its layout."""

    clips: tuple[Clip, ...]
    labels: tuple[str, ...]
    single_label: bool
    layout: str
