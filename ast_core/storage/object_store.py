"""Keep a folder as the working copy of a place in an object store. Only `atomic_files` commits to both.

The store is authoritative: a file is uploaded before it appears in the folder, so any node can restore the folder from
the store. Every file system of pyarrow works: `s3://bucket/prefix`, `gs://bucket/prefix`, `file:///folder`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from ast_core.errors import UserError
from ast_core.storage.disk_space import require_free_space, write_error
from ast_core.storage.file_systems import open_filesystem

NOTE = ".store.json"
"""File in the root of a working copy that holds the store's URI."""
PIECE = 8 << 20
"""Number of bytes that are copied at a time."""
SHOWS_PARTIAL_FILES = {"local", "hdfs"}
"""File systems that show a file while it is written; object stores show only complete files."""


@dataclass(frozen=True)
class StoredFile:
    """The store's listing of one file."""

    size: int
    """Number of bytes."""
    time_s: int
    """Time of the upload by the store's clock. Listings and single queries agree only on whole seconds."""


@dataclass(frozen=True)
class ObjectStore:
    """A working copy: a folder and the place in a store that it is a copy of."""

    root: Path
    """Absolute path of the folder."""
    uri: str
    """Place in the store."""

    @property
    def filesystem(self) -> fs.FileSystem:
        """File system of pyarrow, which retries failed requests a few times.

        Raises:
            UserError: pyarrow does not know the kind of URI, or the URI holds keys.
        """
        return open_filesystem(self.uri, "--storage")[0]

    def key(self, path: Path) -> str:
        """Return the file system's name for a path of the working copy."""
        return "/".join([open_filesystem(self.uri, "--storage")[1], *path.relative_to(self.root).parts])

    def uri_of(self, path: Path) -> str:
        """Return the URI of a path of the working copy, for the user."""
        place, mark, query = self.uri.partition("?")
        return "/".join([place, *path.relative_to(self.root).parts]) + mark + query

    def attach(self) -> None:
        """Make the folder a working copy, unless it is one.

        Raises:
            UserError: it is a working copy of another place, or holds files that may not be in the store.
        """
        open_filesystem(self.uri, "--storage")  # check the URI
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
                f"{self.root} is not a working copy of {self.uri} and holds {', '.join(own[:3])}. Choose an empty "
                "folder; to keep its files, first copy them to the store (for example with aws s3 sync)."
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
        """Upload a file's bytes as `path` of the working copy. The store never shows a part of it.

        Returns:
            The store's listing of the uploaded file.

        Raises:
            UserError: the store does not accept it.
        """
        key, filesystem = self.key(path), self.filesystem
        with self._explain_errors(path, "written"):
            if filesystem.type_name in SHOWS_PARTIAL_FILES:
                self._write_and_move(source, key)
            else:
                _write(source, key, filesystem)
            stored = _read_listing(filesystem.get_file_info(key))
            if stored.size != source.stat().st_size:
                raise OSError(f"only {stored.size} of {source.stat().st_size} bytes arrived")
        return stored

    def _write_and_move(self, source: Path, key: str) -> None:
        """Write a temporary file and move it, in file systems that show a file while it is written."""
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
        """Download the bytes of `path` to an existing file. UserError if the store does not return them."""
        with self._explain_errors(path, "read"):
            fs.copy_files(self.key(path), str(to), self.filesystem, fs.LocalFileSystem())

    def read(self, path: Path) -> bytes | None:
        """Return a small file's bytes; None if it does not exist. UserError if the store does not answer."""
        with self._explain_errors(path, "read"):
            try:
                with self.filesystem.open_input_file(self.key(path)) as file:
                    return bytes(file.read())
            except FileNotFoundError:
                return None

    def remove(self, path: Path) -> None:
        """Remove a file from the store, if it exists."""
        with self._explain_errors(path, "removed"), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.key(path))

    def remove_folder(self, path: Path) -> None:
        """Remove a folder from the store, if it exists."""
        with self._explain_errors(path, "removed"), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.key(path))

    def list_files(self, folder: Path) -> dict[Path, StoredFile]:
        """List all files under a folder in the store, by their paths in the working copy."""
        base = self.key(folder)
        with self._explain_errors(folder, "listed"):
            found = self.filesystem.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
        files = (info for info in found if info.type == fs.FileType.File)
        return {folder / info.path[len(base) + 1 :]: _read_listing(info) for info in files}

    @contextlib.contextmanager
    def _explain_errors(self, path: Path, what: str) -> Iterator[None]:
        """Turn a store's error into a UserError that names the object."""
        try:
            yield
        except FileNotFoundError as error:
            raise UserError(
                f"{self.uri_of(path)} could not be {what}: it does not exist. Run the stage that makes it."
            ) from error
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{self.uri_of(path)} could not be {what}: {str(error).rstrip('.')}. Check that the store can be "
                "reached and its keys (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY on every node), "
                "then run the same command again; files that were committed stay."
            ) from error


def store_of(path: Path) -> ObjectStore | None:
    """Return the store of the working copy that holds an absolute path; None for an ordinary folder."""
    for folder in (path, *path.parents):
        note = folder / NOTE
        if note.is_file():
            return ObjectStore(folder, json.loads(note.read_text(encoding="utf-8"))["uri"])
    return None


def _write(source: Path, key: str, filesystem: fs.FileSystem) -> None:
    """Copy a file to the store. pyarrow's `copy_files` ignores errors at closing, which is when S3 reports them."""
    with source.open("rb") as read, filesystem.open_output_stream(key) as write:
        shutil.copyfileobj(read, write, PIECE)


def _read_listing(info: fs.FileInfo) -> StoredFile:
    return StoredFile(info.size or 0, (info.mtime_ns or 0) // 10**9)
