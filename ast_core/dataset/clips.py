"""Types of a data set's list: `Clip` and `Manifest`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clip:
    """One listed recording.

    Attributes:
        clip_id: id, unique in its manifest.
        path: absolute path of its file; "" if the file does not exist.
        labels: indices into `Manifest.labels`, ascending.
        split: name of its split, which can also be a folder's name.
        group: id of its speaker, site or source recording, all of whose clips share a split; "" for a group of its own.
    """

    clip_id: str
    path: str
    labels: tuple[int, ...]
    split: str
    group: str = ""


@dataclass(frozen=True)
class Manifest:
    """All clips and labels of a data set."""

    clips: tuple[Clip, ...]
    labels: tuple[str, ...]
    """Label names in the order of the indices in `Clip.labels`."""
    single_label: bool
    """Whether every clip has exactly one label."""
    layout: str
    """Layout that the data set was read as."""
    notes: tuple[str, ...] = ()
    """Sentences about the list that the user should read, although nothing is wrong with it."""
