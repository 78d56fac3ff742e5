"""Recordings that are not local files are saved under names that every disk takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from packed_recordings import as_uris, write_parquet, write_tar

from ast_core.dataset.clips import Clip
from pipeline.run_folder.extracted_recordings import extract_recordings


def test_packed_recordings_are_saved_and_local_files_are_not(tmp_path: Path) -> None:
    contents = [b"RIFF and so on", b"fLaC and so on", b"something"]
    loose = tmp_path / "loose.wav"
    loose.write_bytes(contents[0])
    parquet, tar = write_parquet(tmp_path / "a.parquet", contents), write_tar(tmp_path / "a.tar", contents)
    here = Clip("here", str(loose), (), "test")
    clips = [
        here,
        *as_uris([dataclasses.replace(here, clip_id="there.wav")]),
        dataclasses.replace(parquet[1], clip_id="../../a b"),
        dataclasses.replace(parquet[1], clip_id="../../a?b"),
        tar[2],
        Clip("gone", f"file://{tmp_path}/gone.wav", (), "test"),
    ]
    paths = extract_recordings(clips, "", tmp_path / "saved")
    assert [path.read_bytes() for path in paths] == [contents[0], contents[0], contents[1], contents[1], contents[2]]
    assert paths[0] == loose
    assert paths[1].name == "there.wav"
    assert all(path.parent == tmp_path / "saved" for path in paths[1:])
    assert len({path.name for path in paths}) == len(paths)
    assert paths[2].suffix == ".flac"
