"""Shards as a data set of torch: the rows of the reader, in this process and in a loader's workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from prepared import write_clip_indices, write_shards
from torch.utils.data import DataLoader

from ast_core import ShardDataset, ShardReader, UserError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path, {"train": 20, "test": 9}, single_label=False)
    write_clip_indices(tmp_path)
    return tmp_path


def test_items_are_the_readers_rows_raw_or_normalised_as_in_a_training(shards: Path) -> None:
    reader = ShardReader(shards, ["test", "train"])
    raw = ShardDataset(str(shards), ["test", "train"])
    assert (len(raw), list(raw.clip_ids), raw.classes) == (29, list(reader.clip_ids), reader.index.labels)
    fbank_TM, labels_C = raw[7]
    assert fbank_TM.dtype == labels_C.dtype == torch.float32
    np.testing.assert_array_equal(fbank_TM, reader.read(np.array([7]))[0].astype(np.float32))
    np.testing.assert_array_equal(labels_C, reader.labels_NC[7])
    mean, std = reader.index.statistics(["train"])
    normalised = ShardDataset(shards, ["test", "train"], normalise_by=["train"])
    np.testing.assert_array_equal(normalised[7][0], (fbank_TM - mean) / (2 * std))
    assert len(list(raw)) == 29  # an index past the end ends an iteration
    with pytest.raises(UserError, match="no split nope"):
        ShardDataset(shards, ["nope"])


@pytest.mark.slow  # two processes that import torch
@pytest.mark.timeout(120)
def test_workers_of_a_loader_read_the_same_batches_forked_and_spawned(shards: Path) -> None:
    dataset = ShardDataset(shards, ["train", "test"], normalise_by=["train"])
    dataset[0]  # a forked worker inherits what is mapped
    alone = list(DataLoader(dataset, batch_size=4))
    for context in ("fork", "spawn"):
        batches = list(DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=context))
        assert len(batches) == len(alone) == 8
        for found, wanted in zip(batches, alone, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
