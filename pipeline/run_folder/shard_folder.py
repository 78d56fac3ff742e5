"""The folder of the shards while `prepare` writes it: which parts are missing, what was counted, the index."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ast_core.config import FrontEndConfig
from ast_core.dataset.clips import Manifest
from ast_core.errors import UserError, require
from ast_core.serialization import to_dict
from ast_core.shards.clip_index import CLIP_INDEX
from ast_core.shards.index import INDEX, REJECTS, PartEntry, ShardIndex, SplitCounts
from ast_core.storage.atomic_files import atomic_write, list_stored, remove_file, remove_temporary_files
from ast_core.storage.json_files import read_hashed_json, sha256_of_json, write_hashed_json
from ast_core.storage.object_store import store_of
from pipeline.ray_runtime.shard_part import ShardMetadata, ShardPart, is_complete, is_complete_in_store, utf8_name
from pipeline.run_folder import downloads
from pipeline.run_folder.clip_indices import write_clip_indices

REJECTS_SCHEMA = pa.schema([(name, pa.string()) for name in ("clip_id", "split", "path", "stage", "reason")])
Splits = dict[str, SplitCounts]
Rejects = list[dict[str, str]]


class ShardFolder:
    """The folder of the shards, and the parts that a manifest's clips are cut into.

    Args:
        folder: of the shards.
        parts: all parts, those that exist already too.
    """

    def __init__(self, folder: Path, parts: Sequence[ShardPart]) -> None:
        self.folder = folder
        self.parts = parts

    @property
    def device(self) -> str:
        """Device that computes the parts; `cpu` if there are no parts."""
        return self.parts[0].device if self.parts else "cpu"

    def with_device(self, device: str) -> ShardFolder:
        """Return the folder with parts that this device computes."""
        if device == self.device:
            return self
        return ShardFolder(self.folder, [dataclasses.replace(part, device=device) for part in self.parts])

    def find_device(self) -> str:
        """Return the device that computed most of the parts that exist, whatever they were made of; "" without any."""
        downloads.download_markers(self.folder, [part.marker for part in self.parts])
        found: Counter[str] = Counter()
        for part in self.parts:
            with contextlib.suppress(UserError):  # it does not exist yet, or is damaged and will be written again
                found[str(read_hashed_json(part.marker, "Marker of a shard").get("device", "cpu"))] += 1
        return found.most_common(1)[0][0] if found else ""

    def pending(self) -> list[ShardPart]:
        """Return the parts that are missing, or were made of other clips or settings.

        They are looked for in the object store if the folder is a working copy of one, and on this disk otherwise.
        """
        store = store_of(self.folder)
        check = is_complete
        if store is not None:
            check = functools.partial(is_complete_in_store, store=store, listed=list_stored(self.folder))
        with ThreadPoolExecutor() as pool:
            done = list(pool.map(check, self.parts))
        return [part for part, finished in zip(self.parts, done, strict=True) if not finished]

    def remove_index(self) -> None:
        """Remove the index before the parts that it describes change."""
        remove_file(self.folder / INDEX)

    def count(self) -> tuple[Splits, Rejects]:
        """Add up the markers of all parts, and write the table of rejects.

        Returns:
            Counts and parts by split, and every rejected clip with its reason.

        Raises:
            UserError: a split's kept, rejected and missing clips do not add up to those listed.
        """
        downloads.download_markers(self.folder, [part.marker for part in self.parts])
        splits: Splits = {}
        rejects: Rejects = []
        for part in self.parts:
            marker = read_hashed_json(part.marker, "Marker of a shard")
            counts = _read_counts(part, marker)
            splits[part.split] = splits[part.split] + counts if part.split in splits else counts
            rejects += marker["rejects"]
        for split, counts in splits.items():
            listed, seen = counts.listed, counts.seen
            require(listed == seen, f"The counts of {split} differ: {listed} clips listed, {seen} seen. Run it again.")
        with atomic_write(self.folder / REJECTS) as temporary, temporary.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(rejects, REJECTS_SCHEMA), file)
        return splits, rejects

    def write_index(self, manifest: Manifest, front_end: FrontEndConfig, splits: Splits, split_rule: int) -> ShardIndex:
        """Write the clip indices and the index, remove parts that it does not name and what killed writers left.

        Returns:
            The index.
        """
        splits = write_clip_indices(self.folder, self.parts, splits)
        hashes = [[split, *(entry.sha256 for entry in counts.parts)] for split, counts in splits.items()]
        meaning = to_dict(ShardMetadata(front_end, manifest.labels, manifest.single_label))
        data_hash = sha256_of_json([hashes, meaning])
        index = ShardIndex(
            meaning["front_end"],
            manifest.labels,
            manifest.single_label,
            manifest.layout,
            splits=splits,
            data_hash=data_hash,
            unlisted=manifest.unlisted,
            split_rule=split_rule,
        )
        write_hashed_json(self.folder / INDEX, to_dict(index))
        self._remove_stale()
        return ShardIndex.load(self.folder)

    def _remove_stale(self) -> None:
        keep = {part.marker.with_suffix("") for part in self.parts}
        keep |= {part.marker.with_name(CLIP_INDEX).with_suffix("") for part in self.parts}
        patterns = ("*/part-*", "*/.part-*", f"*/{CLIP_INDEX}", f"*/.{CLIP_INDEX}.*")
        stored = [path for path in list_stored(self.folder) if path.parents[1] == self.folder]
        found = {path for path in stored if any(path.match(pattern) for pattern in patterns)}
        found |= {path for pattern in patterns for path in self.folder.glob(pattern)}
        for path in sorted(found, key=lambda path: path.suffix != ".json"):  # markers first
            if path.with_suffix("") not in keep:
                remove_file(path)
        for name in (INDEX, REJECTS):
            remove_temporary_files(self.folder, name)


def _read_counts(part: ShardPart, marker: dict[str, Any]) -> SplitCounts:
    """Return what one part's marker counts."""
    missing = Counter(reject["stage"] for reject in marker["rejects"])["missing"]
    rejected = {reject["clip_id"] for reject in marker["rejects"]}
    kept = Counter(label for clip in part.clips if utf8_name(clip.clip_id) not in rejected for label in clip.labels)
    return SplitCounts(
        listed=len(part.clips), kept=marker["rows"], rejected=len(marker["rejects"]) - missing, missing=missing,
        count=marker["count"], sum=marker["sum"], sum_sq=marker["sum_sq"],
        parts=(PartEntry(f"{part.name}.parquet", marker["rows"], marker["sha256"], marker["bytes"]),),
        classes=tuple(kept[label] for label in range(len(part.metadata.labels))),
    )  # fmt: skip
