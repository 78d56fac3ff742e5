"""Prepared shards as a map-style data set of torch, for other training loops."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from ast_core.shards.clip_table import ClipIds
from ast_core.shards.reader import ShardReader


class ShardDataset(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Clips of a folder of shards, as pairs of a filterbank and its labels.

    A filterbank is float32 [T, M] and padded with 0. The labels are float32 [C]: 1 for each label of the clip, else 0.
    A `DataLoader` with workers, forked or spawned, may read the data set.

    Args:
        folder: folder of shards.
        splits: names of the splits, joined in this order.
        normalise_by: splits whose mean and standard deviation normalise the filterbanks as in a training of this
            project, `(fbank - mean) / (2 * std)`: name the training splits, for every split. Empty: raw log-mel.

    Raises:
        UserError: the folder has no shards, or a split does not exist.
        DamagedError: a part is missing or damaged; at `dataset[n]`, if it is the row.
    """

    def __init__(self, folder: str | Path, splits: Sequence[str], normalise_by: Sequence[str] = ()) -> None:
        self._reader = ShardReader(Path(folder), splits)
        self._mean, self._scale = 0.0, 1.0
        if normalise_by:
            self._mean, std = self._reader.index.statistics(normalise_by)
            self._scale = 2 * std

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, in the order of the label vectors."""
        return self._reader.index.labels

    @property
    def clip_ids(self) -> ClipIds:
        """Ids of the clips, a sequence of strings."""
        return self._reader.clip_ids

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._reader)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the filterbank and the labels of a clip; IndexError unless it is one of 0 to N - 1."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return several clips, as `DataLoader` asks for a batch."""
        chosen_B = np.asarray(indices, np.int64)
        fbank_BTM = torch.from_numpy(self._reader.read(chosen_B)).float()
        labels_BC = torch.from_numpy(self._reader.labels.rows(chosen_B)).float()
        return list(zip((fbank_BTM - self._mean) / self._scale, labels_BC, strict=True))
