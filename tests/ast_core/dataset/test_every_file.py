"""Every file below a source is a clip or is counted, whatever its suffix, and links are followed only by permission."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ast_core.dataset.audio_suffixes import starts_like_audio
from ast_core.dataset.manifest import load_manifest
from ast_core.errors import UserError

TONE = 0.1 * np.sin(np.arange(1600) / 5)
NOT_AUDIO = {
    "text": b"hello",
    "UTF-16 text": "hello".encode("utf-16"),
    "picture": b"\xff\xd8\xff\xe0" + b"\0" * 20,
    "HEIC picture": b"\0\0\0\x18ftypheic" + b"\0" * 20,
    "zip": b"PK\3\4" + b"\0" * 20,
    "zeros": b"\0" * 100,
    "empty": b"",
}


def write_audio(path: Path, kind: str = "WAV") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, TONE, 16_000, format=kind)


def touch(root: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def counted(source: Path, *roots: Path) -> dict[str, int]:
    return {found.reason: found.count for found in load_manifest(source, "auto", roots).unlisted}


@pytest.mark.parametrize(
    "suffix",
    [
        "wave",
        "aifc",
        "sph",
        "voc",
        "rf64",
        "w64",
        "caf",
        "au",
        "m4a",
        "aac",
        "WMA",
        "webm",
        "3gp",
        "amr",
        "mkv",
        "Opus",
    ],
)
def test_a_file_with_any_audio_suffix_is_a_clip(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, f"bell/a.{suffix}", "siren/b.wav")
    assert [clip.clip_id for clip in load_manifest(tmp_path).clips] == [f"bell/a.{suffix}", "siren/b.wav"]


@pytest.mark.parametrize(
    "kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64", "NIST", "VOC", "WAVEX"]
)
def test_audio_without_a_suffix_is_recognised_by_its_first_bytes(tmp_path: Path, kind: str) -> None:
    write_audio(tmp_path / "bell" / "recording", kind)
    write_audio(tmp_path / "bell" / "recording.backup.1", kind)
    assert [clip.clip_id for clip in load_manifest(tmp_path).clips] == ["bell/recording", "bell/recording.backup.1"]


@pytest.mark.parametrize("what", NOT_AUDIO)
def test_other_content_is_not_audio(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_bytes(NOT_AUDIO[what])
    assert not starts_like_audio(str(tmp_path / "file"))


@pytest.mark.timeout(20)
def test_pipes_and_folders_are_not_audio(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert not any(starts_like_audio(str(tmp_path / name)) for name in ("pipe", ".", "absent"))


def test_every_file_of_class_folders_is_a_clip_or_counted(tmp_path: Path) -> None:
    touch(tmp_path, "bell/a.wav", "bell/notes.txt", "bell/._a.wav", "_other/b.wav", "_other/deep/c.wav", ".git/obj")
    touch(tmp_path, "loose.wav", "README", "train.d/x.flac", "bell/deep/er/d.wav", "bell/_take2/e.wav")
    manifest = load_manifest(tmp_path)
    counts = {found.reason: (found.count, found.examples) for found in manifest.unlisted}
    assert counts == {
        "in skipped folders, whose names begin with '.' or '_'": (3, (".git", "_other")),
        "audio, but in no class folder": (1, ("loose.wav",)),
        "not audio": (2, ("README", "bell/notes.txt")),
        "hidden": (1, ("bell/._a.wav",)),
    }
    files = sum(len(names) for _, _, names in os.walk(tmp_path))
    assert files == len(manifest.clips) + sum(count for count, _ in counts.values())
    assert "1 file is hidden, for example bell/._a.wav" in [found.sentence for found in manifest.unlisted]


def test_every_file_of_split_folders_is_a_clip_or_counted(tmp_path: Path) -> None:
    touch(tmp_path, "train/dog/a.wav", "train/loose.txt", "test/dog/b.wav", "train/_x/c.wav", "test/dog/cover.jpg")
    assert counted(tmp_path) == {"not audio": 2, "in skipped folders, whose names begin with '.' or '_'": 1}


def test_every_file_of_speech_commands_is_a_clip_or_counted(tmp_path: Path) -> None:
    touch(tmp_path, "yes/a.wav", "_background_noise_/hum.wav", "LICENSE", "top.wav")
    touch(tmp_path, "testing_list.txt", content=b"yes/a.wav\n")
    assert counted(tmp_path) == {
        "not audio": 1,
        "in skipped folders, whose names begin with '.' or '_'": 1,
        "audio, but in no class folder": 1,
    }


def test_files_that_no_row_of_esc50_names_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "audio/a.wav", "audio/b.wav", "audio/c", "LICENSE", "meta/more.xls")
    touch(tmp_path, "meta/esc50.csv", content=b"filename,fold,target,category\na.wav,1,0,dog\n")
    assert counted(tmp_path) == {"not audio": 3, "audio, but named by no row of the list": 1}


def test_files_that_no_row_of_a_manifest_names_are_counted_in_the_folders_that_rows_name(tmp_path: Path) -> None:
    touch(tmp_path, "wav/a.wav", "wav/b.wav", "wav/a.json", "elsewhere/c.wav", "notes.txt")
    touch(tmp_path, "list.csv", content=b"path,labels\nwav/a.wav,dog\n")
    assert counted(tmp_path / "list.csv") == {"not audio": 1, "audio, but named by no row of the list": 1}


def test_a_file_used_by_a_link_is_not_counted_again(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "store/a.wav",
        "store/b.wav",
        "meta/esc50.csv",
        content=b"filename,fold,target,category\na.wav,1,0,d\n",
    )
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio/a.wav").symlink_to(tmp_path / "store/a.wav")
    assert counted(tmp_path) == {"audio, but named by no row of the list": 1}


def test_names_that_a_terminal_refuses_are_counted_as_escapes(tmp_path: Path) -> None:
    touch(tmp_path, "bell/a.wav")
    (tmp_path / "bell" / "red\x1b[31m.txt").write_bytes(b"x")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bell/\xff.txt")).write_bytes(b"x")
    (found,) = load_manifest(tmp_path).unlisted
    assert found.count == 2
    assert all(example.isprintable() for example in found.examples)


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """Make a list and a class folder whose recordings lie elsewhere."""
    touch(tmp_path, "store/dog/a.wav", "store/dog/b.wav", "lists/keep.txt", "folders/cat/c.wav")
    (tmp_path / "folders/dog").symlink_to(tmp_path / "store/dog")
    (tmp_path / "lists/list.csv").write_text(f"path,labels\n{tmp_path}/store/dog/a.wav,dog\ndog/b.wav,dog\n")
    (tmp_path / "lists/up.csv").write_text("path,labels\n../store/dog/a.wav,dog\n")
    return tmp_path


@pytest.mark.parametrize("source", ["lists/list.csv", "lists/up.csv", "folders"])
def test_recordings_elsewhere_are_refused_with_the_flags_that_allow_them(apart: Path, source: str) -> None:
    with pytest.raises(UserError, match=r"--data\.root"):
        load_manifest(apart / source)
    clips = load_manifest(apart / source, roots=[apart / "store"]).clips
    assert {Path(clip.path).name for clip in clips} >= {"a.wav"}
    assert all(Path(clip.path).is_file() for clip in clips)


def test_links_are_followed_by_permission_alone(apart: Path) -> None:
    with pytest.raises(UserError, match=r"is a link out of .*--data\.follow-links"):
        load_manifest(apart / "folders")
    clips = load_manifest(apart / "folders", follow_links=True).clips
    assert [clip.clip_id for clip in clips] == ["cat/c.wav", "dog/a.wav", "dog/b.wav"]


def test_a_further_root_allows_no_other_folder(apart: Path) -> None:
    (apart / "store/out").symlink_to(apart / "folders/cat")
    for path in (f"{apart}/folders/cat/c.wav", "../folders/cat/c.wav", "out/c.wav", "dog/../../folders/cat/c.wav"):
        (apart / "lists/list.csv").write_text(f"path,labels\n{path},dog\n")
        with pytest.raises(UserError, match=r"--data\.root"):
            load_manifest(apart / "lists/list.csv", roots=[apart / "store"])
    with pytest.raises(UserError, match="is not a folder"):
        load_manifest(apart / "lists/list.csv", roots=[apart / "absent"])


def test_folders_that_link_to_each_other_are_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.wav")
    (tmp_path / "dog/again").symlink_to(tmp_path / "dog")
    (tmp_path / "dog/broken").symlink_to(tmp_path / "nowhere")
    assert [clip.clip_id for clip in load_manifest(tmp_path).clips] == ["dog/a.wav"]


def test_a_link_to_another_class_folder_is_counted_and_gives_its_files_no_second_class(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.wav", "dog/sub/b.wav", "cat/c.wav")
    (tmp_path / "puppy").symlink_to(tmp_path / "dog")
    (tmp_path / "cat/up").symlink_to("..")
    (tmp_path / "cat/part").symlink_to(tmp_path / "dog/sub")
    manifest = load_manifest(tmp_path)
    assert [clip.clip_id for clip in manifest.clips] == ["cat/c.wav", "dog/a.wav", "dog/sub/b.wav"]
    assert [(own.count, own.noun, own.examples) for own in manifest.unlisted] == [
        (3, "folder", ("cat/part", "cat/up", "puppy"))
    ]
