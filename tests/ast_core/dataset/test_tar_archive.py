"""Members of tar archives are found by their headers as Python's tarfile finds them, and damage is named."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import webdataset_archives as archives
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_core.dataset.archives.tar_archive import FILE, LINK, NO_END, SPARSE, OpenedTar, TarMember, list_tar_members
from ast_core.errors import UserError

FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def by_tarfile(path: Path) -> list[TarMember]:
    with tarfile.open(path) as archive:
        return [TarMember(info.name, info.offset_data, info.size) for info in archive if info.isreg()]


def entries(path: Path) -> list[tuple[str, str]]:
    with OpenedTar(str(path)) as archive:
        return [(entry.name, entry.kind) for entry in archive.entries()]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(list_tar_members(str(path)))
    assert str(path) in str(caught.value)
    return str(caught.value)


names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0/"), min_size=1, max_size=40)
paths = st.lists(names.filter(lambda name: name not in {".", ".."}), min_size=1, max_size=8).map("/".join)


@settings(max_examples=150, deadline=None)
@given(
    members=st.lists(st.tuples(paths, st.binary(max_size=1600)), min_size=1, max_size=6),
    form=st.sampled_from(["gnu", "pax"]),
    common=st.booleans(),
)
def test_names_places_and_sizes_are_those_of_tarfile(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, bytes]], form: str, common: bool
) -> None:
    path = tmp_path_factory.mktemp("tar") / "a.tar"
    out = io.BytesIO()
    headers = {"comment": "of all members"} if common and form == "pax" else None
    with tarfile.open(fileobj=out, mode="w", format=FORMS[form], pax_headers=headers) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    path.write_bytes(out.getvalue())
    found = list(list_tar_members(str(path)))
    assert found == by_tarfile(path)
    assert [path.read_bytes()[m.first_byte : m.first_byte + m.size] for m in found] == [data for _, data in members]
    assert list(list_tar_members(f"file://{path}")) == found


def test_prefixes_of_ustar_names_are_read(tmp_path: Path) -> None:
    name = f"{'folder/' * 15}{'k' * 90}.flac"
    path = archives.write(tmp_path / "a.tar", [(name, b"x" * 700), ("b.json", b"{}")])
    assert list(list_tar_members(str(path))) == by_tarfile(path)
    assert by_tarfile(path)[0].name == name


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "posix", "ustar", "v7"])
def test_archives_of_the_program_tar_are_read(tmp_path: Path, form: str) -> None:
    deep = tmp_path / "in" / ("f" * 60 if form != "v7" else "f")
    deep.mkdir(parents=True)
    long = "k" * (60 if form in {"v7", "ustar"} else 150)
    (deep / f"{long}.flac").write_bytes(b"x" * 1000)
    (deep / "é.json").write_bytes(b"{}")
    path = tmp_path / "a.tar"
    subprocess.run(["tar", f"--format={form}", "-cf", path, "-C", tmp_path / "in", "."], check=True)
    assert sorted(list_tar_members(str(path))) == sorted(by_tarfile(path))
    assert len(by_tarfile(path)) == 2


def test_sparse_files_links_and_folders_are_kinds_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with (folder / "a.flac").open("wb") as file:
        for place in range(30):  # more holes than the map in a GNU header has
            file.seek(place << 20)
            file.write(b"x" * 4096)
    (folder / "b.flac").write_bytes(b"fLaC")
    (folder / "c.flac").symlink_to("b.flac")
    (folder / "d.flac").hardlink_to(folder / "b.flac")
    for form in ("gnu", "pax"):
        path = tmp_path / f"{form}.tar"
        listed = ["tar", f"--format={form}", "--sparse", "--sort=name", "-cf", path, "-C", folder, "."]
        subprocess.run(listed, check=True)
        found = {Path(name).name: kind for name, kind in entries(path)}
        assert found["a.flac"] == SPARSE
        assert found["b.flac"] == FILE
        assert found["c.flac"] == found["d.flac"] == LINK


def test_sizes_in_base_256_are_read(tmp_path: Path) -> None:
    content = archives.pack([("a.flac", b"x" * 600)], tarfile.GNU_FORMAT)
    header = bytearray(content[:512])
    header[124:136] = b"\x80" + (600).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header) + content[512:])
    assert list(list_tar_members(str(path))) == by_tarfile(path) == [TarMember("a.flac", 512, 600)]


def test_damage_is_named_with_its_place(tmp_path: Path) -> None:
    good = archives.pack([("a.flac", b"x" * 600), ("b.flac", b"y" * 600)])
    path = tmp_path / "a.tar"

    def damaged(content: bytes) -> str:
        path.write_bytes(content)
        return refusal(path)

    assert "its member 'b.flac' ends at byte 2648: the archive is cut off" in damaged(good[:2200])
    assert "at byte 1536, after the member 'a.flac' is damaged: the archive is cut off" in damaged(good[:1800])
    flipped = bytearray(good)
    flipped[1540] ^= 1
    assert "the header at byte 1536, after the member 'a.flac' is damaged: the checksum" in damaged(bytes(flipped))
    assert "the file is compressed (gzip)" in damaged(b"\x1f\x8b" + bytes(700))
    assert "the file is no tar archive" in damaged(b"text" * 300)
    assert "the file is no tar archive" in damaged(b"")
    assert "as if archives were joined with cat" in damaged(good + good)
    path.write_bytes(good[:3072])
    assert entries(path)[-1] == ("", NO_END)
    path.write_bytes(good[: 3072 + 512])
    assert len(list(list_tar_members(str(path)))) == 2


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert "not a regular file" in refusal(tmp_path)
    assert "cannot be read: No such file" in refusal(tmp_path / "absent.tar")
