"""Open the folder of a run for one stage: attach its object store, download what the stage reads, lock it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pipeline.run_folder import sync
from pipeline.run_folder.folder_lock import lock_folder
from pipeline.run_folder.layout import RunFolder

if TYPE_CHECKING:
    from pipeline.cli.stages import Common

Stage = Literal["prepare", "combine", "evaluate", "calibrate", "probe", "register", "run"]


@contextlib.contextmanager
def opened(
    settings: Common, reads: Sequence[str] = (), splits: Sequence[str] = (), exclusive: Stage | None = None
) -> Iterator[RunFolder]:
    """Yield the folder of a run, ready for a stage.

    Args:
        settings: of the stage.
        reads: patterns of the files that the stage reads (`pipeline.run_folder.layout`); a bundle or a checkpoint is
            downloaded complete. Without an object store nothing is downloaded.
        splits: splits whose shards the stage reads; the index of the shards is always downloaded.
        exclusive: the stage, if only one process at a time may run it on this folder.

    Raises:
        UserError: the object store cannot be reached, or another process holds the folder.
        DamagedError: a file in the object store is not the one that was committed.
    """
    run = RunFolder.of(settings)
    sync.download_inputs(settings, splits, reads)
    if exclusive is None:
        yield run
        return
    locked = {"prepare": run.shards, "run": run.path}.get(exclusive, run.bundles)
    with lock_folder(locked, exclusive):
        yield run
