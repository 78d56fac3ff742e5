"""R8: a recording that crashes or hangs the decoder, or takes all memory, costs only itself.

`hostile_decoder` makes the decoder fail by signals, by waiting and by allocating.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from listed_audio import flags, prepare_settings, rejects, require_balance, rows, write_clips, write_list
from prepared import LABELS

from ast_core.audio.decoder import Decoder
from ast_core.audio.waveform import load_waveform
from ast_core.dataset.manifest import load_manifest
from ast_core.errors import ClipError
from ast_core.evaluation.prediction_table import ERROR, PROBABILITIES
from ast_core.shards.index import ShardIndex
from pipeline.preparation.part_writer import write_shard_part
from pipeline.prepare import plan, prepare
from pipeline.tracking.pyfunc import Tagger
from pipeline.tracking.serving_requests import AUDIO

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "tests" / "support" / "hostile_decoder"
REASONS = {
    "SEGV": "the decoder crashed (SIGSEGV)",
    "ABRT": "the decoder crashed (SIGABRT)",
    "BLOB": "decoding it takes more than 512 MB of memory",
    "HANG": "the decoder gave no answer in 4 s",
}
LIMIT_S = 4.0
"""Limit of the decoder's silence. A decoder starts in a third of a second, but takes longer on a busy machine."""


def hostile(folder: Path, name: str, fault: str) -> Path:
    path = folder / name
    path.write_bytes(fault.encode() + bytes(1000))
    return path


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    monkeypatch.setenv("PYTHONPATH", str(SHIM))
    return Decoder(LIMIT_S)


def processes() -> set[int]:
    """Return the ids of the decoders that this process started."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            found |= {child.pid} if "decoder_process" in " ".join(child.cmdline()) else set()
    return found


@pytest.mark.timeout(900)
def test_each_fault_costs_its_clip_alone(
    tmp_path: Path, decoder: Decoder, many: Callable[[int, int], int], fault_seed: int, measured: Callable[..., None]
) -> None:
    rng = random.Random(fault_seed)
    good = [tmp_path / name for name in write_clips(tmp_path, 20)]
    faults = ["SEGV", "ABRT", "BLOB", *rng.choices(["SEGV", "ABRT", "BLOB"], k=many(5, 97))]
    faults.insert(rng.randrange(1, len(faults)), "HANG")
    before, slowest_s = processes(), 0.0
    for number, fault in enumerate(faults):
        for path in rng.sample(good, 2):
            np.testing.assert_array_equal(decoder.load(path, 16_000), load_waveform(path, 16_000))
        (process,) = processes() - before
        started = time.monotonic()
        with pytest.raises(ClipError) as refused:
            decoder.load(hostile(tmp_path, f"bad-{number}.wav", fault), 16_000)
        slowest_s = max(slowest_s, time.monotonic() - started - 2 * LIMIT_S * (fault == "HANG"))
        assert (refused.value.stage, refused.value.reason) == ("decode", REASONS[fault])
        assert psutil.pid_exists(process) == (fault == "BLOB")  # only a decoder that ran out of memory survives
    for path in good:
        np.testing.assert_array_equal(decoder.load(path, 16_000), load_waveform(path, 16_000))
    decoder.close()
    assert processes() == before
    measured("R8", faults=len(faults), hangs=1, slowest_refusal_beyond_the_limit_s=slowest_s)


@pytest.mark.timeout(120)
def test_a_decoder_killed_from_outside_does_not_reject_a_clip(tmp_path: Path, decoder: Decoder) -> None:
    (name,) = write_clips(tmp_path, 1)
    whole = decoder.load(tmp_path / name, 16_000)
    for pid in processes():
        psutil.Process(pid).kill()
    np.testing.assert_array_equal(decoder.load(tmp_path / name, 16_000), whole)
    with pytest.raises(OSError, match=r"was killed .SIGKILL.; is there enough memory"):
        decoder.load(hostile(tmp_path, "bad.wav", "KILL"), 16_000)
    decoder.close()


@pytest.mark.timeout(120)
def test_a_decoder_ends_when_its_worker_is_killed(tmp_path: Path) -> None:
    (name,) = write_clips(tmp_path, 1)
    script = f"""
import time
from ast_core.audio.decoder import Decoder
decoder = Decoder()
decoder.load({str(tmp_path / name)!r}, 16_000)
print(decoder._process.pid, flush=True)
time.sleep(1000)
"""
    worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    assert worker.stdout is not None
    process = psutil.Process(int(worker.stdout.readline()))
    worker.kill()
    worker.wait()
    psutil.wait_procs([process], timeout=60)
    assert not process.is_running()


NO_PROC = """
import pathlib, resource
set_limit, is_file = resource.setrlimit, pathlib.Path.is_file
def refuse_address_space(kind, limits):
    if kind == resource.RLIMIT_AS:
        raise ValueError("current limit exceeds maximum limit")
    set_limit(kind, limits)
resource.setrlimit = refuse_address_space
pathlib.Path.is_file = lambda path: not str(path).startswith("/proc/") and is_file(path)
"""
"""What the decoder's process sees on macOS; Python runs it as `sitecustomize` when the process starts."""


@pytest.mark.timeout(120)
def test_files_are_decoded_where_memory_cannot_be_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mac").mkdir()
    (tmp_path / "mac" / "sitecustomize.py").write_text(NO_PROC)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "mac"))
    (name,) = write_clips(tmp_path, 1)
    decoder = Decoder(LIMIT_S)
    np.testing.assert_array_equal(decoder.load(tmp_path / name, 16_000), load_waveform(tmp_path / name, 16_000))
    assert decoder._process is not None
    limits = Path(f"/proc/{decoder._process.pid}/limits").read_text()
    assert re.search(r"Max address space +unlimited", limits)
    decoder.close()


@pytest.mark.timeout(120)
def test_a_server_survives_hostile_recordings(
    tmp_path: Path, trained_bundle: Path, monkeypatch: pytest.MonkeyPatch, measured: Callable[..., None]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SHIM))
    good = (tmp_path / write_clips(tmp_path, 1)[0]).read_bytes()
    recordings = [good, b"SEGV", good, b"ABRT", b"", good]
    table = Tagger(trained_bundle).predict(pd.DataFrame({AUDIO: recordings}))
    assert [bool(reason) for reason in table[ERROR]] == [recording != good for recording in recordings]
    assert table[ERROR][1] == f"decode: {REASONS['SEGV']}"
    assert len({scores[LABELS[0]] for scores in table[PROBABILITIES] if scores is not None}) == 1
    measured("R8", served=len(recordings), crashes=2)


@pytest.mark.timeout(300)
def test_prepare_finishes_and_names_the_rejected_clips(
    tmp_path: Path, many: Callable[[bool, bool], bool], monkeypatch: pytest.MonkeyPatch, measured: Callable[..., None]
) -> None:
    """Check the shards; the short form makes the parts in this process, the long form in workers as a user does."""
    names = write_clips(tmp_path / "data", 40)
    bad = {f"bad-{n:02d}.wav": fault for n, fault in enumerate(["SEGV", "HANG", "ABRT", "BLOB"])}
    for name, fault in bad.items():
        hostile(tmp_path / "data", name, fault)
    mixed = sorted([*names, *bad], key=lambda name: (int(name[-6:-4]), name))  # each among good ones
    settings = prepare_settings(
        write_list(tmp_path / "data" / "list.csv", mixed), tmp_path / "run" / "shards", 20, decode_limit_s=LIMIT_S
    )
    monkeypatch.setenv("PYTHONPATH", str(SHIM))
    if many(False, True):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        command = [sys.executable, "pipeline/prepare.py", *flags(settings)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        listing = Path(settings.data.source)
        for part in plan(settings, load_manifest(listing, "manifest"), listing):
            write_shard_part(part)
        prepare(settings)
    counts = require_balance(ShardIndex.load(settings.shards), settings.shards, len(mixed))
    found = {name: row["reason"] for name, row in rejects(settings.shards).items()}
    assert found == {name: REASONS[fault] for name, fault in bad.items()}
    assert set(rows(settings.shards)) == set(names)
    measured("R8", of_a_stage=dict(counts))
