"""One writer at a time: whoever takes a folder over shuts out the writers before it, whenever they wake.

A writer's temporary files lie in a folder of its own, `.writer-GENERATION`, in the folder that it writes to, and are
renamed from there. Who takes over removes all such folders first: a stale writer's rename then finds no source, at
whatever instant it was stopped. What it removes it renames to its own folder first, so that this fails as well.

An object store has no such rename: there, a writer's generation is looked up before each upload and removal, and a
writer that sleeps between the two is not stopped.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ast_core.errors import UserError
from ast_core.storage.object_store import store_of

PREFIX = ".writer-"
NOTE = ".writer"
"""In a folder of a store: the generation that may write."""


@dataclass(frozen=True)
class Fence:
    """A generation's right to write under a folder."""

    root: Path
    generation: str

    @property
    def folder(self) -> Path:
        """Where its temporary files lie; there as long as nobody took over."""
        return self.root / f"{PREFIX}{self.generation}"

    def check(self) -> None:
        """UserError if another launch took over, by what is on this disk."""
        if not self.folder.is_dir():
            raise UserError(f"{self.root} was taken over by another launch; this one wrote nothing more there.")

    def check_store(self) -> None:
        """The same by the store's word, if the folder is a copy of one; ask it before each upload."""
        store = store_of(self.root)
        if store is not None and store.read(self.root / NOTE) != self.generation.encode():
            raise UserError(f"{store.uri_of(self.root)} was taken over by another launch; this one ends.")


_entered: dict[Path, Fence] = {}
"""What this process writes as."""


def start_generation(root: Path) -> str:
    """Shut out all who wrote under a folder before; gives the generation that `enter` takes.

    Raises:
        UserError: the store that it is a copy of does not answer.
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
    """Let nobody who entered write under a folder any more, but this generation; what they had half written goes."""
    for folder in root.glob(f"{PREFIX}*"):
        if folder.name == f"{PREFIX}{but}":
            continue
        gone = folder.with_name(f"{PREFIX}{uuid.uuid4().hex}-gone")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(gone)  # first: a writer that is awake can then add nothing to it
            shutil.rmtree(gone, ignore_errors=True)  # it may remove its own meanwhile


def enter_generation(root: Path, generation: str) -> None:
    """Write under a folder as this generation from now on, in this process.

    Raises:
        UserError: another launch took over already.
    """
    fence = Fence(root, generation)
    if store_of(root) is not None:
        fence.check_store()  # whoever took over may have done so on another node
        end_generation(root, generation)
        fence.folder.mkdir(parents=True, exist_ok=True)
    fence.check()
    _entered[root] = fence


@contextlib.contextmanager
def writer_folder(path: Path) -> Iterator[Path]:
    """The folder for a file's temporary self: a fenced writer's own, else the file's.

    Raises:
        UserError: whatever went wrong inside, if another launch took over.
    """
    fence = _fence_of(path)
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
    """UserError if this process writes to `path` as a generation that the store no longer knows."""
    fence = _fence_of(path)
    if fence is not None:
        fence.check_store()


def remove_path(path: Path, ignore_errors: bool = False) -> None:
    """Remove a file or a folder, if it is there, unless another launch took over.

    Args:
        path: of either.
        ignore_errors: of the removal of a folder.

    Raises:
        UserError: another launch took over.
    """
    fence = _fence_of(path)
    if fence is None:
        _delete(path, ignore_errors)
        return
    moved = fence.folder / f"{path.name}-{uuid.uuid4().hex}"
    try:
        path.rename(moved)
        _delete(moved, ignore_errors)
    except FileNotFoundError:  # of the file, or of the writer's own folder
        fence.check()


def _delete(path: Path, ignore_errors: bool) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=ignore_errors)
    else:
        path.unlink(missing_ok=True)


def _fence_of(path: Path) -> Fence | None:
    return next((fence for root, fence in _entered.items() if path.is_relative_to(root)), None)
