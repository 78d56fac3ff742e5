"""Parquet files with recordings are listed from an object store as they are from a disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from parquet_recordings import recording, write
from pyarrow import fs

from ast_core.dataset.contents.clip_contents import read_contents
from ast_core.dataset.manifest import load_manifest
from ast_core.errors import UserError

pytestmark = pytest.mark.server


def test_a_bucket_lists_the_same_clips_as_a_folder(s3_store: dict[str, str], tmp_path: Path) -> None:
    cells = [recording(number) for number in range(12)]
    for folder, rows in {"bal_train": range(5), "unbal_train": range(5, 9), "eval": range(9, 12)}.items():
        columns = {
            "video_id": [f"v{row}" for row in rows],
            "audio": [cells[row] for row in rows],
            "labels": [["/m/b", "/m/a"][: 1 + row % 2] for row in rows],
        }
        write(tmp_path / f"copy/data/{folder}/00.parquet", columns)
    (tmp_path / "copy/class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/b,Dog\n1,/m/a,Cat\n")
    (tmp_path / "copy/README.md").write_text("text")
    filesystem, _ = fs.FileSystem.from_uri("s3://ast-tests")
    fs.copy_files(str(tmp_path / "copy"), "ast-tests/some copy", fs.LocalFileSystem(), filesystem)

    local, remote = load_manifest(tmp_path / "copy"), load_manifest("s3://ast-tests/some%20copy")
    assert remote.labels == local.labels == ("Dog", "Cat")
    assert [(clip.clip_id, clip.labels, clip.split, clip.member) for clip in remote.clips] == [
        (clip.clip_id, clip.labels, clip.split, clip.member) for clip in local.clips
    ]
    assert remote.clips[0].path == "s3://ast-tests/some%20copy/data/bal_train/00.parquet"
    assert [counts.sentence for counts in remote.unlisted] == ["1 file is not Parquet, for example README.md"]
    contents = dict(read_contents(remote.clips, remote.audio_column))
    assert {clip.clip_id: content for clip, content in contents.items()} == {
        f"v{row}": cells[row]["bytes"] for row in range(12)
    }
    part = load_manifest("s3://ast-tests/some%20copy/data/*al*/*.parquet", "audioset")
    assert {clip.split for clip in part.clips} == {"balanced_train", "unbalanced_train", "eval"}
    for place in ("ast-tests/none", "no-such-bucket/none"):
        with pytest.raises(UserError, match="does not exist"):
            load_manifest(f"s3://{place}")
