"""AudioSet's files are found under the names that downloaders give them, and every other file is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from ast_core.dataset.manifest import load_manifest

IDS = ["abcdefghijk", "-bcdefghij-", "_bc_efghij_", "Ybcdefghijk", "abc_1234567", "a-b_c-d_e-9", "__________1"]
NAMES = [
    "{id}", "{id}_30", "{id}_30_40", "{id}_30-40", "{id}_30000_40000", "{id}_30000-40000", "{id}_30.000_40.000",
    "{id}_30.000-40.000", "{id}_30.0_40.0", "{id}_000030", "{id}_000030_000040", "{id}_30000",
]  # fmt: skip


def write_lists(root: Path, **rows: str) -> None:
    root.mkdir(exist_ok=True)
    (root / "class_labels_indices.csv").write_text("index,mid,display_name\n0,/m/a,Dog\n")
    for split, text in rows.items():
        lines = [f'{line}, "/m/a"\n' for line in text.split("; ")]
        (root / f"{split}_segments.csv").write_text("".join(lines))


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def paths(root: Path) -> list[str]:
    return [clip.path and str(Path(clip.path).relative_to(root)) for clip in load_manifest(root).clips]


def counted(root: Path) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {found.reason: (found.count, found.examples) for found in load_manifest(root).unlisted}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("first", ["", "Y"])
def test_each_name_is_found_for_each_kind_of_id(tmp_path: Path, name: str, first: str) -> None:
    write_lists(tmp_path, eval="; ".join(f"{ytid}, 30.000, 40.000" for ytid in IDS))
    touch(tmp_path, *(f"audio/{first}{name.format(id=ytid)}.wav" for ytid in IDS))
    assert paths(tmp_path) == [f"audio/{first}{name.format(id=ytid)}.wav" for ytid in IDS]
    assert counted(tmp_path) == {}


@pytest.mark.parametrize("folder", ["wav", "train", "audio/wav/part0", "eval", "audios/e/f", "_b/x", "."])
def test_each_folder_is_searched(tmp_path: Path, folder: str) -> None:
    write_lists(tmp_path, eval="abcdefghijk, 30.000, 40.000")
    touch(tmp_path, f"{folder}/abcdefghijk_30_40.flac")
    assert len(load_manifest(tmp_path).clips[0].path) > 0
    assert counted(tmp_path) == {}


def test_fractions_of_seconds_are_found_written_out_and_cut(tmp_path: Path) -> None:
    rows = (
        "aaaaaaaaaaa, 1.500, 11.480; bbbbbbbbbbb, 0.000, 9.843; ccccccccccc, 2.250, 12.250; ddddddddddd, 3.100, 9.999"
    )
    write_lists(tmp_path, eval=rows)
    names = ["aaaaaaaaaaa_1_11", "bbbbbbbbbbb_0_9843", "ccccccccccc_2.250_12.250", "ddddddddddd_3_10"]
    touch(tmp_path, *(f"audio/{name}.wav" for name in names))
    assert paths(tmp_path) == [f"audio/{name}.wav" for name in names]


def test_two_segments_of_one_id_get_their_own_files(tmp_path: Path) -> None:
    write_lists(tmp_path, eval="abcdefghijk, 0.000, 10.000; abcdefghijk, 30.000, 40.000; abcdefghijk, 30.500, 40.500")
    names = ["abcdefghijk_0_10", "abcdefghijk_30000_40000", "abcdefghijk_30500_40500"]
    touch(tmp_path, *(f"audio/{name}.wav" for name in names))
    assert paths(tmp_path) == [f"audio/{name}.wav" for name in names]


def test_a_file_that_several_segments_share_is_counted(tmp_path: Path) -> None:
    write_lists(tmp_path, eval="abcdefghijk, 0.000, 10.000; abcdefghijk, 30.000, 40.000")
    touch(tmp_path, "audio/abcdefghijk.wav")
    assert paths(tmp_path) == ["audio/abcdefghijk.wav"] * 2
    ((reason, found),) = counted(tmp_path).items()
    assert "shared by several rows" in reason
    assert found == (1, ("audio/abcdefghijk.wav",))


def test_of_several_files_the_stated_rule_chooses_and_the_others_are_counted(tmp_path: Path) -> None:
    write_lists(tmp_path, eval="abcdefghijk, 0.000, 10.000")
    worst_first = [
        "audio/Yabcdefghijk.wav", "audio/abcdefghijk.mp3", "audio/abcdefghijk.wav", "eval/abcdefghijk.mp3",
        "audio/abcdefghijk_0.mp3", "audio/x/abcdefghijk_0_10.flac", "audio/a/abcdefghijk_0_10.flac",
        "audio/x/abcdefghijk_0_10.wav", "eval/x/abcdefghijk_0_10.mp3",
    ]  # fmt: skip
    for place, name in enumerate(worst_first):
        touch(tmp_path, name)
        assert paths(tmp_path) == [name]
        assert [count for count, _ in counted(tmp_path).values()] == ([place] if place else [])


def test_files_without_a_row_are_counted_by_reason(tmp_path: Path) -> None:
    write_lists(tmp_path, eval="abcdefghijk, 0.000, 10.000; missing__id, 0.000, 10.000")
    touch(
        tmp_path,
        "audio/abcdefghijk_0_10.wav",
        "audio/abcdefghijk_50_60.wav",
        "audio/zzzzzzzzzzz_0_10.wav",
        "audio/x.txt",
    )
    assert paths(tmp_path) == ["audio/abcdefghijk_0_10.wav", ""]
    assert counted(tmp_path) == {
        "named by the ID of a row, but with other times": (1, ("audio/abcdefghijk_50_60.wav",)),
        "audio, but named by no row of the lists": (1, ("audio/zzzzzzzzzzz_0_10.wav",)),
        "not audio": (1, ("audio/x.txt",)),
    }


def test_audio_in_a_further_root_is_found(tmp_path: Path) -> None:
    write_lists(tmp_path / "lists", eval="abcdefghijk, 0.000, 10.000")
    touch(tmp_path, "store/deep/abcdefghijk_0_10.wav", "store/other.wav")
    manifest = load_manifest(tmp_path / "lists", roots=[tmp_path / "store"])
    assert manifest.clips[0].path == str(tmp_path / "store/deep/abcdefghijk_0_10.wav")
    assert [found.examples for found in manifest.unlisted] == [(str(tmp_path / "store/other.wav"),)]
