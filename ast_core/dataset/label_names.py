"""Read the names and the order of all classes from a CSV file such as AudioSet's class_labels_indices.csv."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.loose.csv_rows import csv_rows
from ast_core.dataset.problems import Problems, require_printable, shorten
from ast_core.dataset.source_files import open_source_file
from ast_core.errors import UserError, require
from ast_core.storage.file_systems import is_uri

LABEL_LIST = "class_labels_indices.csv"


@dataclass(frozen=True)
class LabelNames:
    """The classes of a list, in its order."""

    path: str
    """Path or URI of the list."""
    names: tuple[str, ...]
    """Display names."""
    places: dict[str, int] = field(default_factory=dict)
    """Place in `names` by display name, by machine id, and by the number in the column `index`."""

    def find(self, label: str) -> int | None:
        """Return the place of a label, which may be a name, a machine id or an index; None for an unknown one."""
        return self.places.get(label)


def read_label_names(path: str, problems: Problems) -> LabelNames:
    """Read a list of classes; its columns are `mid`, `display_name` and optionally `index`.

    Args:
        path: local path, or URI of an object.
        problems: where bad rows are added.

    Raises:
        UserError: the file does not exist or cannot be read.
    """
    if is_uri(path):
        return _read_remote(path, problems)
    require(Path(path).is_file(), f"The list of classes {path} does not exist; give a file with --data.label-names.")
    names: list[str] = []
    by_name, by_mid, by_index = dict[str, int](), dict[str, int](), dict[str, int]()
    for number, row in csv_rows(Path(path), ("mid", "display_name"), problems):
        mid, name = row["mid"].strip(), row["display_name"].strip()
        try:
            if not (mid and name):
                raise ValueError("the mid or the display_name is empty")
            require_printable("label", name)
            if mid in by_mid or name in by_name:
                raise ValueError(f"the label {shorten(mid)}, {shorten(name)} is listed twice")
        except ValueError as error:
            problems.add(path, number, str(error))
            continue
        place = len(names)
        by_mid[mid] = by_name[name] = place
        by_index[row.get("index", "").strip() or str(place)] = place
        names.append(name)
    return LabelNames(path, tuple(names), by_index | by_mid | by_name)


def _read_remote(path: str, problems: Problems) -> LabelNames:
    """Read a list from an object store."""
    try:
        with open_source_file(path) as file:
            content = file.read()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"The list of classes {path} cannot be read: {error}. Check that it exists.") from error
    own = Problems()
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, LABEL_LIST)
        local.write_bytes(content)
        found = read_label_names(str(local), own)
    for text in own.texts:
        problems.add(path, None, text.partition(f"{LABEL_LIST}, ")[2] or text)
    return replace(found, path=path)


def fix_labels(manifest: Manifest, label_names: LabelNames, problems: Problems) -> Manifest:
    """Return a manifest whose labels are all classes of a list, in its order.

    A label of the manifest may be a display name or a machine id of the list. Labels that the list does not have are
    added to `problems`.
    """
    if manifest.labels == label_names.names:
        return manifest
    new: dict[int, int] = {}
    for number, label in enumerate(manifest.labels):
        place = label_names.find(label)
        if place is None:
            problems.add(label_names.path, None, f"the label {shorten(label)} of the data is not in this list")
        else:
            new[number] = place
    shared: dict[tuple[int, ...], tuple[int, ...]] = {}
    clips = tuple(_renumber(clip, new, shared) for clip in manifest.clips)
    return replace(manifest, clips=clips, labels=label_names.names)


def _renumber(clip: Clip, new: dict[int, int], shared: dict[tuple[int, ...], tuple[int, ...]]) -> Clip:
    labels = shared.get(clip.labels)
    if labels is None:
        labels = shared[clip.labels] = sort_labels(clip.labels, new)
    return Clip(clip.clip_id, clip.path, labels, clip.split, clip.start_s, clip.end_s, clip.group, clip.member)


def sort_labels(labels: Sequence[int], new: dict[int, int]) -> tuple[int, ...]:
    """Return renumbered labels in ascending order; those without a new number are left out."""
    return tuple(sorted({new[label] for label in labels if label in new}))
