"""A folder as the working copy of a place in an object store; `atomic_files` commits to both, nothing else does.

The store is the truth: a file is there before it is here, so that a folder on any node can be made again from it. Any
file system of pyarrow's will do: `s3://bucket/prefix`, `gs://bucket/prefix`, `file:///folder`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from ast_core.errors import UserError
from ast_core.redaction import holds_secret
from ast_core.storage.disk_space import require_free_space, write_error

NOTE = ".store.json"
"""In the root of a working copy: of what."""
PIECE = 8 << 20
"""Bytes that are read at a time."""
FOLDERS = {"local", "hdfs"}
"""File systems that show a file while it is written; an object store shows whole ones only."""


@dataclass(frozen=True)
class StoredFile:
    """A file as the store lists it."""

    size: int
    """Bytes."""
    time_s: int
    """When it was written, by the store's clock, in whole seconds: what listings and single answers agree on."""


@dataclass(frozen=True)
class ObjectStore:
    """A folder, and the place in a store that it is a working copy of."""

    root: Path
    """Absolute."""
    uri: str

    @property
    def filesystem(self) -> fs.FileSystem:
        """Pyarrow's, which tries a request again by itself a few times.

        Raises:
            UserError: the URI is none that pyarrow knows, or holds keys.
        """
        return _opened(self.uri)[0]

    def key(self, path: Path) -> str:
        """A path of the working copy as the file system names it."""
        return "/".join([_opened(self.uri)[1], *path.relative_to(self.root).parts])

    def uri_of(self, path: Path) -> str:
        """A path of the working copy as a person names it."""
        place, mark, query = self.uri.partition("?")
        return "/".join([place, *path.relative_to(self.root).parts]) + mark + query

    def attach(self) -> None:
        """Make the folder a working copy; one that is, stays.

        Raises:
            UserError: it is one of another place, or holds files that may not be in the store.
        """
        _opened(self.uri)
        self.root.mkdir(parents=True, exist_ok=True)
        note = self.root / NOTE
        if note.is_file():
            known = json.loads(note.read_text(encoding="utf-8"))["uri"]
            if known != self.uri:
                raise UserError(f"{self.root} is a working copy of {known}, not of {self.uri}. Choose another folder.")
            return
        own = sorted(path.name for path in self.root.iterdir() if not path.name.startswith("."))
        if own:
            raise UserError(
                f"{self.root} is no working copy of {self.uri} and holds {', '.join(own[:3])}. Choose an empty folder; "
                "to go on with what is there, copy it to the store first (such as with aws s3 sync)."
            )
        temporary = self.root / f"{NOTE}.{os.getpid()}"
        try:
            temporary.write_text(json.dumps({"uri": self.uri}) + "\n", encoding="utf-8")
            temporary.replace(note)
        except OSError as error:
            raise write_error(note, error, 0, 0) from error
        finally:
            temporary.unlink(missing_ok=True)

    def push(self, path: Path, source: Path) -> StoredFile:
        """Upload a file's bytes as `path` of the working copy; the store shows it whole or not at all.

        Returns:
            What the store lists then.

        Raises:
            UserError: the store did not take it.
        """
        key, filesystem = self.key(path), self.filesystem
        with self._told(path, "written"):
            if filesystem.type_name in FOLDERS:
                self._move_in(source, key)
            else:
                _write(source, key, filesystem)
            stored = _stored(filesystem.get_file_info(key))
            if stored.size != source.stat().st_size:
                raise OSError(f"{stored.size} bytes arrived of {source.stat().st_size}")
        return stored

    def _move_in(self, source: Path, key: str) -> None:
        """Write beside and move, in file systems that show a file while it is written."""
        filesystem, temporary = self.filesystem, f"{key}.{os.getpid()}"
        if filesystem.type_name == "local":
            require_free_space(Path(key), source.stat().st_size)
        try:
            filesystem.create_dir(key.rpartition("/")[0], recursive=True)
            _write(source, temporary, filesystem)
            filesystem.move(temporary, key)
        except OSError:
            with contextlib.suppress(OSError):
                filesystem.delete_file(temporary)
            raise

    def fetch(self, path: Path, to: Path) -> None:
        """Download the bytes of `path` to a file that is there. UserError if the store does not give it."""
        with self._told(path, "read"):
            fs.copy_files(self.key(path), str(to), self.filesystem, fs.LocalFileSystem())

    def read(self, path: Path) -> bytes | None:
        """A small file's bytes in the store; None if it is not there. UserError if the store does not answer."""
        with self._told(path, "read"):
            try:
                with self.filesystem.open_input_file(self.key(path)) as file:
                    return bytes(file.read())
            except FileNotFoundError:
                return None

    def remove(self, path: Path) -> None:
        """Remove a file from the store, if it is there."""
        with self._told(path, "removed"), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.key(path))

    def remove_folder(self, path: Path) -> None:
        """Remove a folder from the store, if it is there."""
        with self._told(path, "removed"), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.key(path))

    def listed(self, folder: Path) -> dict[Path, StoredFile]:
        """All files under a folder in the store, by their paths in the working copy."""
        base = self.key(folder)
        with self._told(folder, "listed"):
            found = self.filesystem.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
        files = (info for info in found if info.type == fs.FileType.File)
        return {folder / info.path[len(base) + 1 :]: _stored(info) for info in files}

    @contextlib.contextmanager
    def _told(self, path: Path, what: str) -> Iterator[None]:
        """A store's fault as one sentence that names the object."""
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(
                f"{self.uri_of(path)} could not be {what}: there is none. Run the stage that makes it."
            ) from error
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{self.uri_of(path)} could not be {what}: {str(error).rstrip('.')}. Check that the store can be "
                "reached and its keys (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY on every node), "
                "then run the same command again: what was committed stays."
            ) from error


def store_of(path: Path) -> ObjectStore | None:
    """The store of the working copy that an absolute path lies in, or is; None for an ordinary folder."""
    for folder in (path, *path.parents):
        note = folder / NOTE
        if note.is_file():
            return ObjectStore(folder, json.loads(note.read_text(encoding="utf-8"))["uri"])
    return None


def _write(source: Path, key: str, filesystem: fs.FileSystem) -> None:
    """As pyarrow's `copy_files`, which drops the error of a stream that cannot be closed: that is when S3 answers."""
    with source.open("rb") as read, filesystem.open_output_stream(key) as write:
        shutil.copyfileobj(read, write, PIECE)


def _stored(info: fs.FileInfo) -> StoredFile:
    return StoredFile(info.size or 0, (info.mtime_ns or 0) // 10**9)


@functools.cache
def _opened(uri: str) -> tuple[fs.FileSystem, str]:
    """File system and the path of the URI in it."""
    if "@" in urllib.parse.urlsplit(uri).netloc or holds_secret(uri):
        raise UserError("The URI of --storage holds keys, which runs would log. Give them as AWS_ACCESS_KEY_ID or so.")
    mark = "&" if "?" in uri else "?"
    try:
        # A small file is one request to S3 then, where pyarrow's default makes it three.
        quick = f"{uri}{mark}allow_delayed_open=true" if uri.startswith("s3://") else uri
        filesystem, base = fs.FileSystem.from_uri(quick)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(
            f"--storage {uri} cannot be used: {error}. Give s3://bucket/prefix, or file:///folder for a shared disk."
        ) from error
    if not base.strip("/"):
        raise UserError(f"--storage {uri} names no place: give s3://bucket/prefix, or file:///folder.")
    return filesystem, base.rstrip("/")
