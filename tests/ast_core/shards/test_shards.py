"""Shards: rows are read as they were written, in any order and by pyarrow alone, and damage is noticed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from prepared import write_clip_indices

from ast_core.errors import DamagedError, UserError
from ast_core.serialization import to_dict
from ast_core.shards.clip_index import CLIP_INDEX
from ast_core.shards.index import ShardIndex
from ast_core.shards.reader import ShardReader
from ast_core.shards.writer import Row, write_part
from ast_core.storage.json_files import write_hashed_json

FRAMES, BINS, LABELS = 24, 8, ["a", "b", "c"]
METADATA = {"front_end": {"target_frames": FRAMES, "num_mel_bins": BINS}, "labels": LABELS, "single_label": False}


def rows_of(split: str, count: int) -> list[Row]:
    rng = np.random.default_rng(len(split))
    fbanks = rng.normal(-4, 4, (count, FRAMES, BINS)).astype(np.float16)
    return [Row(f"{split}-{n}", tuple({n % 3, 2}), 10 + n, fbank) for n, fbank in enumerate(fbanks)]


def write_folder(folder: Path, splits: dict[str, list[list[Row]]]) -> list[Row]:
    """Write an index and its parts, and return all rows in their order."""
    splits_json = {}
    for split, parts in splits.items():
        written = [
            {"name": f"part-{n:05d}.parquet"}
            | to_dict(write_part(folder / split / f"part-{n:05d}.parquet", rows, METADATA, FRAMES, BINS))
            for n, rows in enumerate(parts)
        ]
        splits_json[split] = {key: sum(part[key] for part in written) for key in ("sum", "sum_sq", "count")}
        count = sum(part["rows"] for part in written)
        splits_json[split] |= {"listed": count, "kept": count, "rejected": 0, "missing": 0, "parts": written}
    write_hashed_json(folder / "index.json", {**METADATA, "layout": "folders", "splits": splits_json, "data_hash": "d"})
    return [row for parts in splits.values() for rows in parts for row in rows]


@pytest.fixture(params=[True, False], ids=["with_clip_index", "without"])
def rows(tmp_path: Path, request: pytest.FixtureRequest) -> list[Row]:
    train = rows_of("train", 31)
    rows = write_folder(tmp_path, {"train": [train[:19], [], train[19:]], "test": [rows_of("test", 5)]})
    if request.param:
        write_clip_indices(tmp_path)
    return rows


def test_any_order_with_duplicates_reads_what_was_written(tmp_path: Path, rows: list[Row]) -> None:
    reader = ShardReader(tmp_path, ["train", "test"])
    indices = np.array([35, 0, 18, 19, 7, 8, 0, 30, 31, *np.random.default_rng(0).permutation(36)])
    read_BTM = reader.read(indices)
    assert read_BTM.dtype == np.float16
    np.testing.assert_array_equal(read_BTM, np.stack([rows[i].fbank_TM for i in indices]))
    assert reader.read(np.array([], np.int64)).shape == (0, FRAMES, BINS)
    assert len(reader) == len(rows)
    assert reader.clip_ids == [row.clip_id for row in rows]
    assert reader.num_frames_N.tolist() == [row.num_frames for row in rows]
    assert [tuple(np.flatnonzero(labels_C)) for labels_C in reader.labels_NC] == [row.labels for row in rows]


@pytest.mark.parametrize("index", [-1, 36])
def test_an_index_out_of_range_is_refused(tmp_path: Path, rows: list[Row], index: int) -> None:
    with pytest.raises(IndexError):
        ShardReader(tmp_path, ["train", "test"]).read(np.array([0, index]))


def test_pyarrow_alone_reads_a_part_and_its_description(tmp_path: Path, rows: list[Row]) -> None:
    table = pq.read_table(tmp_path / "train" / "part-00000.parquet")
    assert json.loads(table.schema.metadata[b"ast_pipeline"]) == METADATA
    first = table.slice(3, 1).to_pylist()[0]
    assert first["clip_id"] == rows[3].clip_id
    assert tuple(first["labels"]) == rows[3].labels
    fbank_TM = np.frombuffer(first["fbank"], "<f2").reshape(FRAMES, BINS)
    np.testing.assert_array_equal(fbank_TM, rows[3].fbank_TM)


def test_statistics_are_those_of_all_values(tmp_path: Path, rows: list[Row]) -> None:
    values = np.stack([row.fbank_TM for row in rows]).astype(np.float64)
    assert ShardIndex.load(tmp_path).statistics(["train", "test"]) == pytest.approx((values.mean(), values.std()))


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("a.parquet", "b.parquet"))
    hashes = {write_part(path, iter(rows_of("x", 9)), METADATA, FRAMES, BINS).sha256 for path in (first, second)}
    assert len(hashes) == 1
    assert first.read_bytes() == second.read_bytes()


def flip_a_value(part: Path) -> None:
    data = bytearray(part.read_bytes())
    row = rows_of("train", 31)[3].fbank_TM.tobytes()
    data[data.index(row) + len(row) // 2] ^= 1
    part.write_bytes(data)


def flip_an_identifier(part: Path) -> None:
    data = part.read_bytes()
    part.write_bytes(data.replace(b"train-3", b"train-7", 1))


def cut_in_half(part: Path) -> None:
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])


def empty(part: Path) -> None:
    part.write_bytes(b"")


def swap_for_another_part(part: Path) -> None:
    part.write_bytes(part.with_name("part-00002.parquet").read_bytes())


DAMAGES = [flip_a_value, flip_an_identifier, cut_in_half, empty, swap_for_another_part, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named(tmp_path: Path, rows: list[Row], damage: Callable[[Path], None]) -> None:
    part = tmp_path / "train" / "part-00000.parquet"
    before = part.read_bytes()
    damage(part)
    assert not part.exists() or part.read_bytes() != before
    if damage is flip_an_identifier and (part.parent / CLIP_INDEX).exists():  # the reader takes ids from the clip index
        read_NTM = ShardReader(tmp_path, ["train"]).read(np.arange(31))
        np.testing.assert_array_equal(read_NTM, np.stack([row.fbank_TM for row in rows[:31]]))
        return
    with pytest.raises(DamagedError, match=r"part-00000.parquet .* Run prepare again"):
        ShardReader(tmp_path, ["train"]).read(np.arange(31))


def test_a_flip_anywhere_is_noticed_or_harmless(tmp_path: Path, rows: list[Row]) -> None:
    part = tmp_path / "train" / "part-00000.parquet"
    whole = part.read_bytes()
    sound = ShardReader(tmp_path, ["train"])
    good_BTM, noticed = sound.read(np.arange(31)), 0
    for place in np.random.default_rng(0).integers(0, len(whole), 64).tolist():
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        temporary = part.with_name("flipped")
        temporary.write_bytes(data)
        temporary.replace(part)
        try:
            reader = ShardReader(tmp_path, ["train"])
            np.testing.assert_array_equal(reader.read(np.arange(31)), good_BTM)
            np.testing.assert_array_equal(reader.labels_NC, sound.labels_NC)
            assert reader.clip_ids == sound.clip_ids
        except DamagedError:
            noticed += 1
    assert noticed > 16


def test_missing_shards_and_splits_are_refused_with_what_to_do(tmp_path: Path, rows: list[Row]) -> None:
    with pytest.raises(UserError, match="no split nope; there are test, train"):
        ShardReader(tmp_path, ["nope"])
    with pytest.raises(UserError, match="run prepare first"):
        ShardReader(tmp_path / "elsewhere", ["train"])
