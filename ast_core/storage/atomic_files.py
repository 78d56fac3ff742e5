"""One way to commit bytes: write beside, sync, rename, sync the folder. A folder's marker file comes last.

In a working copy of a store (`object_store`) a file is uploaded before it is renamed: what is here is there, whatever
is killed when. The order of commits is the order of uploads, so that there, too, a marker is the last.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from glob import escape
from pathlib import Path

from ast_core.errors import DamagedError, NoRoomError, UserError
from ast_core.storage import writer_fence
from ast_core.storage.disk_space import require_free_space, write_error
from ast_core.storage.object_store import ObjectStore, StoredFile, store_of


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path, size: int = 0) -> Iterator[Path]:
    """Yield a path to write to; on leaving, its bytes are synced and renamed to `path`. On an error nothing is left.

    Args:
        path: of the file.
        size: bytes that it will have, if that is known: without room for them nothing is begun.

    Raises:
        NoRoomError: the disk is full.
        UserError: the folder cannot be written, or the store that it is a copy of does not take it; or this process
            writes as a generation (`ast_core.storage.writer_fence`), and another launch took over.
    """
    with _in_place(path, size) as temporary:
        yield temporary
        store = store_of(path)
        if store is not None:
            writer_fence.require_current_writer(path)
            _set_time(temporary, store.push(path, temporary))


def download_file(store: ObjectStore, path: Path, stored: StoredFile | None = None, sha256: str = "") -> None:
    """Commit the store's bytes of a file of its working copy, here only.

    Args:
        store: to ask.
        path: of the file here.
        stored: as it was listed; by it `is_current` knows the file again.
        sha256: that its bytes must have, if that is known.

    Raises:
        UserError: as `committed`.
        DamagedError: the bytes are not those of `sha256`.
    """
    with _in_place(path, 0 if stored is None else stored.size) as temporary:
        store.fetch(path, temporary)
        if stored is not None:
            _set_time(temporary, stored)
        found = sha256_of(temporary) if sha256 else ""
        if found != sha256:
            raise DamagedError(f"{store.uri_of(path)} is damaged: sha256 {found}, not {sha256}.")


def matches_store(path: Path, stored: StoredFile) -> bool:
    """Whether a file of a working copy is the store's: as `fetch` and `committed` left it."""
    if not path.is_file():
        return False
    status = path.stat()
    return (status.st_size, int(status.st_mtime)) == (stored.size, stored.time_s)


def list_stored(folder: Path) -> dict[Path, StoredFile]:
    """What the store of a working copy holds under a folder, by local path; nothing for an ordinary folder."""
    store = store_of(folder)
    return {} if store is None else store.listed(folder)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there: first from the store that its folder is a copy of."""
    store = store_of(path)
    if store is not None:
        writer_fence.require_current_writer(path)
        store.remove(path)
    writer_fence.remove_path(path)


def remove_folder(folder: Path, marker: str) -> None:
    """Remove a folder, as `remove`: its marker first, for what is half removed must not look whole."""
    remove_file(folder / marker)
    store = store_of(folder)
    if store is not None:
        writer_fence.require_current_writer(folder)
        store.remove_folder(folder)
    writer_fence.remove_path(folder, ignore_errors=store is not None)  # a copy need not have what the store has


def _set_time(path: Path, stored: StoredFile) -> None:
    os.utime(path, (stored.time_s, stored.time_s))


@contextlib.contextmanager
def _in_place(path: Path, size: int) -> Iterator[Path]:
    """`committed`, on this disk alone."""
    require_free_space(path, size)
    with contextlib.ExitStack() as stack:
        try:
            handle, name = tempfile.mkstemp(
                dir=stack.enter_context(writer_fence.writer_folder(path)), prefix=f".{path.name}."
            )
        except OSError as error:
            raise write_error(path, error, 0, size) from error
        os.close(handle)
        yield stack.enter_context(_renamed(path, Path(name), size))


@contextlib.contextmanager
def _renamed(path: Path, temporary: Path, size: int) -> Iterator[Path]:
    """A file on the same disk, which is renamed to `path` once it is whole."""
    try:
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        written = temporary.stat().st_size if temporary.is_file() else 0
        if written:
            os.truncate(temporary, 0)  # a library may still hold it open: its bytes would not be free by its removal
        raise write_error(path, error, written, size) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: Path, name: str = "") -> None:
    """Remove what killed writers left of a folder's files, or of one; only where nobody else can be writing now.

    Ours are `.NAME.xxxxxxxx`; safetensors writes beside, too, as `.tmpxxxxxx`.
    """
    for stump in folder.glob(f".{escape(name)}*"):
        stump.unlink(missing_ok=True)


def remove_all_temporary_files(folder: Path) -> None:
    """Remove what killed writers left of every file that is there by now; other hidden files are not theirs."""
    for path in [*folder.glob("[!.]*.*")]:
        remove_temporary_files(folder, f"{path.name}.")


@contextlib.contextmanager
def remove_if_incomplete(folder: Path, marker: str) -> Iterator[None]:
    """Write a new folder: where the disk is full before its marker is there, nothing of it stays to keep it so."""
    try:
        yield
    except NoRoomError:
        if not (folder / marker).is_file():
            with contextlib.suppress(UserError, FileNotFoundError):
                remove_folder(folder, marker)
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
