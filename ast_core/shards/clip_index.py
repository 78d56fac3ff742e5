"""The clip index of a split: all columns of its parts except the filterbanks in one Arrow file, which readers map.

`index.json` holds its SHA-256. So it belongs to the parts that `index.json` lists, and another or a damaged one is
noticed.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path

import pyarrow as pa

from ast_core.errors import DamagedError
from ast_core.shards.clip_table import SCHEMA, ClipTable
from ast_core.storage.atomic_files import atomic_write, sha256_of

CLIP_INDEX = "clips.arrow"
"""Name of the file in the folder of a split."""


def write_clip_index(path: Path, clips: ClipTable) -> str:
    """Commit the clip index of a split, and return the SHA-256 of its bytes.

    Raises:
        NoRoomError: the disk is full.
        UserError: the file cannot be written.
    """
    batch = clips.to_arrow()
    with atomic_write(path, batch.nbytes) as temporary:
        with temporary.open("wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            writer.write_batch(batch)
        return sha256_of(temporary)


def read_clip_index(path: Path, sha256: str, rows: int, classes: int) -> ClipTable:
    """Map the clip index of a split; its arrays are read from the disk when they are used.

    Args:
        path: Arrow file.
        sha256: hash that its bytes must have.
        rows: number of clips of the split.
        classes: number of labels.

    Raises:
        DamagedError: the file is missing, or is not the one that `prepare` wrote with the parts.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise ValueError(f"its sha256 is {found}, not {sha256}")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # the file that was hashed
        reader = pa.ipc.open_file(pa.py_buffer(mapped))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        if len(batches) != 1 or batches[0].num_rows != rows:
            raise ValueError(f"it has {sum(batch.num_rows for batch in batches)} clips, not {rows}")
        return ClipTable.from_arrow(batches[0], classes)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, OverflowError) as error:
        raise DamagedError(f"The clip index {path} is missing, damaged or of other shards ({error}).") from error
