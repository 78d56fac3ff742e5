"""Write prepared data sets that train in a second, for tests of the stages after `prepare`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ast_core.config import FrontEndConfig
from ast_core.serialization import to_dict
from ast_core.shards.clip_index import CLIP_INDEX, write_clip_index
from ast_core.shards.clip_table import ClipTable, join_tables
from ast_core.shards.index import ShardIndex
from ast_core.shards.part_file import read_part
from ast_core.shards.writer import Row, write_part
from ast_core.storage.json_files import read_hashed_json, write_hashed_json

FRAMES, BINS = 32, 16
LABELS = ("low", "middle", "high")
FRONT_END = FrontEndConfig(target_frames=FRAMES, num_mel_bins=BINS)


def write_shards(
    folder: Path, clips: dict[str, int], broken: tuple[str, ...] = (), single_label: bool = True, value: float = np.nan
) -> Path:
    """Write shards of clips whose label says which third of the mel bins is loud.

    With several labels a clip, every fourth clip has a second loud third.

    Args:
        folder: folder of shards to write.
        clips: number of clips by split; their ids are SPLIT-0, SPLIT-1, and so on.
        broken: ids of clips whose filterbank holds only `value`.
        single_label: whether each clip has exactly one label.
        value: NaN or infinity.
    """
    rng = np.random.default_rng(0)
    splits = {}
    for split, count in clips.items():
        rows = []
        for number in range(count):
            fbank_TM = rng.normal(-8, 2, (FRAMES, BINS))
            label = number % len(LABELS)
            others = {(label + 1) % len(LABELS)} if number % 4 == 3 and not single_label else set()
            for loud in {label} | others:
                fbank_TM[:, loud * 5 : loud * 5 + 5] += 6
            clip_id = f"{split}-{number}"
            rows.append(
                Row(
                    clip_id,
                    tuple(sorted({label} | others)),
                    FRAMES,
                    (np.full_like(fbank_TM, value) if clip_id in broken else fbank_TM).astype("<f2"),
                )
            )
        part = to_dict(write_part(folder / split / "part-00000.parquet", rows, {}, FRAMES, BINS))
        counts = {"listed": count + 1, "kept": count, "rejected": 0, "missing": 1}
        sums = {key: part[key] for key in ("sum", "sum_sq", "count")}
        splits[split] = {**counts, **sums, "parts": [{"name": "part-00000.parquet", **part}]}
    meaning = {"front_end": to_dict(FRONT_END), "labels": list(LABELS), "single_label": single_label}
    write_hashed_json(folder / "index.json", {**meaning, "layout": "folders", "data_hash": "d", "splits": splits})
    return folder


def read_split(folder: Path, split: str) -> ClipTable:
    """Return the clips of a split as its parts hold them."""
    index = ShardIndex.load(folder)
    shape, classes = (index.front_end["target_frames"], index.front_end["num_mel_bins"]), len(index.labels)
    parts = [part for part in index.splits[split].parts if part.rows]
    return join_tables([read_part(folder / split / part.name, part.rows, shape, classes) for part in parts], classes)


def write_clip_indices(folder: Path) -> None:
    """Give every split of made shards a clip index, as `prepare` does."""
    values = read_hashed_json(folder / "index.json", "Index")
    for split, counts in values["splits"].items():
        counts["clip_index"] = write_clip_index(folder / split / CLIP_INDEX, read_split(folder, split))
    write_hashed_json(folder / "index.json", values)
