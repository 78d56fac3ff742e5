"""Loose files in an S3 store are listed as the same files of a folder are, from one listing of the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import servers
from loose_sources import MAKERS, write

from ast_core.dataset.manifest import load_manifest
from ast_core.storage.file_systems import join_uri


@pytest.fixture
def upload(s3_store: dict[str, str], place: str) -> Callable[[Path], None]:
    """Return a function that copies a folder to the store, below this test's own place."""
    prefix = place.removeprefix(f"s3://{servers.BUCKET}/")

    def copy(folder: Path) -> None:
        with servers.s3(s3_store) as client:
            for path in folder.rglob("*"):
                if path.is_file():
                    key = f"{prefix}/{path.relative_to(folder)}"
                    client.put_object(Bucket=servers.BUCKET, Key=key, Body=path.read_bytes())

    return copy


@pytest.mark.parametrize("make", MAKERS)
def test_a_store_lists_what_a_folder_lists(make: Any, upload: Any, place: str, tmp_path: Path) -> None:
    """Every layout is recognised, and clips, labels, splits and counts are equal."""
    top = tmp_path / "data"
    source = make(top / "a set")
    upload(top)
    local, remote = load_manifest(source), load_manifest(join_uri(place, str(source.relative_to(top))))
    expected = [join_uri(place, str(Path(clip.path).relative_to(top))) if clip.path else "" for clip in local.clips]
    assert [clip.path for clip in remote.clips] == expected
    assert [(clip.clip_id, clip.labels, clip.split, clip.start_s, clip.end_s) for clip in remote.clips] == [
        (clip.clip_id, clip.labels, clip.split, clip.start_s, clip.end_s) for clip in local.clips
    ]
    assert (remote.labels, remote.layout, remote.unlisted, remote.notes) == (
        local.labels, local.layout, local.unlisted, local.notes,
    )  # fmt: skip


def test_keys_that_no_folder_can_have_are_counted(
    upload: Any, place: str, tmp_path: Path, s3_store: dict[str, str]
) -> None:
    for name in ("dog/a.wav", "cat/a.wav"):
        write(tmp_path / "data", name)
    upload(tmp_path / "data")
    prefix = place.removeprefix(f"s3://{servers.BUCKET}/")
    with servers.s3(s3_store) as client:
        for key in (f"{prefix}/dog//b.wav", f"{prefix}/empty/"):
            client.put_object(Bucket=servers.BUCKET, Key=key, Body=b"")
    found = load_manifest(place)
    assert [clip.clip_id for clip in found.clips] == ["cat/a.wav", "dog/a.wav"]
    assert [(own.count, own.reason.partition(":")[0]) for own in found.unlisted] == [(1, "not read")]
