"""Read filterbanks from Parquet shards, fast and in any order.

A folder of shards has SPLIT/part-00000.parquet with its marker SPLIT/part-00000.json, the clip index SPLIT/clips.arrow,
rejects.parquet, and index.json, which is written last. The filterbank column is FixedSizeBinary, uncompressed, in row
groups of 8, so that a random row costs a fraction of a millisecond. Each row's CRC-32 is checked when it is read.

Shapes: N clips, B a batch of them, T frames, M mel bins, C classes.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ast_core.errors import DamagedError, UserError
from ast_core.shards.clip_index import CLIP_INDEX, read_clip_index
from ast_core.shards.clip_table import ClipIds, ClipTable, join_tables
from ast_core.shards.index import ShardIndex
from ast_core.shards.part_file import MappedParts, explain_damage, read_part, require_bytes
from ast_core.shards.sparse_labels import SparseLabels, TargetRows
from ast_core.shards.writer import row_crc32

LOG = logging.getLogger(__name__)


class ShardReader:
    """Reader of a prepared folder's splits as one list of clips.

    It may be pickled: the other process opens the same folder again.
    """

    def __init__(self, folder: Path, splits: Sequence[str]) -> None:
        """Check that every part is there, and map the clip index of each split.

        Without a clip index, as in shards of earlier versions, every part is opened, which takes some 4 ms a part.
        Parts are mapped when they are first read.

        Args:
            folder: folder of shards.
            splits: names of the splits, joined in this order.

        Raises:
            UserError: the folder has no shards, or a split does not exist.
            DamagedError: a part is missing or is not the committed file, or the counts of a split do not balance.
        """
        self.folder, self.splits = folder, tuple(splits)
        self.index = ShardIndex.load(folder)
        self.index.require_splits(splits)
        self.index.require_balance(splits)
        self._shape = (int(self.index.front_end["target_frames"]), int(self.index.front_end["num_mel_bins"]))
        parts = [
            (folder / split / part.name, part)
            for split in splits
            for part in self.index.splits[split].parts
            if part.rows
        ]
        for path, part in parts:
            require_bytes(path, part.bytes, part.rows * self._shape[0] * self._shape[1] * 2)
        self._paths = [path for path, _ in parts]
        self._first_N = np.cumsum([0, *(part.rows for _, part in parts)])
        self._clips = join_tables([self._open_split(split) for split in splits], len(self.index.labels))
        self.clip_ids = ClipIds(self._clips.ids)
        """Ids of the clips: a sequence of strings."""
        self.num_frames_N = self._clips.num_frames_N.copy()  # writable, as torch wants arrays
        """Decoded frames of each clip before padding or cutting, int32."""
        self.targets: TargetRows = self.labels
        """Targets of training: the labels, unless distillation replaces them."""
        self._parts = MappedParts(self._paths)

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what `pickle` opens the same clips with."""
        return _open_again, (self.folder.absolute(), self.splits, self.index.data_hash)

    def _open_split(self, split: str) -> ClipTable:
        """Return the clips of a split from its clip index, or else from its parts."""
        counts, classes = self.index.splits[split], len(self.index.labels)
        if counts.clip_index:
            try:
                return read_clip_index(self.folder / split / CLIP_INDEX, counts.clip_index, counts.rows, classes)
            except DamagedError as error:
                LOG.warning("%s All parts are opened instead, which takes longer; prepare writes it again.", error)
        paths = {self.folder / split / part.name: part.rows for part in counts.parts if part.rows}
        return join_tables([read_part(path, rows, self._shape, classes) for path, rows in paths.items()], classes)

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self._clips)

    @property
    def labels(self) -> SparseLabels:
        """Labels of the clips; `labels.rows(indices)` returns dense rows of some clips."""
        return self._clips.labels

    @property
    def labels_NC(self) -> np.ndarray:
        """Labels of all clips, 1 where a clip has the class, uint8 [N, C]; made anew at each use."""
        return self.labels.to_dense()

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read the filterbanks of clips in the given order; a clip may occur more than once.

        Args:
            indices: indices of clips, int64 [B].

        Returns:
            Raw log-mel, float16 [B, T, M].

        Raises:
            DamagedError: a part cannot be read, or its bytes are not the ones that were written; also if other clips
                were prepared into the folder since it was opened.
            IndexError: an index is out of range.
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices {indices.min()} to {indices.max()} are not all in 0 to {len(self) - 1}")
        out_BTM = np.empty((len(indices), *self._shape), np.float16)
        count = self._shape[0] * self._shape[1]
        part_B = np.searchsorted(self._first_N, indices, side="right") - 1
        for place, (index, part) in enumerate(zip(indices.tolist(), part_B.tolist(), strict=True)):
            with self._explain_change(), explain_damage(self._paths[part]):
                content, offset = self._parts.bytes_of(part), int(self._clips.offset_N[index])
                fbank_TM = np.frombuffer(content, "<f2", count, offset).reshape(self._shape)
                self._check_row(index, fbank_TM)
            out_BTM[place] = fbank_TM
        return out_BTM

    def _check_row(self, index: int, fbank_TM: np.ndarray) -> None:
        """Raise ValueError if a row's checksum differs."""
        clip_id = self.clip_ids[index]
        found = row_crc32(clip_id, self.labels.of_clip(index).tolist(), self.num_frames_N[index], fbank_TM.data)
        if found != self._clips.crc32_N[index]:
            raise ValueError(f"the checksum of clip {clip_id} differs")

    @contextlib.contextmanager
    def _explain_change(self) -> Iterator[None]:
        """Raise an error that says so if a part seems damaged because the folder was prepared anew."""
        try:
            yield
        except DamagedError as error:
            try:
                same = ShardIndex.load(self.folder).data_hash == self.index.data_hash
            except UserError:  # `prepare` removes the index while it works
                same = False
            if same:
                raise
            raise _changed_since(self.folder) from error


def _changed_since(folder: Path) -> DamagedError:
    return DamagedError(f"The shards in {folder} changed after they were opened. Start the program again.")


def _open_again(folder: Path, splits: Sequence[str], data_hash: str) -> ShardReader:
    """Open the shards that a pickled reader had open; DamagedError if they were prepared anew meanwhile."""
    reader = ShardReader(folder, splits)
    if reader.index.data_hash != data_hash:
        raise _changed_since(folder)
    return reader
