"""Group the members of WebDataset archives into samples, check them, and collect them as clips."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ast_core.dataset.archives.tar_archive import FILE, FOLDER, LINK, NO_END, SPARSE, SPECIAL
from ast_core.dataset.archives.tar_listing import LABEL_SUFFIXES, LONGEST_LABELS, ListedMember, split_name
from ast_core.dataset.audio_suffixes import has_audio_suffix
from ast_core.dataset.clips import Clip
from ast_core.dataset.loose.file_tree import LONGEST_PATH
from ast_core.dataset.parquet.parquet_labels import RowLabels
from ast_core.dataset.problems import Problems, UnlistedCounts, make_printable, require_printable, shorten
from ast_core.dataset.source_files import SourceFile
from ast_core.dataset.stratified_split import read_group

LABEL_KEYS = ("labels", "label")
"""Keys of the labels in JSON, unless the user names one; the first one that is there counts."""
_HUMAN_LABELS = "human_labels"
"""Key of the display names in JSON whose labels are machine ids."""
_MOST_SHOWN = 10
"""Largest number of keys that an error names."""
_TOGETHER = "the members of a sample must follow each other; write the archive again with tar --sort=name"

_ADVICE = {
    LINK: "write the archive again with tar --dereference --hard-dereference",
    SPARSE: "write the archive again without the option --sparse of tar",
    SPECIAL: "write the archive again with regular files",
}


class _Sample:
    """The members of one key, as far as they were read."""

    __slots__ = ("audio", "first_byte", "labels", "size")

    def __init__(self) -> None:
        self.audio = ""
        self.first_byte = self.size = 0
        self.labels: dict[str, bytes] = {}

    def __bool__(self) -> bool:
        """Return whether it has a recording and labels."""
        return bool(self.audio and self.labels)


class SampleReader:
    """Reader of the samples of all archives.

    Args:
        labels: labels of all samples.
        label_column: key of the labels in JSON that the user names; "" finds it.
        group: key of the group in JSON, if it has one; "" for none.
        bare_ids: whether a sample's id is its key without folders, instead of `ARCHIVE/KEY`.
        problems: where bad members are added.
        counts: where members that are no recordings are counted.
    """

    def __init__(
        self,
        labels: RowLabels,
        label_column: str,
        group: str,
        bare_ids: bool,
        problems: Problems,
        counts: UnlistedCounts,
    ) -> None:
        self._labels = labels
        self._label_column = label_column
        self._group = group
        self._bare_ids = bare_ids
        self._problems = problems
        self._counts = counts
        self.clips = TarClips()
        self.without_end: list[str] = []
        """Archives without the blocks that end one."""

    def read_archive(self, number: int, file: SourceFile, split: str, members: Iterable[ListedMember]) -> None:
        """Add the samples of an archive.

        Args:
            number: its number among the archives.
            file: the archive.
            split: split of its samples.
            members: its members; iterating may raise `ValueError`.
        """
        archive = _ArchiveSamples(self, number, file, split)
        try:
            for member in members:
                archive.add(member)
        except ValueError as error:
            self._problems.add(file.path, None, str(error))
        else:
            archive.finish()

    def report(self, file: SourceFile, member: str, reason: str) -> None:
        """Add a problem of a member."""
        self._problems.add(f"{file.path}, member {make_printable(member)}", None, reason)

    def count(self, reason: str, file: SourceFile, member: str) -> None:
        """Count a member that is no recording."""
        self._counts.add(reason, f"{file.name}/{member}", 1, "archive member")

    def add_clip(self, number: int, file: SourceFile, split: str, key: str, sample: _Sample) -> None:
        """Add the clip of a sample, or what is wrong with it."""
        where = sample.audio
        try:
            clip_id = key.rpartition("/")[2] if self._bare_ids else f"{file.name.rpartition('.')[0]}/{key}"
            require_printable("name", clip_id)
            if len(clip_id) > LONGEST_PATH:
                raise ValueError(f"the name is longer than {LONGEST_PATH} characters")
            if not sample.size:
                raise ValueError("the recording has no bytes")
            where = f"{key}.{next(suffix for suffix in LABEL_SUFFIXES if suffix in sample.labels)}"
            labels, group = self._read_labels(sample.labels)
            self.clips.add(number, clip_id, labels, split, group, sample.first_byte, sample.size)
        except ValueError as error:
            self.report(file, where, str(error))

    def _read_labels(self, contents: dict[str, bytes]) -> tuple[tuple[int, ...], str]:
        """Return the labels and the group of a sample: of its JSON, else of its .cls or .txt."""
        group = ""
        missing = f"--data.label-column {self._label_column} names a key of JSON, but the recording has no .json"
        if "json" in contents:
            cells = _parse_json(contents["json"])
            group = read_group(cells.get(self._group)) if self._group else ""
            wanted = (self._label_column,) if self._label_column else LABEL_KEYS
            found = next((key for key in wanted if key in cells), None)
            if found is not None:
                cell = _to_cell(cells[found])
                named = isinstance(cell, list) and all(isinstance(one, str) for one in cell)
                return self._labels.read(cell, None, cells.get(_HUMAN_LABELS) if named else None), group
            shown = ", ".join(shorten(key) for key in list(cells)[:_MOST_SHOWN]) or "none"
            missing = (
                f"the JSON has no key {' or '.join(wanted)}; its keys are {shown}: name the key of the labels with "
                "--data.label-column"
            )
        text = next((contents[suffix] for suffix in LABEL_SUFFIXES[1:] if suffix in contents), None)
        if text is None or self._label_column:
            raise ValueError(missing)
        return self._labels.read(_parse_text(text), None), group


class _ArchiveSamples:
    """Samples of one archive. Those with a recording and labels become clips as soon as another key begins."""

    def __init__(self, reader: SampleReader, number: int, file: SourceFile, split: str) -> None:
        self._reader = reader
        self._number = number
        self._file = file
        self._split = split
        self._key = ""
        self._samples: dict[str, _Sample | None] = {}
        """Samples by key; None for those that are clips, or that have a problem."""

    def add(self, member: ListedMember) -> None:
        """Add a member."""
        name, kind = member.name, member.kind
        if kind == FOLDER:
            return
        if kind == NO_END:
            self._reader.without_end.append(self._file.name)
            return
        key, suffix = split_name(name)
        audio = bool(key) and has_audio_suffix(name)
        if not (audio or (key and suffix in LABEL_SUFFIXES)):
            reason = "not audio and not labels" if key else "hidden or without a suffix"
            self._reader.count(reason if kind == FILE else f"not read: a {kind}", self._file, name)
        elif kind != FILE:
            self._reader.report(self._file, name, f"this is a {kind}, not the bytes: {_ADVICE[kind]}")
        else:
            self._add_to_sample(key, suffix, audio, member)

    def _add_to_sample(self, key: str, suffix: str, audio: bool, member: ListedMember) -> None:
        if key != self._key:
            self._close(self._key)
            self._key = key
        if key not in self._samples:
            self._samples[key] = _Sample()
        sample = self._samples[key]
        fault = ""
        if sample is None:
            fault = f"the key {shorten(key)} was there before: each key names one sample, and {_TOGETHER}"
        elif audio and sample.audio:
            fault = (
                f"a second recording with the key {shorten(key)}, after {shorten(sample.audio)}: the key is the name "
                "up to the first dot; give each recording a key of its own"
            )
        elif audio:
            sample.audio, sample.first_byte, sample.size = member.name, member.first_byte, member.size
        elif suffix in sample.labels:
            fault = f"the member {shorten(member.name)} is there twice"
        elif member.content is None:
            fault = f"the labels have {member.size} bytes; at most {LONGEST_LABELS} are read"
        else:
            sample.labels[suffix] = member.content
        if fault:
            self._reader.report(self._file, member.name, fault)
            self._samples[key] = None

    def _close(self, key: str) -> None:
        """Make a clip of a sample if it is complete; else its other members may follow."""
        sample = self._samples.get(key)
        if sample:
            self._samples[key] = None
            self._reader.add_clip(self._number, self._file, self._split, key, sample)

    def finish(self) -> None:
        """Make clips of the last samples, and report those without labels."""
        self._close(self._key)
        for key, sample in self._samples.items():
            if sample:
                self._reader.add_clip(self._number, self._file, self._split, key, sample)
            elif sample is not None and sample.audio:
                suffixes = ", ".join(f".{suffix}" for suffix in LABEL_SUFFIXES)
                self._reader.report(
                    self._file,
                    sample.audio,
                    f"the recording has no labels: the archive has no member with the key {shorten(key)} and one of "
                    f"the suffixes {suffixes}",
                )
            elif sample is not None:
                self._reader.count("labels without a recording", self._file, f"{key}.{next(iter(sample.labels))}")


class TarClips:
    """All clips so far, in arrays: two million clips with their parts as Python objects would take twice the memory."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._labels: list[tuple[int, ...]] = []
        self._splits: list[str] = []
        self._groups: dict[int, str] = {}
        self._files, self._first_bytes, self._sizes = array("l"), array("q"), array("q")
        self._known: set[str] = set()
        self._ascending = True

    def add(
        self, file: int, clip_id: str, labels: tuple[int, ...], split: str, group: str, first_byte: int, size: int
    ) -> None:
        """Add a clip; ValueError if its id was there before."""
        if clip_id in self._known:
            raise ValueError(f"the clip {shorten(clip_id)} is listed twice")
        self._known.add(clip_id)
        if self._files and self._files[-1] == file and self._first_bytes[-1] > first_byte:
            self._ascending = False
        if group:
            self._groups[len(self._ids)] = group
        self._ids.append(clip_id)
        self._labels.append(labels)
        self._splits.append(split)
        self._files.append(file)
        self._first_bytes.append(first_byte)
        self._sizes.append(size)

    def clips(self, files: Sequence[SourceFile], final: dict[tuple[int, ...], tuple[int, ...]]) -> Iterator[Clip]:
        """Yield the clips in the order of their archives and of their recordings in them. No clip can be added then.

        Args:
            files: all archives.
            final: final labels by the labels of the clips.
        """
        self._known.clear()
        order: Iterable[int] = range(len(self._ids))
        if not self._ascending:
            order = sorted(order, key=lambda number: (self._files[number], self._first_bytes[number]))
        for number in order:
            yield Clip(
                self._ids[number],
                files[self._files[number]].path,
                final[self._labels[number]],
                self._splits[number],
                group=self._groups.get(number, ""),
                member=(self._first_bytes[number], self._sizes[number]),
            )


def _parse_json(content: bytes) -> dict[str, Any]:
    """Return the object of a JSON text; ValueError says what is wrong with it."""
    try:
        cells = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is not JSON ({shorten(str(error))}); write it again") from error
    if not isinstance(cells, dict):
        raise ValueError(f"the JSON is {shorten(str(cells))}; give an object with the key label or labels")
    return cells


def _to_cell(value: Any) -> Any:
    """Return the labels of JSON; whole numbers such as 3.0 become integers."""
    if isinstance(value, list):
        return [_to_cell(one) if isinstance(one, float) else one for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _parse_text(content: bytes) -> Any:
    """Return the labels of a .cls or .txt: an integer, a text, or a list of texts with one on each line."""
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"the labels are not UTF-8 (byte {error.start}); write them as UTF-8") from None
    if not lines:
        raise ValueError("the labels are empty; give a name, or JSON with an empty list for a recording without labels")
    values = [int(line) if line.isascii() and line.isdigit() and len(line) < 10 else line for line in lines]
    return values[0] if len(values) == 1 else values
