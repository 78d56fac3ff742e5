"""Write a data set with corrected labels as a new manifest for `prepare`; the data set itself is not changed."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ast_core.config import DataConfig
from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.loose.label_cells import join_labels
from ast_core.dataset.manifest import load_source
from ast_core.dataset.problems import make_printable
from ast_core.dataset.source_options import options_of
from ast_core.dataset.stratified_split import TENTHS_OF_CLASSES
from ast_core.errors import UserError, require
from ast_core.evaluation.prediction_table import to_text
from ast_core.storage.atomic_files import atomic_write, remove_file
from ast_core.storage.file_systems import is_uri
from pipeline.reviewing.corrections import Corrections

GROUP = "group"
"""Column of the clips' groups."""
_COLUMNS = ("path", "labels", "clip_id", "split", "start_s", "end_s")


@dataclasses.dataclass(frozen=True)
class CorrectedManifest:
    """A new manifest, with counts that balance: clips = listed - left out - missing."""

    path: Path
    listed: int
    """Clips of the data set."""
    clips: int
    """Clips of the new manifest."""
    left_out: int
    """Clips that the corrections leave out."""
    missing: int
    """Other clips that are not in it because they have no file."""
    data: DataConfig
    """Settings with which `prepare` reads it."""

    @property
    def flags(self) -> str:
        """The flags that `prepare` needs, as a shell reads them."""
        data = self.data
        flags = ["--data.source", data.source, "--data.layout", data.layout]
        for name, values in (("root", data.root), ("label-names", [data.label_names]), ("group", [data.group])):
            flags += [f"--data.{name}", *values] if any(values) else []
        return shlex.join([*flags, *(["--data.follow-links"] if data.follow_links else [])])


def write_corrected(
    path: Path, manifest: Manifest, corrections: Corrections, data: DataConfig, source: str
) -> CorrectedManifest:
    """Write the manifest, and next to it the list of classes, which keeps their order; then read both and compare.

    Args:
        path: file to write, which does not exist yet.
        manifest: the data set.
        corrections: what changes.
        data: settings that the data set was read with.
        source: folder, file or URI of the data set.

    Raises:
        UserError: the file exists or is no CSV file, the recordings are inside other files, or a name cannot be written
            as CSV.
    """
    classes = path.with_suffix(".classes.csv")
    require(path.suffix.lower() == ".csv", f"--manifest is {path}; give a name that ends in .csv.")
    for own in (path, classes):
        require(not own.exists(), f"{own} exists; give --manifest another name, because no list is overwritten.")
    inside = next((clip for clip in manifest.clips if clip.member is not None), None)
    if inside is not None:
        raise UserError(
            f"The recordings of {source} are inside files such as {inside.path}, which a manifest cannot name. Save "
            "the recordings as files of their own, or correct the labels where the data set was made."
        )
    root = _find_root(source)
    kept = [clip for clip in manifest.clips if to_text(clip.clip_id) not in corrections.left_out]
    clips = [
        dataclasses.replace(clip, labels=corrections.relabelled.get(to_text(clip.clip_id), clip.labels))
        for clip in kept
        if clip.path
    ]
    require(bool(clips), "The corrections leave no clip with a file.")
    near = not is_uri(root) and os.path.realpath(path.parent) == os.path.realpath(root)
    complete = near or any(is_uri(own) for own in data.root)  # a URI is the only root, and has all recordings
    changed = dataclasses.replace(
        data, source=str(path), layout="manifest", root=data.root if complete else (root, *data.root),
        label_names=data.label_names or str(classes), group=GROUP if data.group else "",
        label_column="", audio_column="", split_column="",
    )  # fmt: skip
    _write(path, _format_clips(clips, manifest.labels, [root, *data.root], bool(data.group)))
    if not data.label_names:
        rows = [(str(n), name, name) for n, name in enumerate(manifest.labels)]
        _write(classes, [("index", "mid", "display_name"), *rows])
    try:
        _compare(dataclasses.replace(manifest, clips=tuple(clips)), changed)
    except UserError:
        remove_file(path)
        if not data.label_names:
            remove_file(classes)
        raise
    left_out = len(manifest.clips) - len(kept)
    return CorrectedManifest(path, len(manifest.clips), len(clips), left_out, len(kept) - len(clips), changed)


def _find_root(source: str) -> str:
    """Return the folder that the paths of a data set are relative to."""
    if is_uri(source):
        place, mark, query = source.partition("?")
        folder = place.rstrip("/") if not Path(place).suffix else place.rpartition("/")[0]
        return f"{folder}{mark}{query}"
    return source if Path(source).is_dir() else str(Path(source).parent)


def _format_clips(
    clips: Sequence[Clip], labels: Sequence[str], roots: Sequence[str], grouped: bool
) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [(*_COLUMNS, GROUP) if grouped else _COLUMNS]
    prefixes = [root.partition("?")[0] if is_uri(root) else os.path.realpath(root) for root in roots]
    prefixes += [root for root in roots if not is_uri(root)]
    for clip in clips:
        times = (
            ("", "") if not clip.is_segment else (repr(clip.start_s), "" if clip.end_s is None else repr(clip.end_s))
        )
        names = join_labels([labels[label] for label in clip.labels])
        row = (_make_relative(clip.path, prefixes), names, clip.clip_id, clip.split, *times)
        rows.append((*row, clip.group) if grouped else row)
    return rows


def _make_relative(path: str, prefixes: Sequence[str]) -> str:
    """Return a path relative to the first folder that it is below, else as it is."""
    place = path.partition("?")[0] if is_uri(path) else path
    for prefix in prefixes:
        if place.startswith(prefix.rstrip("/") + "/"):
            return place[len(prefix.rstrip("/")) + 1 :]
    return path


def _write(path: Path, rows: Sequence[tuple[str, ...]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)  # quotes keep spaces at the ends
    try:
        content = text.getvalue().encode()
    except UnicodeEncodeError as error:
        bad = make_printable(text.getvalue()[max(0, error.start - 60) : error.end + 20])
        raise UserError(f"A name is not UTF-8, so it cannot be in a list: {bad}. Rename the file.") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, len(content)) as temporary:
        temporary.write_bytes(content)


def _compare(wanted: Manifest, data: DataConfig) -> None:
    """Read a new manifest as `prepare` does; UserError if it has other clips, labels, splits or files than it must."""
    found = load_source(data.source, data.layout, options_of(data), TENTHS_OF_CLASSES)
    require(
        found.labels == wanted.labels and len(found.clips) == len(wanted.clips),
        f"{data.source} was read as {len(found.clips)} clips of {len(found.labels)} classes instead of "
        f"{len(wanted.clips)} of {len(wanted.labels)}, and was removed: a name cannot be written as CSV.",
    )
    for own, clip in zip(found.clips, wanted.clips, strict=True):
        if _describe(own) != _describe(clip):
            raise UserError(
                f"The clip {make_printable(clip.clip_id)} was read back as {_describe(own)} instead of "
                f"{_describe(clip)}, so {data.source} was removed. Rename a label with a ';' or with spaces at its "
                "ends; and give --manifest a name in a folder without recordings, or in that of the data set."
            )


def _describe(clip: Clip) -> tuple[object, ...]:
    path = clip.path.partition("?")[0] if is_uri(clip.path) else os.path.realpath(clip.path)
    return clip.clip_id, path, clip.labels, clip.split, clip.start_s, clip.end_s, clip.group
