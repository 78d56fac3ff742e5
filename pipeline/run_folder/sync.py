"""Download to this node what a stage or a worker reads, if `--storage` names an object store; else do nothing.

The run folder of each node is a working copy of one place in an object store (`ast_core.storage.object_store`), and
`ast_core.storage.atomic_files` writes to both. A stage starts with `download_inputs`; workers, which have no settings,
start with `attach_stores` and the downloads that they need.
"""

from __future__ import annotations

import contextlib
import fnmatch
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from ast_core.config import Job
from ast_core.errors import DamagedError, UserError, require
from ast_core.shards.index import INDEX, REJECTS, ShardIndex
from ast_core.storage.atomic_files import atomic_write, download_file, matches_store, sha256_of
from ast_core.storage.json_files import parse_hashed_json
from ast_core.storage.object_store import ObjectStore, StoredFile, store_of
from ast_core.training.member_folder import MemberFolder
from ast_core.weights import checkpoint
from ast_core.weights.bundle import DESCRIPTION
from pipeline.reporting.poller import Poller
from pipeline.run_folder.layout import RunFolder

if TYPE_CHECKING:  # workers import this module, and the command line would slow their start
    from pipeline.cli.stages import Common

AT_ONCE = 8
"""Downloads at the same time."""
MARKERS = (checkpoint.MARKER, DESCRIPTION)
"""Files that are written last into the folder of a checkpoint or a bundle, with the hashes of the others."""


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


def download_files(folder: Path, patterns: Sequence[str]) -> None:
    """Download the files of a folder that fit the patterns; of a checkpoint or a bundle, all files."""
    store = store_of(folder)
    if store is None:
        return
    with _lock_store(store):
        listed = store.list_files(folder)
        wanted = {
            path for path in listed
            if any(fnmatch.fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in patterns)
        }  # fmt: skip
        units = {path.parent: path for path in wanted if path.name in MARKERS}
        plain = {path: listed[path] for path in wanted if path.parent not in units}
        for marker in units.values():
            _download_unit(store, marker, {path: s for path, s in listed.items() if path.parent == marker.parent})
        _download_plain(store, plain)


def _download_plain(
    store: ObjectStore, wanted: Mapping[Path, StoredFile], hashes: Mapping[Path, str] | None = None
) -> None:
    """Download files that differ from the store's; small ones are compared byte by byte, others by size and time."""

    def one(path: Path) -> None:
        if path.suffix in {".json", ".jsonl"} or path.name.startswith("."):
            download_if_changed(path, store)
        elif not matches_store(path, wanted[path]):
            download_file(store, path, wanted[path], (hashes or {}).get(path, ""))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, wanted))


def download_if_changed(path: Path, store: ObjectStore | None = None) -> None:
    """Download one small file if the store has it and its bytes differ."""
    store = store or store_of(path)
    content = None if store is None else store.read(path)
    if store is not None and content is not None and not (path.is_file() and path.read_bytes() == content):
        download_file(store, path)


def _download_unit(store: ObjectStore, marker: Path, listed: Mapping[Path, StoredFile]) -> None:
    """Download the folder of a checkpoint or a bundle: its files, checked by their hashes, then its marker.

    Raises:
        DamagedError: a file in the store is not the one that was committed.
    """
    content = store.read(marker) or b""
    hashes = {marker.parent / name: sha256 for name, sha256 in _hashes(content, store.uri_of(marker)).items()}
    for path, sha256 in hashes.items():
        if not (path.is_file() and sha256_of(path) == sha256):
            if path not in listed:
                raise DamagedError(f"{store.uri_of(path)} is missing, but its marker names it.")
            marker.unlink(missing_ok=True)
            download_file(store, path, listed[path], sha256)
    for path in marker.parent.iterdir() if marker.parent.is_dir() else ():
        if path not in listed and path.is_file() and not path.name.startswith("."):
            path.unlink()  # such as the thresholds of earlier weights
    _download_plain(store, {path: s for path, s in listed.items() if path not in hashes and path != marker})
    download_if_changed(marker, store)


def _hashes(marker: bytes, name: str) -> dict[str, str]:
    try:
        value = parse_hashed_json(marker, name)
        found: dict[str, str] = (
            value["sha256"] if "sha256" in value else {own["file"]: own["sha256"] for own in value["members"]}
        )
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{name} is damaged: it is not a marker ({error}).") from error
    return found


def download_shards(shards: Path, splits: Sequence[str] = ()) -> None:
    """Download the index, the table of rejects, and the parts of some splits.

    Raises:
        UserError: the store cannot be reached.
        DamagedError: a part that the index names is not in the store, or is another one.
    """
    store = store_of(shards)
    if store is None:
        return
    with _lock_store(store):
        download_if_changed(shards / INDEX, store)
        if not (splits and (shards / INDEX).is_file()):
            return
        index = ShardIndex.load(shards)
        index.require_splits(splits)
        for split in splits:
            listed = store.list_files(shards / split)
            hashes = {shards / split / part.name: part.sha256 for part in index.splits[split].parts}
            absent = [path for path in hashes if path not in listed]
            if absent:
                raise DamagedError(f"Shard {store.uri_of(absent[0])} is missing. Run prepare again.")
            _download_plain(store, {path: listed[path] for path in hashes}, hashes)
        rejects = {path: s for path, s in store.list_files(shards).items() if path == shards / REJECTS}
        _download_plain(store, rejects)


def download_markers(shards: Path, markers: Iterable[Path]) -> None:
    """Download the markers of parts; remove a local part that its marker does not describe."""
    store = store_of(shards)
    if store is None:
        return

    def one(marker: Path) -> None:
        content = store.read(marker)
        if content is not None and not (marker.is_file() and marker.read_bytes() == content):
            marker.with_suffix(".parquet").unlink(missing_ok=True)
            download_file(store, marker)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, markers))


def download_rank_inputs(job: Job) -> None:
    """Download what a rank reads: shards, newest checkpoint, teacher's scores; errors as `download_inputs`."""
    download_shards(job.shards, [*job.data.train_splits, job.data.validation_split or job.data.test_split])
    download_checkpoint(MemberFolder(job.folder).checkpoints)
    if job.teacher_scores is not None:
        download_files(job.teacher_scores.parent, [job.teacher_scores.name])


def download_checkpoint(folder: Path) -> None:
    """Download the newest undamaged checkpoint and remove all others here, so that all nodes choose the same."""
    store = store_of(folder)
    if store is None:
        return
    with _lock_store(store):
        listed = store.list_files(folder)
        chosen: Path | None = None
        for marker in sorted((path for path in listed if path.name == checkpoint.MARKER), reverse=True):
            try:
                _download_unit(store, marker, {path: s for path, s in listed.items() if path.parent == marker.parent})
            except DamagedError as error:
                print(f"{error} The one before it is used.")
            else:
                chosen = marker.parent
                break
        for other in folder.glob("step-*"):
            if other != chosen:
                (other / checkpoint.MARKER).unlink(missing_ok=True)
                shutil.rmtree(other)


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
        names = [*_hashes(own.read_bytes(), str(own)), DESCRIPTION]
        for name in names:
            with atomic_write(copy / name) as temporary:
                shutil.copyfile(bundle / name, temporary)
    return copy


@contextlib.contextmanager
def _lock_store(store: ObjectStore) -> Iterator[None]:
    """Let one process of a node download; the others wait and find the files."""
    with filelock.FileLock(store.root / ".store.lock"):
        yield


@contextlib.contextmanager
def follow_store(paths: Iterable[Path], every_s: float = 1.5) -> Iterator[None]:
    """Download files that other nodes write, again and again and once at the end; do nothing without an object store.

    Args:
        paths: files that grow, such as a training's metrics.
        every_s: seconds between downloads.
    """
    followed = [path for path in paths if store_of(path) is not None]

    def look() -> None:
        with contextlib.suppress(UserError):  # the writer reports it; a progress bar must not stop a training
            for path in followed:
                download_if_changed(path)

    with Poller(every_s, look) if followed else contextlib.nullcontext():
        yield
