"""Hostile lists of clips: one error names every bad row with its number, and a million rows need little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ast_core.dataset.manifest import load_manifest, read_manifest
from ast_core.dataset.problems import Problems
from ast_core.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # its lists of a million rows

from manifest import CHILD  # noqa: E402
from peers.made_lists import KINDS, write_list  # noqa: E402

LONG = "x" * 10_000_000
IMPORTS_MIB = 128
"""Memory that reading a list takes before its first row."""
Fault = dict[str, Any]
FAULTS: dict[str, Fault] = {
    "a way up": {"path": "../out.wav"},
    "a way up in the middle": {"path": "a/../../out.wav"},
    "absolute": {"path": "/etc/passwd"},
    "a link out": {"path": "link.wav"},
    "a folder that is a link out": {"path": "away/out.wav"},
    "NUL": {"path": "a\0.wav"},
    "NUL in the folder": {"path": "a\0/b.wav"},
    "no path": {"path": ""},
    "a folder": {"path": "audio/"},
    "the folder itself": {"path": "."},
    "an id that is there": {"clip_id": "good"},
    "an id over two lines": {"clip_id": "a\nb"},
    "an id that colours the terminal": {"clip_id": "\x1b[31m"},
    "labels or one label": {"labels": "dog, cat"},
    "a list as text": {"labels": "['dog']"},
    "a label over two lines": {"labels": "dog\ncat"},
    "a label with NUL": {"labels": "dog\0"},
    "a label of a page": {"labels": "d" * 5000},
    "a split that is a path": {"split": "../../x"},
    "a split with a blank": {"split": "a b"},
    "10 MB of path": {"path": LONG},
    "10 MB of id": {"clip_id": LONG},
    "10 MB of label": {"labels": LONG},
}
NOT_CSV: dict[str, Fault] = {
    "path is a number": {"path": 5},
    "path is nothing": {"path": None},
    "labels is a number": {"labels": 5},
    "a label is an object": {"labels": [{"a": 1}]},
    "a label is a list": {"labels": [["a"]]},
    "a label is a fraction": {"labels": [0.5]},
    "id is a list": {"clip_id": ["a"]},
    "split is true": {"split": True},
    "half a character": {"clip_id": "\ud800"},
}
"""Faults that a CSV's cells cannot have."""


def row_of(number: int, fault: Fault) -> dict[str, Any]:
    return {"path": f"{number}.wav", "labels": "dog", "clip_id": f"id-{number}", "split": "train"} | fault


def quoted(value: object) -> str:
    return '"' + str(value).replace('"', '""') + '"'


def write_csv(path: Path, rows: list[dict[str, Any]]) -> int:
    """Write a CSV with a byte-order mark and, in half the rows, Windows' line ends; return the first row's line."""
    lines = [
        ",".join(quoted(value) for value in row.values()) + ("\r\n" if n % 2 else "\n") for n, row in enumerate(rows)
    ]
    path.write_bytes(("\ufeffpath,labels,clip_id,split\r\n" + "".join(lines)).encode())
    return 2


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> int:
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(row) for row in rows).encode())
    return 1


def write_json(path: Path, rows: list[dict[str, Any]]) -> int:
    path.write_text(json.dumps(rows))
    return 1


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> int:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return 1


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], int]] = {
    "csv": write_csv, "jsonl": write_jsonl, "json": write_json, "parquet": write_parquet,
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make a data set's folder with links that lead out of it."""
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "out.wav").write_bytes(b"x")
    (folder / "link.wav").symlink_to(tmp_path / "out.wav")
    (folder / "away").symlink_to(tmp_path)
    (folder / "audio").mkdir()
    return folder


def refusal(source: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_manifest(source)
    return str(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", WRITERS)
def test_every_bad_row_is_named(kind: str, root: Path, measured) -> None:
    faults = FAULTS | (NOT_CSV if kind.startswith("json") else {})
    good = row_of(0, {"clip_id": "good"})
    rows = [good, *(row_of(number, fault) for number, fault in enumerate(faults.values(), 1)), row_of(99, {})]
    source = root / f"clips.{kind}"
    first = WRITERS[kind](source, rows)
    if kind == "csv":  # a row begins where its first line does: two of them have a second one
        lines, text = [], source.read_bytes().decode("utf-8-sig")
        number = first
        for row in rows:
            lines.append(number)
            number += 1 + sum(str(value).count("\n") for value in row.values())
        assert text.count("\n") + 1 == number
    else:
        lines = list(range(first, first + len(rows)))
    problems = Problems(1000)
    read_manifest(source, problems)
    with pytest.raises(UserError) as caught:
        problems.check()
    text = str(caught.value)
    assert text.startswith(f"{len(faults)} problem(s)"), text[:3000]
    for what, line in zip(faults, lines[1:-1], strict=True):
        assert f"clips.{kind}, row {line}: " in text, what
    assert all(len(line) < 400 for line in text.splitlines())
    assert text.isascii()
    measured("R12", kind=kind, faults=len(faults), named=text.count(f"clips.{kind}, row "))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_lines_that_are_not_rows_are_named(kind: str, root: Path, measured) -> None:
    head = b"path,labels\n" if kind == "csv" else b""
    good = b"a.wav,dog\n" if kind == "csv" else b'{"path": "a.wav", "labels": "dog"}\n'
    broken = {
        "not UTF-8": b"\xff\xfe\n",
        "UTF-16": "a.wav,dog".encode("utf-16") + b"\n",
        "10 MB without an end": b"x" * 10_000_000 + b"\n",
        "deep": b"[" * 100_000 + b"\n",
        "half a row": b'{"path": "b.wav"\n',
        "a number": b"12\n",
        "a long number": b"1" * 5000 + b"\n",
        "an open quote": b'"' + b"q" * 200_000,
    }
    source = root / f"clips.{kind}"
    source.write_bytes(head + good + b"".join(broken.values()))
    text = refusal(source)
    first = 3 if kind == "csv" else 2
    assert text.startswith(f"{len(broken)} problem(s)"), text
    for number, what in enumerate(broken, first):
        assert f"row {number}: " in text, what
    measured("R12", kind=kind, broken_lines=len(broken), named=text.count(", row "))


def test_parquet_rows_that_are_not_utf8_are_named(root: Path) -> None:
    paths = [f"{number}.wav".encode() for number in range(100)]
    paths[41] = b"\xff.wav"
    unchecked = pa.array(paths, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"path": unchecked, "labels": ["dog"] * 100}), root / "clips.parquet")
    assert "1 problem(s)" in refusal(root / "clips.parquet")
    assert "clips.parquet, row 42: the row is not UTF-8" in refusal(root / "clips.parquet")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clips.csv", b"path,labels,path\na.wav,dog,../b.wav\n"),
        ("clips.csv", "path,labels\na.wav,dog\n".encode("utf-16")),
        ("clips.csv", b""),
        ("clips.csv", b"\0" * 1000),
        ("clips.json", b"[" * 1_000_000),
        ("clips.json", b'{"path": "a.wav"}'),
        ("clips.json", b"\xff\xfe[]"),
        ("clips.parquet", b"PAR1" + b"\0" * 100 + b"PAR1"),
        ("clips.parquet", b"PAR1\xff\xff\xff\x7fPAR1"),
        ("clips.jsonl", b"\x80\x04cos\nsystem\n(S'true'\ntR."),
    ],
)
def test_files_that_are_not_lists_are_refused_by_name(root: Path, name: str, content: bytes) -> None:
    (root / name).write_bytes(content)
    assert str(root / name) in refusal(root / name)


@pytest.mark.timeout(20)
def test_a_pipe_is_refused(root: Path) -> None:
    os.mkfifo(root / "clips.csv")
    with pytest.raises(UserError):
        load_manifest(root / "clips.csv", "manifest")
    os.mkfifo(root / "class_labels_indices.csv")
    (root / "eval_segments.csv").write_text("")
    assert "not a regular file" in refusal(root)


@pytest.mark.timeout(60)
def test_hostile_rows_of_audioset(root: Path, measured) -> None:
    (root / "class_labels_indices.csv").write_text('index,mid,display_name\n0,/m/a,"Speech, near"\n')
    (root / "audio" / "out.wav").symlink_to(root.parent / "out.wav")
    rows = [
        b'good, 0, 10, "/m/a"\r',
        b'good, 0, 10, "/m/a"',
        b'unknown, 0, 10, "/m/zzz"',
        b'../../etc, 0, 10, "/m/a"',
        b'/etc/passwd, 0, 10, "/m/a"',
        b'out, 0, 10, "/m/a"',
        b'nul\0, 0, 10, "/m/a"',
        b'back, 10, 0, "/m/a"',
        b'endless, 0, 1e999, "/m/a"',
        b'\xff\xfe, 0, 10, "/m/a"',
        b"x" * 10_000_000,
        b'many, 0, 10, "' + b",".join([b"/m/b"] * 200_000) + b'"',
        b'open, 0, 10, "/m/a',
    ]
    (root / "eval_segments.csv").write_bytes(b"\xef\xbb\xbf" + b"\n".join(rows))
    text = refusal(root)
    assert text.startswith(f"{len(rows) - 1} problem(s)"), text
    assert all(f"eval_segments.csv, row {number}: " in text for number in range(2, len(rows) + 1))
    (root / "class_labels_indices.csv").write_text(
        "index,mid,display_name\n0,/m/a,Dog\n1,/m/a,Cat\n2,/m/b,Dog\n3,/m/c,a\x1bb\n"
    )
    text = refusal(root)
    assert all(f"class_labels_indices.csv, row {number}: " in text for number in (3, 4, 5))
    measured("R12", kind="audioset", faults=len(rows) - 1 + 3)


def test_esc50_rows_that_contradict_others_are_named(root: Path) -> None:
    (root / "meta").mkdir()
    rows = ["a.wav,1,0,dog", "b.wav,1,1,dog", "c.wav,1,2,c\0t", "d\x1b.wav,1,0,dog", "../e.wav,1,0,dog"]
    (root / "meta" / "esc50.csv").write_text("filename,fold,target,category\n" + "\n".join(rows))
    text = refusal(root)
    assert all(f"esc50.csv, row {number}: " in text for number in (3, 4, 5, 6))


def test_file_names_that_cannot_be_printed_are_refused(root: Path) -> None:
    for name in (
        b"ok.wav",
        b"\xff.wav",
        b"two\nlines.wav",
        b"terminal\x1b[2J.wav",
    ):  # the second is from an old disk and accepted
        Path(os.fsdecode(os.fsencode(root) + b"/audio/" + name)).write_bytes(b"x")
    (root / "away").unlink()
    text = refusal(root)
    assert text.startswith("2 problem(s)")
    assert text.isascii()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "kind", [kind if kind == "csv" else pytest.param(kind, marks=pytest.mark.long) for kind in KINDS]
)
def test_a_million_rows_in_bounded_memory(kind: str, tmp_path: Path, many, measured) -> None:
    """Check the memory that a million rows take; the short form lists a quarter, in a quarter of the memory."""
    rows = many(250_000, 1_000_000)
    source = write_list(tmp_path, kind, rows)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(source)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    clips, seconds, peak_mib = done.stdout.split()
    assert int(clips) == rows
    assert int(peak_mib) <= many(1024 // 4 + IMPORTS_MIB, 1024)
    measured("R12", kind=kind, rows=rows, cpu_s=float(seconds), peak_mib=int(peak_mib))


@pytest.mark.timeout(120)
def test_a_list_of_faults_only_is_refused_as_quickly(tmp_path: Path, measured) -> None:
    rows = 100_000
    (tmp_path / "clips.csv").write_text("path,labels\n" + "../up.wav,dog\n" * rows)
    text = refusal(tmp_path / "clips.csv")
    assert text.startswith(f"{rows} problem(s)")
    assert text.endswith(f"... and {rows - 20} more")
    measured("R12", faults_counted=rows, shown=20)
