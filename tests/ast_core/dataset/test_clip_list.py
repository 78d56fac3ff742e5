"""Lists of clips in the usual formats, and the clips that they match."""

from __future__ import annotations

from pathlib import Path

import pytest

from ast_core.dataset.clip_list import cover, read_ids
from ast_core.errors import UserError

SEGMENTS = """# Segments csv created Sun Mar  5 10:54:25 2017
# num_ytids=20371, num_segs=20371
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_,/m/0bt9lr,/m/0jbk"
-_m2b3, 30.500, 40.500, "/m/0jbk"
"""


def test_segments_rows_are_named_as_their_clips(tmp_path: Path) -> None:
    (tmp_path / "eval_segments.csv").write_text(SEGMENTS)
    ids = read_ids(tmp_path / "eval_segments.csv")
    assert ids == ["--4gqARaEJE_0", "-_m2b3_30.5"]
    coverage = cover(ids, ["x_1", "-_m2b3_30.5"])
    assert (coverage.indices_N.tolist(), coverage.listed, coverage.absent) == ([1], 2, ("--4gqARaEJE_0",))


@pytest.mark.parametrize("text", ["a_30\nb_0\n", "clip_id,other\na_30,x\nb_0,y\n", "﻿ytid\na\nb\n", "a\na\nb_0\n"])
def test_plain_lists_headers_and_ids_without_their_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_text(text, encoding="utf-8")
    coverage = cover(read_ids(tmp_path / "list.txt"), ["b_0", "c_0", "a_30"])
    assert (coverage.indices_N.tolist(), coverage.listed, coverage.absent) == ([0, 2], 2, ())


def test_a_file_ending_may_be_missing() -> None:
    assert cover(["1-100032-A-0"], ["1-100032-A-0.wav"]).indices_N.tolist() == [0]


def test_a_missing_or_empty_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_ids(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n\n")
    with pytest.raises(UserError, match="has no ids"):
        read_ids(tmp_path / "empty.txt")
    (tmp_path / "sound.wav").write_bytes(b"RIFF\xff\xfe")
    with pytest.raises(UserError, match="not text"):
        read_ids(tmp_path / "sound.wav")


def test_a_list_with_an_endless_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("x" * 200_000)
    with pytest.raises(UserError, match="row 1, field larger"):
        read_ids(tmp_path / "list.txt")
