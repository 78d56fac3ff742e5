"""CPU time of reading shards from the page cache in random order and in sequence, and of writing them.

The peer is a list column with pyarrow's defaults.

python benchmarks/shards.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from peers.comparison import arguments, interleave, one_core, print_machine, print_medians, print_ratio
from peers.made_data import write_shards
from peers.published_loader import list_table

from ast_core.config import FrontEndConfig
from ast_core.shards.reader import ShardReader
from ast_core.shards.writer import Row, write_part

GOAL = 0.5
CLIPS, ROUNDS = 512, 9
BATCH = 24
"""Rows of one read: the paper's batch of 12 clips and their mixup partners."""


def read_all(reader: ShardReader, order_N: np.ndarray) -> None:
    """Read every clip once, batch by batch."""
    for first in range(0, len(order_N), BATCH):
        reader.read(order_N[first : first + BATCH])


def read_list_column(path: Path) -> np.ndarray:
    """Read all filterbanks of a list column, [N, T * M]."""
    column = pq.read_table(path, columns=["fbank"]).column(0).combine_chunks()
    rows: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return rows


def compare_writing(folder: Path, fbank_NTM: np.ndarray, rounds: int) -> None:
    """Time writing these rows as a part, against a list column with pyarrow's defaults."""
    clips, frames, bins = fbank_NTM.shape
    names = [str(number) for number in range(clips)]

    def ours() -> None:
        rows = (Row(name, (0,), frames, fbank_TM) for name, fbank_TM in zip(names, fbank_NTM, strict=True))
        write_part(folder / "part.parquet", rows, {}, frames, bins)

    def peer() -> None:
        pq.write_table(list_table(names, [fbank_TM.ravel() for fbank_TM in fbank_NTM]), folder / "list.parquet")

    seconds = interleave({"list column": peer, "ours": ours}, rounds)
    print_medians(seconds, "CPU time of a row written, [1024, 128] float16", per=clips)
    print_ratio(seconds, "list column")


def compare_reading(folder: Path, reader: ShardReader, rounds: int) -> None:
    """Time both orders against each other, and against a list column read in sequence, its fastest order."""
    clips = len(reader)
    random_N = np.random.default_rng(0).permutation(clips)
    ways = {
        "list column": lambda: read_list_column(folder / "list.parquet"),
        "sequential": lambda: read_all(reader, np.arange(clips)),
        "random": lambda: read_all(reader, random_N),
    }
    fbank_NTM = reader.read(np.arange(clips))
    table = list_table(reader.clip_ids, [fbank_TM.ravel() for fbank_TM in fbank_NTM])
    pq.write_table(table, folder / "list.parquet")
    seconds = interleave(ways, rounds)
    print_medians(seconds, "CPU time of a row read and checked", per=clips)
    print_ratio(seconds, "sequential", "random", goal=GOAL)
    print_ratio(seconds, "list column", "random")


def main() -> None:
    """Write shards, then time reading and writing."""
    args = arguments(__doc__).parse_args()
    one_core()
    clips, rounds = (48, 2) if args.quick else (CLIPS, ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        folder = write_shards(Path(name), {"train": clips}, FrontEndConfig())
        reader = ShardReader(folder, ["train"])
        compare_reading(folder, reader, rounds)
        compare_writing(folder, reader.read(np.arange(min(64, clips))), rounds)
    print_machine()


if __name__ == "__main__":
    main()
