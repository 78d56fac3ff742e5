"""R7: a file that is not audio, is unusual, or is a trap, is rejected alone; the other clips are prepared."""

from __future__ import annotations

import multiprocessing
import os
import random
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from hostile_audio import kinds, remove, write_hostile
from listed_audio import files, prepare_settings, rejects, require_balance, rows, write_clips, write_list

from ast_core.audio.waveform import load_waveform
from ast_core.dataset.manifest import load_manifest
from ast_core.errors import ClipError
from pipeline.prepare import prepare

pytestmark = pytest.mark.slow

SHORT_GOOD, GOOD = 100, 400
"""Good recordings of the short and of the long form."""
UNPRIVILEGED_UID = 65_534


@pytest.mark.usefixtures("without_ray")
@pytest.mark.timeout(300)
def test_hostile_recordings_among_good_ones(
    tmp_path: Path, many: Callable[[int, int], int], fault_seed: int, measured: Callable[..., None]
) -> None:
    names = write_clips(tmp_path / "data", good := many(SHORT_GOOD, GOOD))
    for round_number in range(many(1, 10)):
        rng = random.Random(fault_seed + round_number)
        fates = write_hostile(tmp_path / "data", rng)
        assert len(fates) >= 40
        mixed = [*names, *fates]
        rng.shuffle(mixed)
        listing = write_list(tmp_path / "data" / "list.csv", mixed, test=60)
        shards = tmp_path / f"shards-{round_number}" / "shards"
        index = prepare(prepare_settings(listing, shards))
        counts = require_balance(index, shards, len(mixed))
        refused, kept = rejects(shards), rows(shards)
        assert {name for name, fate in fates.items() if fate} == set(refused)
        for name, entry in refused.items():
            wanted = kinds()[int(name[4:6])], fates[name]
            assert entry["stage"] == fates[name], (wanted, entry)
            assert entry["reason"], wanted
            assert entry["path"] == str(tmp_path / "data" / name), wanted
            assert entry["split"] in {"train", "test"}
        assert set(kept) == {*names, *(name for name, fate in fates.items() if not fate)}
    # Without the bad ones: the good clips' rows to the byte, and, where they are listed but not there, the files too.
    alone = tmp_path / "alone" / "shards"
    prepare(prepare_settings(write_list(tmp_path / "data" / "good.csv", names), alone))
    assert rows(alone) == {name: kept[name] for name in names}
    for name, fate in fates.items():
        path = tmp_path / "data" / name
        if fate:
            remove(path)
    absent = tmp_path / "absent" / "shards"
    prepare(prepare_settings(listing, absent))
    assert files(absent, "*.parquet").keys() == files(shards, "*.parquet").keys()
    parts = files(shards, "part-*.parquet")
    assert files(absent, "part-*.parquet") == parts
    measured(
        "R7", kinds=len(fates), good=good, rounds=round_number + 1, counts=dict(counts), identical_files=len(parts)
    )


def _try_to_read(path: Path, answer: Connection) -> None:
    if os.geteuid() == 0:
        os.setuid(UNPRIVILEGED_UID)  # root may read everything
    try:
        load_waveform(path, 16_000)
    except ClipError as error:
        answer.send((error.stage, error.reason))
    else:
        answer.send(("", "it was read"))


@pytest.mark.timeout(60)
def test_a_file_without_read_permission_is_rejected(measured: Callable[..., None]) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:  # only their owner may read pytest's own folders
        Path(folder).chmod(0o755)
        path = Path(folder) / write_clips(Path(folder), 1)[0]
        path.chmod(0)
        process = context.Process(target=_try_to_read, args=(path, theirs))
        process.start()
        assert ours.recv() == ("read", "Permission denied")
        process.join()
    measured("R7", unreadable=1)


def test_every_kind_is_listed_once(tmp_path: Path) -> None:
    fates = write_hostile(tmp_path / "data", random.Random(0))
    clips = load_manifest(write_list(tmp_path / "data" / "list.csv", list(fates), test=1)).clips
    assert [clip.clip_id for clip in clips if clip.split == "train"] == list(fates)[1:]
