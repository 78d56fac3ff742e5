"""Lists of any number of clips, in every format that the pipeline reads, without recordings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

CLASSES = 527
"""Number of classes, as in AudioSet."""
A_FOLDER = 1000
KINDS = ("csv", "jsonl", "json", "parquet", "audioset")


def write_list(folder: Path, kind: str, rows: int) -> Path:
    """Write a list of clips with one or two labels each; return the path that `load_manifest` takes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"clips.{kind}"
    if kind == "audioset":
        mids = "".join(f'{number},/m/{number},"Class, {number}"\n' for number in range(CLASSES))
        (folder / "class_labels_indices.csv").write_text(f"index,mid,display_name\n{mids}", encoding="utf-8")
        with (folder / "eval_segments.csv").open("w", encoding="utf-8") as file:
            for number, numbers in enumerate(label_numbers(rows)):
                file.write(f'id{number:09d}, 30.000, 40.000, "{",".join(f"/m/{label}" for label in numbers)}"\n')
        return folder
    if kind == "parquet":
        paths, labels = zip(*_clips(rows), strict=True)
        pq.write_table(pa.table({"path": paths, "labels": labels}), path)
        return path
    with path.open("w", encoding="utf-8") as file:
        if kind == "csv":
            file.write("path,labels\n")
            file.writelines(f"{name},{';'.join(labels)}\n" for name, labels in _clips(rows))
        else:
            begin, between, end = ("", "\n", "\n") if kind == "jsonl" else ("[", ",\n", "]\n")
            for number, (name, labels) in enumerate(_clips(rows)):
                file.write((between if number else begin) + json.dumps({"path": name, "labels": labels}))
            file.write(end)
    return path


def label_numbers(rows: int) -> Iterator[tuple[int, ...]]:
    """Yield the classes of each clip: one or two."""
    for number in range(rows):
        yield (number % CLASSES, number * 7 % CLASSES)[: 1 + number % 2]


def _clips(rows: int) -> Iterator[tuple[str, list[str]]]:
    for number, labels in enumerate(label_numbers(rows)):
        yield f"audio/{number // A_FOLDER:04d}/clip-{number:07d}.wav", [f"class {label}" for label in labels]
