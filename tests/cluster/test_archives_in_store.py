"""Archives in an object store are read once: their listings are kept, and made again for archives that change."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import servers
import webdataset_archives as archives
from webdataset_archives import sample

from ast_core.dataset.archives import tar_listing
from ast_core.dataset.archives.tar_archive import list_tar_members
from ast_core.dataset.contents.clip_contents import read_contents
from ast_core.dataset.manifest import Manifest, load_source
from ast_core.dataset.source_options import Columns, SourceOptions
from ast_core.dataset.stratified_split import TENTHS_OF_CLASSES
from ast_core.errors import UserError
from ast_core.storage.object_store import ObjectStore


@pytest.fixture
def streamed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the archives that were read, in the order in which they were opened."""
    opened: list[str] = []

    class Counted(tar_listing.OpenedTar):
        def __init__(self, path: str) -> None:
            opened.append(path.rpartition("/")[2])
            super().__init__(path)

    monkeypatch.setattr(tar_listing, "OpenedTar", Counted)
    return opened


@pytest.fixture
def put(s3_store: dict[str, str], place: str) -> Any:
    """Return a function that writes an archive to the store."""
    prefix = place.removeprefix(f"s3://{servers.BUCKET}/")

    def write(name: str, content: bytes) -> None:
        with servers.s3(s3_store) as client:
            client.put_object(Bucket=servers.BUCKET, Key=f"{prefix}/data/{name}", Body=content)

    return write


def load(source: str | Path, listings: Path | None, **more: Any) -> Manifest:
    return load_source(source, "auto", SourceOptions(listings=listings, **more), TENTHS_OF_CLASSES)


def rows(manifest: Manifest) -> list[tuple[Any, ...]]:
    return [(clip.clip_id, clip.labels, clip.split, clip.member) for clip in manifest.clips]


def test_archives_in_a_store_are_streamed_once(put: Any, place: str, streamed: list[str], tmp_path: Path) -> None:
    """The second listing reads none of them, also with another key of the labels; a changed archive is listed anew."""
    local, names = tmp_path / "data", [f"train/{number:02d}.tar" for number in range(20)] + ["test/a.tar"]
    for place_, name in enumerate(names):
        members = [*sample("k", ["a"], number=place_), ("x.flac", archives.flac()), ("x.json", b'{"label": "b"}')]
        put(name, archives.write(local / name, members).read_bytes())
    uri, listings = f"{place}/data", tmp_path / "run/archive-listings"
    expected = load(local, None)
    streamed.clear()
    first = load(uri, listings)
    assert rows(first) == rows(expected)
    assert sorted(streamed) == sorted(name.rpartition("/")[2] for name in names)
    assert len(list(listings.iterdir())) == len(names)
    streamed.clear()
    assert rows(load(uri, listings)) == rows(expected)
    with pytest.raises(UserError, match="the JSON has no key other"):
        load(uri, listings, columns=Columns("other"))
    assert not streamed
    contents = {clip.clip_id: content for clip, content in read_contents(first.clips)}
    assert contents["train/07/k"] == archives.flac(7)

    put("train/07.tar", archives.pack([*sample("new", ["a"])]))
    changed = load(uri, listings)
    assert streamed == ["07.tar"]
    assert "train/07/new" in {clip.clip_id for clip in changed.clips}
    assert len(list(listings.iterdir())) == len(names)

    damaged = sorted(listings.iterdir())[3]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 3] ^= 1
    damaged.write_bytes(content)
    streamed.clear()
    assert rows(load(uri, listings)) == rows(changed)
    assert len(streamed) <= 1
    assert rows(load(uri, None)) == rows(changed)


def test_listings_are_in_the_store_of_the_run_too(put: Any, place: str, streamed: list[str], tmp_path: Path) -> None:
    """Another node with an empty copy of the run folder downloads them."""
    put("train/0.tar", archives.pack(sample("k", ["a"])))
    seen = []
    for node in ("a", "b"):
        run = tmp_path / node
        ObjectStore(run, f"{place}/run").attach()
        seen.append(rows(load(f"{place}/data", run / "archive-listings")))
    assert seen[0] == seen[1]
    assert streamed == ["0.tar"]


def test_damage_in_a_store_is_named_and_not_kept(put: Any, place: str, tmp_path: Path) -> None:
    content = archives.pack(sample("k", ["a"]))
    put("train/0.tar", content)
    put("train/1.tar", content[:1540])
    with pytest.raises(UserError, match=r"1 problem\(s\)") as caught:
        load(f"{place}/data", tmp_path)
    assert "train/1.tar: the archive has 1540 bytes, but its member 'k.json' ends at byte" in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 1
    assert [member.name for member in list_tar_members(f"{place}/data/train/0.tar")] == ["k.flac", "k.json"]


def test_many_requests_read_a_large_archive(
    put: Any, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ast_core.dataset.archives.tar_archive.REMOTE_BYTES", 2000)
    members = [one for number in range(50) for one in sample(f"k{number}", ["a"], number=number * 30)]
    path = archives.write(tmp_path / "data/a.tar", members)
    put("a.tar", path.read_bytes())
    expected = [dataclasses.replace(clip, path="") for clip in load(tmp_path / "data", None).clips]
    assert [dataclasses.replace(clip, path="") for clip in load(f"{place}/data", None).clips] == expected
