"""A working copy and its store: what is committed is there first, what is fetched is whole, what is removed is gone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import servers
import torch
from prepared import write_shards

from ast_core.errors import DamagedError, UserError
from ast_core.shards.reader import ShardReader
from ast_core.storage.atomic_files import atomic_write, list_stored, matches_store, remove_folder
from ast_core.storage.json_files import write_json
from ast_core.storage.object_store import ObjectStore, store_of
from ast_core.weights import checkpoint
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import EvaluateSettings
from pipeline.run_folder import downloads, sync

pytestmark = [pytest.mark.server, pytest.mark.timeout(120)]


def copy_of(uri: str, root: Path) -> ObjectStore:
    """Return a node's working copy."""
    store = ObjectStore(root, uri)
    store.attach()
    return store


def names(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def overwrite(store: ObjectStore, path: Path, content: bytes, scratch: Path) -> None:
    """Put other bytes into the store behind the working copy's back."""
    scratch.write_bytes(content)
    store.push(path, scratch)


def save(folder: Path, step: int) -> None:
    checkpoint.save(folder / f"step-{step:08d}", {"model": {"weight": torch.full((64,), float(step))}}, {"step": step})
    checkpoint.remove_older(folder, 2)


def test_what_is_committed_on_one_node_is_brought_to_another_and_what_is_removed_is_gone(uri: str, tmp_path) -> None:
    first, second = copy_of(uri, tmp_path / "a"), copy_of(uri, tmp_path / "b")
    write_json(first.root / "deep" / "note.json", {"value": 1})
    with atomic_write(first.root / "deep" / "data.bin") as temporary:
        temporary.write_bytes(bytes(1000))
    (first.root / "deep" / "log.txt").write_text("not committed, so of this node alone")
    assert {path.name for path in list_stored(first.root)} == {"note.json", "data.bin"}
    downloads.download_files(second.root, ["deep/*"])
    assert names(second.root) == {"deep/note.json", "deep/data.bin"}
    stored = list_stored(second.root)
    assert len(stored) == 2
    assert matches_store(second.root / "deep" / "data.bin", stored[second.root / "deep" / "data.bin"])

    write_json(first.root / "deep" / "note.json", {"value": 2})  # as many bytes, in the same second
    downloads.download_files(second.root, ["deep/*"])
    assert json.loads((second.root / "deep" / "note.json").read_text()) == {"value": 2}
    remove_folder(second.root / "deep", "note.json")
    assert list_stored(first.root) == {}
    assert names(second.root) == set()


def test_an_ordinary_folder_has_no_store_and_commits_as_ever(tmp_path: Path) -> None:
    write_json(tmp_path / "note.json", 1)
    assert store_of(tmp_path / "note.json") is None
    assert list_stored(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["note.json"]


def test_the_newest_checkpoint_comes_whole_and_older_ones_go(uri: str, tmp_path: Path) -> None:
    first, second = copy_of(uri, tmp_path / "a"), copy_of(uri, tmp_path / "b")
    for step in (1, 2, 3):
        save(first.root / "checkpoints", step)
    stored = {path.parent.name for path in list_stored(first.root)}
    assert stored == {"step-00000002", "step-00000003"}
    downloads.download_checkpoint(second.root / "checkpoints")
    newest, passed_over = checkpoint.newest(second.root / "checkpoints")
    assert newest == second.root / "checkpoints" / "step-00000003"
    assert passed_over == []
    save(second.root / "checkpoints", 4)  # the second node goes on: it removes what only the first one has
    assert {path.parent.name for path in list_stored(first.root)} == {"step-00000003", "step-00000004"}
    downloads.download_checkpoint(first.root / "checkpoints")
    assert [path.name for path in (first.root / "checkpoints").iterdir()] == ["step-00000004"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "marker"])
def test_a_checkpoint_that_is_damaged_in_the_store_is_passed_over(
    uri: str, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = copy_of(uri, tmp_path / "a"), copy_of(uri, tmp_path / "b")
    for step in (1, 2):
        save(first.root / "checkpoints", step)
    weights = first.root / "checkpoints" / "step-00000002" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    if damage == "gone":
        first.remove(weights)
    elif damage == "marker":
        overwrite(first, weights.parent / checkpoint.MARKER, b"{", tmp_path / "scratch")
    else:
        overwrite(first, weights, bytes(content) if damage == "flipped" else bytes(content[:-8]), tmp_path / "scratch")
    downloads.download_checkpoint(second.root / "checkpoints")
    newest, _ = checkpoint.newest(second.root / "checkpoints")
    assert newest == second.root / "checkpoints" / "step-00000001"
    assert "step-00000002" in (said := capsys.readouterr().out)
    assert ("is missing" if damage == "gone" else "damaged") in said


def test_shards_come_by_split_and_again_where_they_changed(uri: str, tmp_path: Path) -> None:
    first, second = copy_of(uri, tmp_path / "a"), copy_of(uri, tmp_path / "b")
    write_shards(first.root / "shards", {"train": 9, "test": 6})
    settings = EvaluateSettings(run_dir=second.root, shards=second.root / "shards", storage=uri)
    sync.download_inputs(settings, ["test"])
    assert names(second.root) == {"shards/index.json", "shards/test/part-00000.parquet"}
    assert len(ShardReader(second.root / "shards", ["test"])) == 6
    part = second.root / "shards" / "test" / "part-00000.parquet"
    whole, inode = part.read_bytes(), part.stat().st_ino
    sync.download_inputs(settings, ["test"])
    assert part.stat().st_ino == inode, "what is there already is not fetched again"
    part.write_bytes(whole[:-10])
    sync.download_inputs(settings, ["test"])
    assert part.read_bytes() == whole

    overwrite(first, first.root / "shards" / "train" / "part-00000.parquet", whole, tmp_path / "scratch")
    with pytest.raises(DamagedError, match=r"train/part-00000.parquet is damaged: sha256"):
        sync.download_inputs(settings, ["train"])
    assert not (second.root / "shards" / "train" / "part-00000.parquet").exists()
    first.remove(first.root / "shards" / "train" / "part-00000.parquet")
    with pytest.raises(DamagedError, match="is missing"):
        sync.download_inputs(settings, ["train"])


UPLOAD = """
import sys
from pathlib import Path
from ast_core.storage.atomic_files import atomic_write
with atomic_write(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(bytes(256 << 20))
    print("uploading", flush=True)
"""


def test_a_kill_inside_an_upload_leaves_nothing_that_looks_whole(s3_store, place: str, tmp_path: Path) -> None:
    store = copy_of(place, tmp_path / "a")
    path = store.root / "big.bin"
    with servers.s3(s3_store) as client:
        with subprocess.Popen(
            [sys.executable, "-c", UPLOAD, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
        ) as uploader:
            begun: list[object] = []
            while not begun:
                assert uploader.poll() is None
                uploads = client.list_multipart_uploads(Bucket=servers.BUCKET).get("Uploads", [])
                begun = [upload for upload in uploads if upload["Key"].endswith("big.bin")]
                time.sleep(0.02)
            uploader.kill()
        keys = {entry["Key"] for entry in client.list_objects_v2(Bucket=servers.BUCKET).get("Contents", [])}
    assert not any(key.endswith("big.bin") for key in keys)
    assert not path.exists()
    assert store.read(path) is None


def test_a_store_that_does_not_answer_is_one_sentence_and_commits_nothing(tmp_path: Path, s3_store) -> None:
    port = servers.free_port("127.0.0.1")
    place = f"s3://{servers.BUCKET}/down?endpoint_override=http%3A%2F%2F127.0.0.1:{port}"
    store = copy_of(place, tmp_path / "a")
    with pytest.raises(UserError, match=rf"s3://{servers.BUCKET}/down/x.json.* could not be written.*run the same"):
        write_json(store.root / "x.json", 1)
    assert names(store.root) == set()
    no_bucket = copy_of("s3://there-is-none/run", tmp_path / "b")
    with pytest.raises(UserError, match=r"(?i)s3://there-is-none/run/x.json could not be written.*bucket"):
        write_json(no_bucket.root / "x.json", 1)


def test_folders_and_uris_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds keys"):
        copy_of("s3://key:secret@bucket/run", tmp_path / "a")
    for uri in ("s4://bucket/run", "bucket/run", "s3://"):
        with pytest.raises(UserError, match=r"Give s3://bucket/prefix|give s3://bucket/prefix"):
            copy_of(uri, tmp_path / "a")
    here, there = (f"file://{tmp_path / name}" for name in ("here", "there"))
    copy_of(here, tmp_path / "run")
    with pytest.raises(UserError, match="is a working copy of"):
        copy_of(there, tmp_path / "run")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "seconds.json").touch()
    with pytest.raises(UserError, match=r"holds seconds.json. Choose an empty folder"):
        copy_of(there, tmp_path / "old")
    flags = ["--recipe", "demo", "--run-dir", str(tmp_path / "run" / "in"), "--storage", there]
    inside = parse_settings(EvaluateSettings, "", flags)
    with pytest.raises(UserError, match="lies in a working copy"):
        sync.download_inputs(inside)


def test_shards_outside_the_run_are_a_working_copy_of_their_own(tmp_path: Path) -> None:
    uri = f"file://{tmp_path / 'stored'}"
    flags = ["--recipe", "demo", "--run-dir", str(tmp_path / "run"), "--shards", str(tmp_path / "parts")]
    settings = parse_settings(EvaluateSettings, "", [*flags, "--storage", f"{uri}/"])
    sync.download_inputs(settings)
    assert [store.uri for store in sync.object_stores(settings)] == [uri, f"{uri}/shards"]
    later = parse_settings(EvaluateSettings, "", flags)  # without the flag: what is a working copy stays one
    assert sync.object_stores(later) == sync.object_stores(settings)
