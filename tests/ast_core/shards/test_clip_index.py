"""The clip index: it opens the same clips as the parts, and another, a damaged or a missing one is noticed."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from prepared import LABELS, read_split, write_clip_indices, write_shards

from ast_core.errors import DamagedError
from ast_core.shards import part_file
from ast_core.shards.clip_index import CLIP_INDEX, read_clip_index
from ast_core.shards.clip_table import SCHEMA
from ast_core.shards.reader import ShardReader
from ast_core.shards.sparse_labels import SparseLabels
from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from ast_core.training.order import clip_weights, epoch_order

CLIPS = {"train": 20, "more": 7, "test": 9}


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path, CLIPS, single_label=False)
    write_clip_indices(tmp_path)
    return tmp_path


def open_parts(folder: Path, splits: list[str], monkeypatch: pytest.MonkeyPatch) -> ShardReader:
    """Open shards without their clip index."""
    with monkeypatch.context() as patch:
        patch.setattr("ast_core.shards.reader.read_clip_index", refuse)
        return ShardReader(folder, splits)


def refuse(*_: object) -> None:
    raise DamagedError("The clip index is not used here.")


def require_same(found: ShardReader, wanted: ShardReader) -> None:
    order = np.random.default_rng(0).permutation(len(wanted))
    assert list(found.clip_ids) == list(wanted.clip_ids)
    for name in ("num_frames_N", "labels_NC"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name), strict=True)
    np.testing.assert_array_equal(found.read(order), wanted.read(order))


@pytest.mark.parametrize("splits", [["train"], ["test", "train"], ["more", "train", "test"]])
def test_clip_index_opens_the_same_clips_as_the_parts(
    shards: Path, splits: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = ShardReader(shards, splits)
    assert not caplog.records
    require_same(found, open_parts(shards, splits, monkeypatch))
    assert len(found) == sum(CLIPS[split] for split in splits)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap_for_another_split(path: Path) -> None:
    path.write_bytes((path.parents[1] / "test" / CLIP_INDEX).read_bytes())


@pytest.mark.parametrize(
    "damage", [flip, cut, empty, swap_for_another_split, Path.unlink], ids=lambda own: own.__name__
)
def test_damaged_clip_index_is_reported_and_the_parts_are_opened(
    shards: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damage(shards / "train" / CLIP_INDEX)
    with caplog.at_level(logging.WARNING):
        found = ShardReader(shards, ["train"])
    assert "clips.arrow is missing, damaged or of other shards" in caplog.text
    require_same(found, open_parts(shards, ["train"], monkeypatch))


def test_clip_index_of_earlier_shards_is_not_used(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (shards / "train" / CLIP_INDEX).read_bytes()
    write_shards(shards, {**CLIPS, "train": 21}, single_label=False)
    write_clip_indices(shards)
    (shards / "train" / CLIP_INDEX).write_bytes(before)  # as if prepare had been killed before it wrote the new one
    assert len(ShardReader(shards, ["train"])) == 21
    assert "clips.arrow" in caplog.text


def change(columns: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    return columns.set_column(columns.schema.get_field_index(name), pa.field(name, values.type), values)


FALSE_LISTS = {
    "a label beyond the classes": pa.array([[7]] * 20, SCHEMA.field("labels").type),
    "a negative label": pa.array([[-1]] * 20, SCHEMA.field("labels").type),
    "descending labels": pa.array([[2, 1]] * 20, SCHEMA.field("labels").type),
    "the same label twice": pa.array([[1, 1]] * 20, SCHEMA.field("labels").type),
    "no labels": pa.nulls(20, SCHEMA.field("labels").type),
}


@pytest.mark.parametrize("labels", FALSE_LISTS.values(), ids=FALSE_LISTS)
def test_false_content_with_the_right_hash_is_refused(shards: Path, labels: pa.Array) -> None:
    columns = read_split(shards, "train").to_arrow()
    with pytest.raises(DamagedError, match="clip index"):
        read_written(shards, [change(columns, "labels", labels)])
    with pytest.raises(DamagedError, match="its columns are not"):
        read_written(shards, [change(columns, "crc32", pa.array([1] * 20, pa.int64()))])
    with pytest.raises(DamagedError, match="it has 40 clips, not 20"):
        read_written(shards, [columns, columns])
    invalid = pa.array([b"\xff"] * 20, pa.large_binary()).view(pa.large_string())
    with pytest.raises(DamagedError, match="UTF8"):
        read_written(shards, [change(columns, "clip_id", invalid)])


def read_written(shards: Path, batches: list[pa.RecordBatch]) -> None:
    path = shards / "written.arrow"
    with path.open("wb") as file, pa.ipc.new_file(file, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    read_clip_index(path, hashlib.sha256(path.read_bytes()).hexdigest(), 20, len(LABELS))


@pytest.mark.parametrize("offset", [-1, 1 << 40, 5])
def test_false_places_of_filterbanks_are_refused_when_they_are_read(shards: Path, offset: int) -> None:
    columns = read_split(shards, "train").to_arrow()
    columns = change(columns, "fbank_offset", pa.array([offset] * 20))
    with pa.OSFile(str(shards / "train" / CLIP_INDEX), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_batch(columns)
    index = read_hashed_json(shards / "index.json", "Index")
    sha256 = hashlib.sha256((shards / "train" / CLIP_INDEX).read_bytes()).hexdigest()
    index["splits"]["train"]["clip_index"] = sha256
    write_hashed_json(shards / "index.json", index)
    reader = ShardReader(shards, ["train"])
    with pytest.raises(DamagedError, match=r"part-00000\.parquet is missing or damaged"):
        reader.read(np.array([3]))


def cut_to_less_than_its_rows(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:9000])


@pytest.mark.parametrize("damage", [cut_to_less_than_its_rows, Path.unlink], ids=lambda own: own.__name__)
def test_part_that_is_missing_or_too_small_is_refused_at_opening(shards: Path, damage: Callable[[Path], None]) -> None:
    damage(shards / "test" / "part-00000.parquet")
    with pytest.raises(DamagedError, match=r"test.part-00000\.parquet is missing or damaged .* Run prepare again"):
        ShardReader(shards, ["train", "test"])


def test_parts_are_mapped_when_read_and_the_oldest_is_closed(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_file, "MOST_MAPPED", 2)
    reader = ShardReader(shards, ["train", "more", "test"])
    assert list(reader._parts._maps) == []
    for clip, mapped in ((0, [0]), (21, [0, 1]), (1, [1, 0]), (30, [0, 2])):
        reader.read(np.array([clip]))
        assert list(reader._parts._maps) == mapped
    require_same(reader, ShardReader(shards, ["train", "more", "test"]))


def test_pickled_reader_opens_the_same_clips_and_refuses_other_shards(shards: Path) -> None:
    reader = ShardReader(shards, ["test", "train"])
    pickled = pickle.dumps(reader)
    assert len(pickled) < 1000
    require_same(pickle.loads(pickled), reader)
    write_hashed_json(shards / "index.json", {**read_hashed_json(shards / "index.json", "Index"), "data_hash": "other"})
    with pytest.raises(DamagedError, match="changed after they were opened"):
        pickle.loads(pickled)


def test_clip_ids_are_a_sequence_of_strings(shards: Path) -> None:
    ids = ShardReader(shards, ["more", "test"]).clip_ids
    wanted = [f"more-{n}" for n in range(7)] + [f"test-{n}" for n in range(9)]
    assert ids == wanted
    assert ids != [*wanted[:-1], "x"]
    assert (ids[0], ids[-1], ids[np.int64(7)], ids[5:8]) == ("more-0", "test-8", "test-0", wanted[5:8])
    assert pa.array(ids, pa.string()).to_pylist() == wanted
    with pytest.raises(IndexError):
        ids[16]


matrices = arrays(np.uint8, st.tuples(st.integers(0, 40), st.integers(1, 9)), elements=st.integers(0, 1))


@given(labels_NC=matrices, data=st.data())
def test_sparse_labels_are_those_of_the_matrix(labels_NC: np.ndarray, data: st.DataObject) -> None:
    sparse, clips = SparseLabels.from_dense(labels_NC), len(labels_NC)
    chosen = np.array(data.draw(st.lists(st.integers(0, clips - 1))) if clips else [], np.int64)
    np.testing.assert_array_equal(sparse.rows(chosen), labels_NC[chosen], strict=True)
    np.testing.assert_array_equal(sparse.to_dense(), labels_NC, strict=True)
    assert (len(sparse), sparse.shape) == (clips, labels_NC.shape)
    assert sparse.count_C.tolist() == labels_NC.sum(axis=0).tolist()
    assert sparse.count_N.tolist() == labels_NC.sum(axis=1).tolist()
    assert sparse.to_arrow().to_pylist() == [np.flatnonzero(row).tolist() for row in labels_NC]
    assert [sparse.of_clip(n).tolist() for n in range(clips)] == sparse.to_arrow().to_pylist()


def test_balanced_weights_and_order_keep_every_bit() -> None:
    """Compare with the sums over the dense matrix, by which runs of earlier versions drew their clips."""
    rng = np.random.default_rng(0)
    labels_NC = (rng.random((9000, 527)) < 0.006).astype(np.uint8)
    class_weight_C = 1000.0 / (labels_NC.sum(axis=0, dtype=np.float64) + 0.01)
    parts = (labels_NC[first : first + 4096] for first in range(0, 9000, 4096))
    weight_N = np.concatenate([(part > 0).astype(np.float64) @ class_weight_C for part in parts])
    weight_N[weight_N == 0] = 1000.0 / ((weight_N == 0).sum() + 0.01)
    sparse = SparseLabels.from_dense(labels_NC)
    np.testing.assert_array_equal(clip_weights(sparse), weight_N, strict=True)
    np.testing.assert_array_equal(epoch_order("balanced", sparse, 3, 2), epoch_order("balanced", labels_NC, 3, 2))
