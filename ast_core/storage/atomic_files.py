"""Commit files: write a temporary file, sync it, rename it, sync the folder. A folder's marker file is committed last.

In a working copy of a store (`object_store`), a file is uploaded before it is renamed, so that a file on this disk is
always in the store, whenever a process is killed. Uploads have the order of the commits, so a marker is uploaded last.
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
    """Return the hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def atomic_write(path: Path, size: int = 0) -> Iterator[Path]:
    """Yield a temporary path to write to; at the end, sync its bytes and rename it to `path`, or remove it on an error.

    Args:
        path: file to commit.
        size: bytes that it will have, or 0 if unknown; without that much free space, nothing is written.

    Raises:
        NoRoomError: the disk is full.
        UserError: the folder cannot be written, the store of a working copy refuses the file, or another launch took
            over from this process's generation (`ast_core.storage.writer_fence`).
    """
    with _write_locally(path, size) as temporary:
        yield temporary
        store = store_of(path)
        if store is not None:
            writer_fence.require_current_writer(path)
            _set_time(temporary, store.push(path, temporary))


def download_file(store: ObjectStore, path: Path, stored: StoredFile | None = None, sha256: str = "") -> None:
    """Download a file of a working copy from its store and commit it on this disk only.

    Args:
        store: store to download from.
        path: path of the file in the working copy.
        stored: the store's listing of the file; `matches_store` recognises the file by it.
        sha256: hash that its bytes must have; empty if unknown.

    Raises:
        UserError: as `atomic_write`.
        DamagedError: the bytes have another hash.
    """
    with _write_locally(path, 0 if stored is None else stored.size) as temporary:
        store.fetch(path, temporary)
        if stored is not None:
            _set_time(temporary, stored)
        found = sha256_of(temporary) if sha256 else ""
        if found != sha256:
            raise DamagedError(f"{store.uri_of(path)} is damaged: sha256 {found}, not {sha256}. Make or copy it again.")


def matches_store(path: Path, stored: StoredFile) -> bool:
    """Return whether a file of a working copy is the stored one: its size and time are those of its last transfer."""
    if not path.is_file():
        return False
    status = path.stat()
    return (status.st_size, int(status.st_mtime)) == (stored.size, stored.time_s)


def list_stored(folder: Path) -> dict[Path, StoredFile]:
    """List what a working copy's store holds under a folder, by local path; nothing for an ordinary folder."""
    store = store_of(folder)
    return {} if store is None else store.list_files(folder)


def remove_file(path: Path) -> None:
    """Remove a file, if it exists: in a working copy first from the store."""
    store = store_of(path)
    if store is not None:
        writer_fence.require_current_writer(path)
        store.remove(path)
    writer_fence.remove_path(path)


def remove_folder(folder: Path, marker: str) -> None:
    """Remove a folder as `remove_file` does; its marker first, so that a half-removed folder does not look complete."""
    remove_file(folder / marker)
    store = store_of(folder)
    if store is not None:
        writer_fence.require_current_writer(folder)
        store.remove_folder(folder)
    writer_fence.remove_path(folder, ignore_errors=store is not None)  # a working copy may lack files


def _set_time(path: Path, stored: StoredFile) -> None:
    os.utime(path, (stored.time_s, stored.time_s))


@contextlib.contextmanager
def _write_locally(path: Path, size: int) -> Iterator[Path]:
    """Do what `atomic_write` does, on this disk only."""
    require_free_space(path, size)
    with contextlib.ExitStack() as stack:
        try:
            handle, name = tempfile.mkstemp(
                dir=stack.enter_context(writer_fence.writer_folder(path)), prefix=f".{path.name}."
            )
        except OSError as error:
            raise write_error(path, error, 0, size) from error
        os.close(handle)
        yield stack.enter_context(_rename_complete(path, Path(name), size))


@contextlib.contextmanager
def _rename_complete(path: Path, temporary: Path, size: int) -> Iterator[Path]:
    """Yield a temporary file, then sync it and rename it to `path`."""
    try:
        yield temporary
        temporary.chmod(0o644)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        written = temporary.stat().st_size if temporary.is_file() else 0
        if written:
            os.truncate(temporary, 0)  # a library may still have it open, and then unlinking does not free its bytes
        raise write_error(path, error, written, size) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporary_files(folder: Path, name: str = "") -> None:
    """Remove the temporary files that killed writers left in a folder, or those of one file.

    Call it only while no one else can write to the folder. `atomic_write` names temporary files `.NAME.xxxxxxxx`,
    safetensors `.tmpxxxxxx`.
    """
    for temporary in folder.glob(f".{escape(name)}*"):
        temporary.unlink(missing_ok=True)


def remove_all_temporary_files(folder: Path) -> None:
    """Remove the temporary files of every file in a folder, and no other hidden files."""
    for path in [*folder.glob("[!.]*.*")]:
        remove_temporary_files(folder, f"{path.name}.")


@contextlib.contextmanager
def remove_if_incomplete(folder: Path, marker: str) -> Iterator[None]:
    """Remove a new folder if the disk is full before its marker is written, so that its files free their space."""
    try:
        yield
    except NoRoomError:
        if not (folder / marker).is_file():
            with contextlib.suppress(UserError, FileNotFoundError):
                remove_folder(folder, marker)
        raise


def _sync(path: Path) -> None:
    """Write a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
