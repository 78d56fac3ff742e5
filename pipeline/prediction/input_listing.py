"""The inputs of `predict` and `embed` as a stream of recordings: files, folders, patterns, URIs and containers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
from pyarrow import fs

from ast_core.dataset.clips import Clip
from ast_core.dataset.problems import UnlistedCounts
from ast_core.errors import UserError, require
from ast_core.evaluation.prediction_table import to_text
from ast_core.storage.file_systems import forget_file_systems, is_uri, locate_file
from ast_core.storage.name_set import NameSet
from pipeline.prediction.containers import holds_recordings, is_container, list_members
from pipeline.prediction.recording_walk import has_wildcard, is_recording, split_pattern, walk_files, walk_objects

OPTION = "INPUTS"
"""Name of the inputs in errors."""


class InputListing:
    """All recordings that the inputs name, each once, in their order.

    The name of a recording is its path or URI; in a container it is that of the container, `/`, and the recording's
    name in it.

    Args:
        inputs: paths, patterns and URIs.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        self.inputs = tuple(inputs)
        self._seen, self._texts = NameSet(), NameSet()
        self.notes: list[str] = []
        """Sentences about files in folders that are no recordings; complete once the stream ends."""

    def __iter__(self) -> Iterator[Clip]:
        """Yield a clip for each recording: its name, its absolute path or URI, and its place in a container.

        Raises:
            UserError: an input does not exist, or cannot be listed.
        """
        forget_file_systems()
        for own in self.inputs:
            for clip in self._list(own):
                if self._seen.add(clip.clip_id):
                    text = to_text(clip.clip_id)
                    if text != clip.clip_id:
                        self._texts.add(text)
                    yield clip

    def holds(self, name: str) -> bool:
        """Return whether a name, as tables hold it, is one of the recordings that were yielded."""
        return name in self._seen or name in self._texts

    def _list(self, own: str) -> Iterator[Clip]:
        if is_uri(own):
            yield from self._list_uri(own)
        elif os.path.isdir(own):
            counts = UnlistedCounts(own)
            yield from self._choose(walk_files(own.rstrip("/") or "/", counts), own, counts)
        elif os.path.lexists(own):
            yield from _open_file(own)
        else:
            require(has_wildcard(own), f"{own} does not exist; give a file or a folder.")
            base, pattern, depth = split_pattern(own)
            counts = UnlistedCounts(base)
            files = walk_files(base, counts, depth) if os.path.isdir(base or ".") else iter(())
            yield from self._match(files, base, pattern.fullmatch, own, counts)

    def _list_uri(self, uri: str) -> Iterator[Clip]:
        if has_wildcard(uri):
            base, pattern, depth = split_pattern(uri)
            counts = UnlistedCounts(base)
            yield from self._match(walk_objects(base, OPTION, depth), base, pattern.fullmatch, uri, counts)
            return
        filesystem, path = locate_file(uri, OPTION)
        try:
            kind = filesystem.get_file_info(path.rstrip("/")).type
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{uri} cannot be read: {error}. Check the URI, the store and its keys.") from error
        require(kind != fs.FileType.NotFound, f"{uri} does not exist; give a file or a folder.")
        if kind == fs.FileType.Directory:
            yield from self._choose(walk_objects(uri, OPTION), uri, UnlistedCounts(uri))
        else:
            yield from _open_file(uri)

    def _match(
        self, files: Iterator[str], base: str, matches: Callable[[str], object], pattern: str, counts: UnlistedCounts
    ) -> Iterator[Clip]:
        """Yield the recordings among the files that match a pattern."""
        skipped = len(base.rstrip("/")) + 1 if base else 0
        found = 0
        for clip in self._choose((path for path in files if matches(path[skipped:])), pattern, counts):
            found += 1
            yield clip
        require(found > 0, f"No audio file matches {pattern}; check the pattern and its folder.")

    def _choose(self, files: Iterator[str], folder: str, counts: UnlistedCounts) -> Iterator[Clip]:
        """Yield the recordings and the content of the containers among files; count the others."""
        for path in files:
            if is_container(path) and holds_recordings(path):
                yield from list_members(path)
            elif is_recording(path):
                yield _loose(path)
            else:
                counts.add("not audio", path)
        self.notes += [f"{folder}: {count.sentence}" for count in counts.counts()]


def _open_file(path: str) -> Iterator[Clip]:
    """Yield the recordings in a container, or the file itself."""
    if is_container(path):
        yield from list_members(path)
    else:
        yield _loose(path)


def _loose(path: str) -> Clip:
    return Clip(path, path if is_uri(path) else os.path.abspath(path), (), "")
