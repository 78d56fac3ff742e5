"""With `--storage`, what a stage reads is brought to this node before it does; without, nothing here does anything.

Each node's run folder is a working copy of one place in an object store (`object_store`), and `atomic_files`
commits to both. So a stage begins with `bring`; workers, which know no settings, with `attach` and what they need.
"""

from __future__ import annotations

import contextlib
import fnmatch
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

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
from pipeline.run_folder.layout import RunFolder

if TYPE_CHECKING:  # the command line would cost each worker that imports this a part of its start
    from pipeline.cli.stages import Common

AT_ONCE = 8
"""Downloads side by side."""
MARKERS = (checkpoint.MARKER, DESCRIPTION)
"""What is last in a checkpoint's or bundle's folder, and has its files' hashes."""


def object_stores(settings: Common) -> tuple[ObjectStore, ...]:
    """The stores that a stage's folders are working copies of, for its workers to `attach`."""
    found = (store_of(settings.run_dir), store_of(settings.shards))
    return tuple(dict.fromkeys(store for store in found if store is not None))


def attach_stores(stores: Iterable[ObjectStore]) -> None:
    """On a worker's node: make the same folders working copies there. UserError as `Store.attach`."""
    for store in stores:
        store.attach()


def download_inputs(settings: Common, splits: Sequence[str] = (), files: Sequence[str] = ()) -> None:
    """Attach a stage's folders to the store that its settings name, and bring what it reads.

    Args:
        settings: of the stage. Without storage, a folder that is a working copy already goes on being one.
        splits: whose shards it reads; the index comes anyhow.
        files: of the run folder; `*` stands for folders too. Checkpoints and bundles come whole.

    Raises:
        UserError: the store cannot be reached, or the folders are of another one.
        DamagedError: the store's bytes are not what was committed.
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
    else:  # a study's trial or a fold lies in the run's folder, and is asked for by the run's URI
        fits = uri in {known.uri, known.uri_of(run_dir)}
        require(fits, f"{run_dir} lies in a working copy of {known.uri}, not of {uri}. Choose another folder.")


def download_files(folder: Path, patterns: Sequence[str]) -> None:
    """Bring those files of a folder that the store has; of a checkpoint's or bundle's folder, all."""
    store = store_of(folder)
    if store is None:
        return
    with _alone(store):
        listed = store.listed(folder)
        wanted = {
            path for path in listed
            if any(fnmatch.fnmatch(path.relative_to(folder).as_posix(), pattern) for pattern in patterns)
        }  # fmt: skip
        units = {path.parent: path for path in wanted if path.name in MARKERS}
        plain = {path: listed[path] for path in wanted if path.parent not in units}
        for marker in units.values():
            _bring_unit(store, marker, {path: s for path, s in listed.items() if path.parent == marker.parent})
        _bring_plain(store, plain)


def _bring_plain(
    store: ObjectStore, wanted: Mapping[Path, StoredFile], hashes: Mapping[Path, str] | None = None
) -> None:
    """Files that are not the store's already; small ones by their bytes, for two may have a size and a second."""

    def one(path: Path) -> None:
        if path.suffix in {".json", ".jsonl"} or path.name.startswith("."):
            download_if_changed(path, store)
        elif not matches_store(path, wanted[path]):
            download_file(store, path, wanted[path], (hashes or {}).get(path, ""))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, wanted))


def download_if_changed(path: Path, store: ObjectStore | None = None) -> None:
    """Bring one small file, if the store has it."""
    store = store or store_of(path)
    content = None if store is None else store.read(path)
    if store is not None and content is not None and not (path.is_file() and path.read_bytes() == content):
        download_file(store, path)


def _bring_unit(store: ObjectStore, marker: Path, listed: Mapping[Path, StoredFile]) -> None:
    """A checkpoint's or bundle's folder: its files, checked by their hashes, then its marker.

    Raises:
        DamagedError: in the store it is not what was committed.
    """
    content = store.read(marker) or b""
    hashes = {marker.parent / name: sha256 for name, sha256 in _hashes(content, store.uri_of(marker)).items()}
    for path, sha256 in hashes.items():
        if not (path.is_file() and sha256_of(path) == sha256):
            if path not in listed:
                raise DamagedError(f"{store.uri_of(path)} is damaged: there is none, but its marker names it.")
            marker.unlink(missing_ok=True)
            download_file(store, path, listed[path], sha256)
    for path in marker.parent.iterdir() if marker.parent.is_dir() else ():
        if path not in listed and path.is_file() and not path.name.startswith("."):
            path.unlink()  # such as thresholds of weights that were there before
    _bring_plain(store, {path: s for path, s in listed.items() if path not in hashes and path != marker})
    download_if_changed(marker, store)


def _hashes(marker: bytes, name: str) -> dict[str, str]:
    try:
        value = parse_hashed_json(marker, name)
        found: dict[str, str] = (
            value["sha256"] if "sha256" in value else {own["file"]: own["sha256"] for own in value["members"]}
        )
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{name} is damaged: it is no marker ({error}).") from error
    return found


def download_shards(shards: Path, splits: Sequence[str] = ()) -> None:
    """Bring the index, the table of rejects, and the parts of some splits.

    Raises:
        UserError: the store cannot be reached.
        DamagedError: a part that the index names is not in the store, or is another one.
    """
    store = store_of(shards)
    if store is None:
        return
    with _alone(store):
        download_if_changed(shards / INDEX, store)
        if not (splits and (shards / INDEX).is_file()):
            return
        index = ShardIndex.load(shards)
        index.require_splits(splits)
        for split in splits:
            listed = store.listed(shards / split)
            hashes = {shards / split / part["name"]: str(part["sha256"]) for part in index.splits[split]["parts"]}
            absent = [path for path in hashes if path not in listed]
            if absent:
                raise DamagedError(f"Shard {store.uri_of(absent[0])} is missing. Run prepare again.")
            _bring_plain(store, {path: listed[path] for path in hashes}, hashes)
        rejects = {path: s for path, s in store.listed(shards).items() if path == shards / REJECTS}
        _bring_plain(store, rejects)


def download_markers(shards: Path, markers: Iterable[Path]) -> None:
    """Bring the markers of parts, wherever they were written; a part that is here, but of another marker, goes."""
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
    """What a rank reads, to its node: shards, the newest checkpoint, its teacher's scores. UserError as `bring`."""
    download_shards(job.shards, [*job.data.train_splits, job.data.validation_split or job.data.test_split])
    download_checkpoint(MemberFolder(job.folder).checkpoints)
    if job.teacher_scores is not None:
        download_files(job.teacher_scores.parent, [job.teacher_scores.name])


def download_checkpoint(folder: Path) -> None:
    """Bring the store's newest checkpoint whose bytes are good, and leave no other here: all nodes choose the same."""
    store = store_of(folder)
    if store is None:
        return
    with _alone(store):
        listed = store.listed(folder)
        chosen: Path | None = None
        for marker in sorted((path for path in listed if path.name == checkpoint.MARKER), reverse=True):
            try:
                _bring_unit(store, marker, {path: s for path, s in listed.items() if path.parent == marker.parent})
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
    """Arguments of Ray's `RunConfig` for a folder that all nodes can use."""
    store = store_of(folder)
    if store is None:
        return {"storage_path": str(folder)}
    return {"storage_path": store.key(folder), "storage_filesystem": store.filesystem}


def remove_scratch(folder: Path) -> None:
    """Remove what Ray noted there, as far as it can be; nothing reads it again."""
    store = store_of(folder)
    if store is not None:
        with contextlib.suppress(UserError):
            store.remove_folder(folder)
    shutil.rmtree(folder, ignore_errors=True)


def share_bundle(bundle: Path, run_dir: Path) -> Path:
    """A bundle where scorers on every node find it: itself, or a copy in the run's folder, which the store has."""
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
def _alone(store: ObjectStore) -> Iterator[None]:
    """One process of a node brings; the others wait, and find it there."""
    with filelock.FileLock(store.root / ".store.lock"):
        yield


class StoreFollower:
    """Brings files that other nodes write, every other second, and at the end once more; none outside a store.

    Args:
        paths: such as a curve that grows.
        every_s: seconds between looks.
    """

    def __init__(self, paths: Iterable[Path], every_s: float = 1.5) -> None:
        self._paths = [path for path in paths if store_of(path) is not None]
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="store-follower", daemon=True)

    def __enter__(self) -> Self:
        """Start to follow."""
        if self._paths:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Bring what is left, and stop."""
        self._stop.set()
        if self._paths:
            self._thread.join()
            self._look()

    def _follow(self) -> None:
        while not self._stop.wait(self._every_s):
            self._look()

    def _look(self) -> None:
        with contextlib.suppress(UserError):  # whoever writes says so; showing a curve must not end a training
            for path in self._paths:
                download_if_changed(path)
