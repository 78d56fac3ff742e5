"""Downloads from an object store to this node's working copy of it; nothing is done for a folder without a store.

A file that is here already is not downloaded again. What a marker or the index of the shards names is checked by its
SHA-256; `pipeline.run_folder.sync` says which stage downloads what.
"""

from __future__ import annotations

import contextlib
import fnmatch
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock

from ast_core.errors import DamagedError
from ast_core.shards.clip_index import CLIP_INDEX
from ast_core.shards.index import INDEX, REJECTS, ShardIndex
from ast_core.storage.atomic_files import download_file, matches_store, sha256_of
from ast_core.storage.json_files import parse_hashed_json
from ast_core.storage.object_store import ObjectStore, StoredFile, store_of
from ast_core.weights import checkpoint
from ast_core.weights.bundle import DESCRIPTION

AT_ONCE = 8
"""Downloads at the same time."""
MARKERS = (checkpoint.MARKER, DESCRIPTION)
"""Files that are written last into the folder of a checkpoint or a bundle, with the hashes of the others."""


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
    hashes = {marker.parent / name: sha256 for name, sha256 in read_hashes(content, store.uri_of(marker)).items()}
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


def read_hashes(marker: bytes, name: str) -> dict[str, str]:
    """Return the SHA-256 of each file that the marker of a checkpoint or a bundle names.

    Args:
        marker: content of the marker.
        name: path or URI of the marker, for the error.

    Raises:
        DamagedError: the content is not such a marker.
    """
    try:
        value = parse_hashed_json(marker, name)
        found: dict[str, str] = (
            value["sha256"] if "sha256" in value else {own["file"]: own["sha256"] for own in value["members"]}
        )
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{name} is damaged: it is not a marker ({error}).") from error
    return found


def download_shards(shards: Path, splits: Sequence[str] = ()) -> None:
    """Download the index, the table of rejects, and the parts and clip indices of some splits.

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
            clip_index = shards / split / CLIP_INDEX  # its reader checks its hash, and does without it
            _download_plain(store, {path: s for path, s in listed.items() if path == clip_index})
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


@contextlib.contextmanager
def _lock_store(store: ObjectStore) -> Iterator[None]:
    """Let one process of a node download; the others wait and find the files."""
    with filelock.FileLock(store.root / ".store.lock"):
        yield
