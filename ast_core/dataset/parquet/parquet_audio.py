"""Read Parquet files that hold the recordings: Hugging Face's layout, others like it, and the AudioSet copy.

Only the columns of ids, labels and splits are read, never the recordings. A clip's member is (row group, row in it).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from ast_core.dataset.clips import Manifest, UnlistedFiles
from ast_core.dataset.label_names import LABEL_LIST, LabelNames, read_label_names
from ast_core.dataset.loose.user_table import note_unread_columns
from ast_core.dataset.parquet.parquet_clips import BatchReader, RowClips
from ast_core.dataset.parquet.parquet_columns import FoundColumns, find_audio_column, find_columns, find_recordings
from ast_core.dataset.parquet.parquet_labels import RowLabels
from ast_core.dataset.parquet.parquet_rows import NOT_UTF8, OpenedFile, open_files
from ast_core.dataset.problems import Problems, UnlistedCounts, make_printable, shorten
from ast_core.dataset.source_files import SourceFile, SourceFiles, find_source_files
from ast_core.dataset.source_options import SourceOptions
from ast_core.dataset.split_names import find_audioset_split, find_split
from ast_core.errors import UserError, require
from ast_core.storage.file_systems import is_uri, join_uri

__all__ = ["find_audio_column", "list_parquet_members", "load_audioset_copy", "load_parquet_audio"]

SUFFIXES = (".parquet",)


def load_parquet_audio(place: str, options: SourceOptions, problems: Problems) -> Manifest:
    """Read the clips of Parquet files that hold the recordings.

    Labels are texts, lists of texts, or integers with names in the metadata. A clip's split is that of the column
    `split` or of its file's or folder's name. Its id is that of the column `clip_id`, `video_id` or `id`, else the file
    name that is stored with the recording, else FILE#ROW. Labels are sorted by name, or have the metadata's order.

    Raises:
        UserError: there are no such files, or the first readable one has no recordings or labels that are recognised.
    """
    return _Loader(place, options, problems, audioset=False).load()


def load_audioset_copy(place: str, options: SourceOptions, problems: Problems) -> Manifest:
    """Read the copy of AudioSet in Parquet files: the columns `video_id`, `audio`, `labels` and `human_labels`.

    Splits are those of Google's lists, by the folders `bal_train`, `unbal_train` and `eval`. The clip id is the
    video's. Labels are machine ids; their names and order are those of `data.label_names`, else those of
    class_labels_indices.csv in the source's folder, else the names are those of `human_labels`.

    Raises:
        UserError: as `load_parquet_audio`.
    """
    return _Loader(place, options, problems, audioset=True).load()


def list_parquet_members(path: str, audio_column: str = "") -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the printable name and the member of each recording in one file, in order, also of empty cells.

    Args:
        path: local path, or URI.
        audio_column: column of the recordings; "" finds it.

    Raises:
        UserError: the file cannot be read, or has no such column.
    """
    file = SourceFile(path, path.rpartition("/")[2].partition("?")[0] if is_uri(path) else Path(path).name)
    (opened,) = open_files([file], functools.partial(find_recordings, audio_column=audio_column))
    if opened.columns is None:
        raise UserError(f"{path}: {opened.error}")
    id_column = opened.columns.clip_id or opened.columns.stored_path
    try:
        for batch in opened.batches:
            names = batch.cells.get(id_column)
            for place, member in enumerate(zip(batch.groups, batch.rows, strict=True)):
                given = names[place] if names else None
                name = "" if given is None or given is NOT_UTF8 else make_printable(str(given))
                yield name or f"{make_printable(file.name)}#{batch.first + place + 1}", member
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


class _Loader:
    """Reader of the rows of all files of a source."""

    def __init__(self, place: str, options: SourceOptions, problems: Problems, audioset: bool) -> None:
        self._place = place
        self._options = options
        self._problems = problems
        self._audioset = audioset
        self._rows = RowClips()

    def load(self) -> Manifest:
        """Return the clips of all files."""
        lists = [LABEL_LIST] if self._audioset else []
        source = find_source_files(self._place, SUFFIXES, self._options, self._problems, lists)
        found = bool(source.files) or bool(self._problems.texts)
        require(found, f"{self._place} has no Parquet files; give a file, folder, glob or URI of some.")
        self._labels = RowLabels(self._read_label_names(source), bool(self._options.label_names), self._audioset)
        find = functools.partial(
            find_columns, columns=self._options.columns, group=self._options.group, audioset=self._audioset
        )
        counts, first = UnlistedCounts(source.root), None
        splits = [self._name_split(source.root, file.name) for file in source.files]
        for number, (opened, split) in enumerate(zip(open_files(source.files, find), splits, strict=True)):
            if not opened.rows and not opened.error:
                counts.add("Parquet without rows", opened.file.name)
            if self._fits(opened, first, split, any(splits)):
                first = first or opened
                self._read_file(number, opened, split)
        return self._finish(source, (*source.unlisted, *counts.counts()), first.columns if first else None)

    def _name_split(self, root: str, name: str) -> str:
        """Return the split by a file's name. AudioSet's may also be the name of the source's own folder."""
        if self._audioset:
            return find_audioset_split(f"{root.partition('?')[0].rpartition('/')[2]}/{name}")
        return find_split(name)

    def _read_label_names(self, source: SourceFiles) -> LabelNames | None:
        path = self._options.label_names or next((f"{source.root}/{name}" for name in source.lists), "")
        if is_uri(path) and not self._options.label_names:
            path = join_uri(source.root, LABEL_LIST)
        return read_label_names(path, self._problems) if path else None

    def _fits(self, opened: OpenedFile, first: OpenedFile | None, split: str, some: bool) -> bool:
        """Return whether a file can be read as the first one is; add what is wrong with it to the problems.

        Args:
            opened: the file.
            first: first file that was read.
            split: split by the file's name.
            some: whether the name of any file says a split.
        """
        error, columns = opened.error, opened.columns
        if not error and first and first.columns and columns and columns != first.columns:
            error = (
                f"the columns differ from those of {first.file.name}: {_describe_difference(first.columns, columns)}"
            )
        elif first and first.columns and columns and bool(columns.class_names) != bool(first.columns.class_names):
            error = f"either this file or {first.file.name} has no names of the classes in its metadata"
        if not error and not split and columns is not None and not columns.split:
            if self._audioset:
                error = "no folder or file name says the split; put it below bal_train, unbal_train or eval"
            elif some:
                error = "no folder or file name says the split, as it does for other files; put it below train or test"
        if error:
            self._problems.add(opened.file.path, None, error)
        return not error

    def _read_file(self, number: int, opened: OpenedFile, split: str) -> None:
        columns = opened.columns
        if columns is None:
            return
        own_id = bool(columns.clip_id)
        try:
            for batch in opened.batches:
                reader = BatchReader(batch, columns, split, self._audioset)
                for place in range(len(batch.rows)):
                    try:
                        self._rows.add(number, reader.read(place, self._labels), batch, place, own_id)
                    except ValueError as error:
                        self._problems.add(opened.file.path, batch.first + place + 1, str(error))
        except ValueError as error:
            self._problems.add(opened.file.path, None, str(error))

    def _finish(
        self, source: SourceFiles, unlisted: tuple[UnlistedFiles, ...], columns: FoundColumns | None
    ) -> Manifest:
        names, final = self._labels.finish()
        clips = tuple(self._rows.clips(source.files, final))
        if clips and not names:
            self._problems.add(self._place, None, "no row has a label; give at least one row a label")
        layout = "audioset" if self._audioset else "parquet"
        single = bool(clips) and not self._audioset and self._labels.single
        audio = columns.audio if columns else self._options.columns.audio
        notes = _note(columns, self._labels)
        return Manifest(clips, names, single, layout, unlisted, audio, notes)


def _describe_difference(first: FoundColumns, other: FoundColumns) -> str:
    """Return how the columns of two files differ."""
    different = [
        (name, getattr(first, name), getattr(other, name))
        for name in (
            "audio",
            "content",
            "stored_path",
            "label",
            "label_kind",
            "human",
            "split",
            "clip_id",
            "group",
            "times",
        )
    ]
    return ", ".join(
        f"{name} {after or 'none'} instead of {before or 'none'}"
        for name, before, after in different
        if before != after
    )


def _note(columns: FoundColumns | None, labels: RowLabels) -> tuple[str, ...]:
    """Return what the user should know about columns and labels, although nothing is wrong with them."""
    notes = [*note_unread_columns(columns.unread)] if columns else []
    if labels.commas:
        notes.append(
            f"labels of text such as {shorten(labels.commas)} are one class each: a comma does not separate classes, "
            "';' does"
        )
    if columns and columns.label_kind == "integer" and columns.class_names is None and not labels.listed:
        notes.append(
            "classes are named by their integers, because the files' metadata has no names; give names with "
            "--data.label-names"
        )
    if labels.unnamed:
        notes.append(
            f"{len(labels.unnamed)} labels such as {labels.unnamed[0]} have no display name in human_labels; give "
            "AudioSet's class_labels_indices.csv with --data.label-names"
        )
    return tuple(notes)
