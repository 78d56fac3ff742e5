"""A source by its URI lists the clips that the same folder lists by its path, and its errors name the URI."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from loose_sources import MAKERS, WAV, esc50, manifest, write

from ast_core.config import Layout
from ast_core.dataset.clips import Manifest
from ast_core.dataset.layouts import detect_layout
from ast_core.dataset.loose.object_tree import ObjectTree
from ast_core.dataset.manifest import load_manifest
from ast_core.errors import UserError


def move(found: Manifest, folder: Path) -> Manifest:
    """Return a manifest whose local paths are URIs."""
    clips = [dataclasses.replace(c, path=c.path and (folder / c.path).as_uri()) for c in found.clips]
    return dataclasses.replace(found, clips=tuple(clips))


def decoded(found: Manifest) -> Manifest:
    """Return a manifest with percent-encoded names in one form: `#` and `ü` have several."""
    clips = [dataclasses.replace(c, path=c.path.replace("%C3%BC", "ü")) for c in found.clips]
    return dataclasses.replace(found, clips=tuple(clips))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("chosen", ["auto", "named"])
def test_a_uri_lists_what_the_folder_lists(make: Callable[[Path], Path], chosen: str, tmp_path: Path) -> None:
    source = make(tmp_path / "data set")
    layout: Layout = "auto" if chosen == "auto" else detect_layout(source)
    local, remote = load_manifest(source, layout), load_manifest(source.as_uri(), layout)
    assert decoded(remote) == decoded(move(local, tmp_path))
    assert len(local.clips) > 1
    assert detect_layout(source.as_uri()) == local.layout


def test_a_local_list_names_recordings_of_a_store(tmp_path: Path) -> None:
    source, store = manifest(tmp_path / "lists"), tmp_path / "store"
    (tmp_path / "lists" / "sub").rename(store)
    uri = store.as_uri()
    source.write_text(f"path,labels\na.wav,dog\n{uri}/b.wav,cat\n")
    found = load_manifest(source, roots=[uri])
    assert [clip.path for clip in found.clips] == [f"{uri}/a.wav", f"{uri}/b.wav"]
    assert [(own.count, own.examples) for own in found.unlisted] == [(1, ("c.wav",))]


def test_paths_out_of_the_source_are_refused(tmp_path: Path) -> None:
    source = manifest(tmp_path / "data")
    source.write_text("path,labels\n../a.wav,dog\n/etc/passwd,dog\ns3://other/b.wav,cat\nsub/a.wav,dog\n")
    with pytest.raises(UserError) as caught:
        load_manifest(source.as_uri())
    assert "3 problem(s)" in str(caught.value)
    assert f"{source.as_uri()}, row 4: the path 's3://other/b.wav' is outside {source.parent.as_uri()}/" in str(
        caught.value
    )
    assert "lists-" not in str(caught.value)  # the name of the temporary folder


def test_bad_rows_name_the_uri_and_the_row(tmp_path: Path) -> None:
    source = esc50(tmp_path / "esc")
    write(source, "meta/esc50.csv", "filename,fold,target,category\n1-a.wav,one,0,dog\n")
    with pytest.raises(UserError, match=f"{source.as_uri()}/meta/esc50.csv, row 2: "):
        load_manifest(source.as_uri())


@pytest.mark.parametrize("place", ["nothing", "empty"])
def test_a_uri_without_recordings_is_one_sentence(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"does not exist|is not recognised"):
        load_manifest((tmp_path / place).as_uri())


def test_groups_of_a_uri_are_those_of_the_folder(tmp_path: Path) -> None:
    for name in ("dog/anna_1.wav", "dog/ben_1.wav", "cat/anna_2.wav", "cat/ben_2.wav"):
        write(tmp_path, name)
    pattern = "([a-z]+)_"
    local, remote = (load_manifest(place, group=pattern) for place in (tmp_path, tmp_path.as_uri()))
    assert [clip.group for clip in remote.clips] == [clip.group for clip in local.clips] != [""] * 4


def test_a_uri_in_a_list_may_be_percent_encoded(tmp_path: Path) -> None:
    source = manifest(tmp_path / "data")
    write(source.parent, "sub/a b%20.wav")
    uri = source.parent.as_uri()
    source.write_text(f"path,labels\n{uri}/sub/a%20b%2520.wav,dog\n{uri}/sub/b.wav,cat\n")
    found = load_manifest(source.as_uri())
    assert [clip.path for clip in found.clips] == [f"{uri}/sub/a%20b%2520.wav", f"{uri}/sub/b.wav"]
    source.write_text(f"path,labels\n{uri}/sub/a b%20.wav,dog\n")
    assert load_manifest(source.as_uri()).clips[0].path == found.clips[0].path


def test_a_list_in_a_store_names_recordings_elsewhere(tmp_path: Path) -> None:
    source, store = manifest(tmp_path / "lists"), tmp_path / "store"
    (tmp_path / "lists" / "sub").rename(store)
    source.write_text("path,labels\na.wav,dog\nb.wav,cat\n../c.wav,cat\n")
    with pytest.raises(UserError, match=f"(?s)1 problem.*{source.as_uri()}, row 4: ") as caught:
        load_manifest(source.as_uri(), roots=[store.as_uri()])
    assert f"inside {store.as_uri()}, or" in str(caught.value)  # not the temporary folder
    source.write_text("path,labels\na.wav,dog\nb.wav,cat\n")
    found = load_manifest(source.as_uri(), roots=[store.as_uri()])
    assert [clip.path for clip in found.clips] == [f"{store.as_uri()}/a.wav", f"{store.as_uri()}/b.wav"]
    with pytest.raises(UserError, match="give one URI, or leave it empty"):
        load_manifest(source.as_uri(), roots=[store])


def test_objects_without_a_suffix_are_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        write(tmp_path, f"dog/{number}", WAV if number % 2 else b"no audio")
    looked: list[str] = []
    look = ObjectTree._look
    monkeypatch.setattr(ObjectTree, "_look", lambda tree, path: looked.append(path) or look(tree, path))
    found = load_manifest(tmp_path.as_uri(), "folders")
    assert len(found.clips) == 20
    assert len(looked) == 40
