"""Let one launch at a time write to a folder: a new launch shuts out all earlier writers, even suspended ones.

A writer keeps its temporary files in `.writer-GENERATION` in the folder that it writes to, and renames them from
there. A launch that takes over first removes all such folders. The rename of a stale writer then finds no source,
wherever the writer was suspended. To remove a file, a writer first renames it into its own folder, so a stale writer
cannot remove anything either.

An object store has no such rename. There, a writer compares its generation with the store's before each upload and
removal. A writer that is suspended between the comparison and the upload is not stopped.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ast_core.errors import TakenOverError
from ast_core.storage.object_store import store_of

PREFIX = ".writer-"
NOTE = ".writer"
"""File in a folder of a store that holds the generation that may write."""


@dataclass(frozen=True)
class Fence:
    """The right of one generation to write under a folder."""

    root: Path
    generation: str

    @property
    def folder(self) -> Path:
        """Folder of its temporary files; it exists until another launch takes over."""
        return self.root / f"{PREFIX}{self.generation}"

    def check(self) -> None:
        """Raise UserError if, on this disk, another launch took over."""
        if not self.folder.is_dir():
            raise TakenOverError(f"{self.root} was taken over by another launch; this one stopped writing to it.")

    def check_store(self) -> None:
        """Raise UserError if, in the store of a working copy, another launch took over. Call it before each upload."""
        store = store_of(self.root)
        if store is not None and store.read(self.root / NOTE) != self.generation.encode():
            raise TakenOverError(
                f"{store.uri_of(self.root)} was taken over by another launch; this one stopped writing to it."
            )


_entered: dict[Path, Fence] = {}
"""The generations that this process writes as, by folder."""


def start_generation(root: Path) -> str:
    """Shut out all earlier writers under a folder.

    Returns:
        The new generation, for `enter_generation`.

    Raises:
        UserError: the store of a working copy does not answer.
    """
    fence = Fence(root, uuid.uuid4().hex[:12])
    root.mkdir(parents=True, exist_ok=True)
    store = store_of(root)
    if store is not None:
        note = root / f"{NOTE}.{fence.generation}"
        note.write_text(fence.generation, encoding="utf-8")
        store.push(root / NOTE, note)
        note.unlink()
    end_generation(root)
    fence.folder.mkdir()
    return fence.generation


def end_generation(root: Path, but: str = "") -> None:
    """Shut out all generations under a folder except `but`, and remove their temporary files."""
    for folder in root.glob(f"{PREFIX}*"):
        if folder.name == f"{PREFIX}{but}":
            continue
        removed = folder.with_name(f"{PREFIX}{uuid.uuid4().hex}-gone")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(removed)  # first, so that a running writer cannot add files
            shutil.rmtree(removed, ignore_errors=True)  # the writer may remove files meanwhile


def enter_generation(root: Path, generation: str) -> None:
    """Make this process write under a folder as a generation.

    Raises:
        UserError: another launch has already taken over.
    """
    fence = Fence(root, generation)
    if store_of(root) is not None:
        fence.check_store()  # the other launch may be on another node
        end_generation(root, generation)
        fence.folder.mkdir(parents=True, exist_ok=True)
    fence.check()
    _entered[root] = fence


@contextlib.contextmanager
def writer_folder(path: Path) -> Iterator[Path]:
    """Yield the folder for a file's temporary file: the generation's own, else the file's.

    Raises:
        UserError: another launch took over; it replaces any error inside the context.
    """
    fence = _find_fence(path)
    if fence is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path.parent
        return
    fence.check()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield fence.folder
    except Exception:
        fence.check()
        raise


def require_current_writer(path: Path) -> None:
    """Raise UserError if this process writes to `path` as a generation that is no longer the store's."""
    fence = _find_fence(path)
    if fence is not None:
        fence.check_store()


def remove_path(path: Path, ignore_errors: bool = False) -> None:
    """Remove a file or folder, if it exists, unless another launch took over.

    Args:
        path: file or folder.
        ignore_errors: whether to ignore errors while a folder is removed.

    Raises:
        UserError: another launch took over.
    """
    fence = _find_fence(path)
    if fence is None:
        _delete(path, ignore_errors)
        return
    moved = fence.folder / f"{path.name}-{uuid.uuid4().hex}"
    try:
        path.rename(moved)
        _delete(moved, ignore_errors)
    except FileNotFoundError:  # either the file or this writer's folder does not exist
        fence.check()


def _delete(path: Path, ignore_errors: bool) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink(missing_ok=True)


def _find_fence(path: Path) -> Fence | None:
    return next((fence for root, fence in _entered.items() if path.is_relative_to(root)), None)
