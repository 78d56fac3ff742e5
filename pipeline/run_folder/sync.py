"""Download to this node what a stage or a worker reads, if `--storage` names an object store; else do nothing.

The run folder of each node is a working copy of one place in an object store (`ast_core.storage.object_store`), and
`ast_core.storage.atomic_files` writes to both. A stage starts with `download_inputs`; workers, which have no settings,
start with `attach_stores` and the downloads that they need.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ast_core.config import Job
from ast_core.errors import UserError, require
from ast_core.storage.atomic_files import atomic_write
from ast_core.storage.object_store import ObjectStore, store_of
from ast_core.training.member_folder import MemberFolder
from ast_core.weights.bundle import DESCRIPTION
from pipeline.reporting.poller import Poller
from pipeline.run_folder.downloads import (
    download_checkpoint,
    download_files,
    download_if_changed,
    download_shards,
    read_hashes,
)
from pipeline.run_folder.layout import RunFolder

if TYPE_CHECKING:  # workers import this module, and the command line would slow their start
    from pipeline.cli.stages import Common


def object_stores(settings: Common) -> tuple[ObjectStore, ...]:
    """Return the object stores that a stage's folders are working copies of, for its workers to attach."""
    found = (store_of(settings.run_dir), store_of(settings.shards))
    return tuple(dict.fromkeys(store for store in found if store is not None))


def attach_stores(stores: Iterable[ObjectStore]) -> None:
    """Make the same folders working copies on a worker's node; UserError as `ObjectStore.attach`."""
    for store in stores:
        store.attach()


def download_inputs(settings: Common, splits: Sequence[str] = (), files: Sequence[str] = ()) -> None:
    """Attach a stage's folders to the object store of its settings, and download what the stage reads.

    Args:
        settings: of the stage. Without `storage`, a folder that is a working copy stays one.
        splits: splits whose shards the stage reads; the index is always downloaded.
        files: patterns of files in the run folder; `*` stands for folders too. Checkpoints and bundles are downloaded
            complete.

    Raises:
        UserError: the store cannot be reached, or the folders are working copies of another one.
        DamagedError: a file in the store is not the one that was committed.
    """
    _attach_run(settings.run_dir, settings.storage)
    if settings.storage and store_of(settings.shards) is None:
        place, mark, query = settings.storage.partition("?")
        ObjectStore(settings.shards, f"{place}/shards{mark}{query}").attach()
    download_shards(settings.shards, splits)
    if files:
        download_files(settings.run_dir, files)


def _attach_run(run_dir: Path, uri: str) -> None:
    known = store_of(run_dir)
    if not uri:
        return
    if known is None or known.root == run_dir:
        ObjectStore(run_dir, uri).attach()
    else:  # a study's trial or a fold lies in the run's folder and is given the run's URI
        fits = uri in {known.uri, known.uri_of(run_dir)}
        require(fits, f"{run_dir} lies in a working copy of {known.uri}, not of {uri}. Choose another folder.")


def download_rank_inputs(job: Job) -> None:
    """Download what a rank reads: shards, newest checkpoint, teacher's scores; errors as `download_inputs`."""
    download_shards(job.shards, [*job.data.train_splits, job.data.validation_split or job.data.test_split])
    download_checkpoint(MemberFolder(job.folder).checkpoints)
    if job.teacher_scores is not None:
        download_files(job.teacher_scores.parent, [job.teacher_scores.name])


def ray_storage_arguments(folder: Path) -> dict[str, Any]:
    """Return the arguments of Ray's `RunConfig` for a folder that all nodes can use."""
    store = store_of(folder)
    if store is None:
        return {"storage_path": str(folder)}
    return {"storage_path": store.key(folder), "storage_filesystem": store.filesystem}


def remove_scratch(folder: Path) -> None:
    """Remove the files that Ray wrote for one training, as far as possible; no later start reads them."""
    store = store_of(folder)
    if store is not None:
        with contextlib.suppress(UserError):
            store.remove_folder(folder)
    shutil.rmtree(folder, ignore_errors=True)


def share_bundle(bundle: Path, run_dir: Path) -> Path:
    """Return a bundle that every node can read: itself, or a copy in the run folder, which is in the object store."""
    if store_of(run_dir) is None or store_of(bundle) is not None:
        return bundle
    copy = RunFolder(run_dir, run_dir).teacher / "bundle"
    download_files(copy, ["*"])
    own, known = bundle / DESCRIPTION, copy / DESCRIPTION
    if not (known.is_file() and known.read_bytes() == own.read_bytes()):
        names = [*read_hashes(own.read_bytes(), str(own)), DESCRIPTION]
        for name in names:
            with atomic_write(copy / name) as temporary:
                shutil.copyfile(bundle / name, temporary)
    return copy


@contextlib.contextmanager
def follow_store(folder: Path, list_paths: Callable[[], Iterable[Path]], every_s: float = 1.5) -> Iterator[None]:
    """Download files that other nodes write, again and again and once at the end; do nothing without an object store.

    Args:
        folder: folder that holds the files.
        list_paths: function that returns the files, such as a training's metrics; later calls may return more.
        every_s: seconds between downloads.
    """

    def look() -> None:
        with contextlib.suppress(UserError):  # the writer reports it; a progress bar must not stop a training
            for path in list_paths():
                download_if_changed(path)

    with contextlib.nullcontext() if store_of(folder) is None else Poller(every_s, look):
        yield
