"""R13: recordings of no sample, of one sample and of ten hours each get an outcome, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
import torch
from hostile_audio import ten_hours, write_silence
from listed_audio import RATE_HZ, prepare_settings, write_list
from prepared import FRONT_END, LABELS

from ast_core.audio.decoder import Decoder, Recording
from ast_core.audio.waveform import load_waveform, read_blocks
from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.dataset.manifest import load_manifest
from ast_core.evaluation.predictor import Predictor
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.weights.bundle import Bundle, write_bundle
from pipeline.preparation.part_writer import write_shard_part
from pipeline.prepare import plan

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
WINDOW = (FRONT_END.target_frames - 1) * 160 + 400
LENGTHS = {
    "none": 0, "one": 1, "one short of an analysis window": 399, "an analysis window": 400,
    "one short of a window": WINDOW - 1, "a window": WINDOW, "a window and a half": WINDOW * 3 // 2,
}  # fmt: skip
SHORT = {
    "none": "decode: the file has no samples",
    "one": "fbank: 1 samples",
    "one short of an analysis window": "fbank: 399 samples",
}
MEASURED = """
import sys, threading, time
from pathlib import Path
import psutil
from pipeline.predict import predict
from pipeline.cli.stages import PredictSettings
model, recording, output = sys.argv[1:]
most = {"anonymous": 0, "decoder": 0}
def kilobytes(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
def look():
    while True:
        anonymous = kilobytes("RssAnon")
        decoder = sum(child.memory_info().rss // 1024 for child in psutil.Process().children())
        most.update(anonymous=max(most["anonymous"], anonymous), decoder=max(most["decoder"], decoder))
        time.sleep(0.02)
threading.Thread(target=look, daemon=True).start()
predict(PredictSettings(inputs=(recording,), model=model, output=output))
print("KB", most["anonymous"], most["decoder"], kilobytes("VmHWM"))  # ru_maxrss would be the parent's
"""
"""Program that predicts and prints its memory. Anonymous memory is private to a process; resident memory includes 300
MB of torch's files."""


def write_lengths(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = {name: folder / f"clip-{n:02d}.wav" for n, name in enumerate(LENGTHS)}
    for name, path in paths.items():
        soundfile.write(path, rng.normal(0, 0.1, LENGTHS[name]), RATE_HZ)
    paths["silence"] = folder / "clip-50.wav"
    soundfile.write(paths["silence"], np.zeros(RATE_HZ), RATE_HZ)
    paths["ten hours"] = folder / "clip-51.wav"
    ten_hours(paths["ten hours"])
    return paths


def write_long_window_bundle(folder: Path) -> Path:
    """Write a bundle of a small model with windows of ten seconds, as AudioSet's; ten hours are 3,516 windows."""
    torch.manual_seed(0)
    front_end = FrontEndConfig(target_frames=1024, num_mel_bins=16)
    model = ModelConfig(backbone="ast_micro", patch_time=128, time_stride=128, freq_stride=16, init="scratch")
    weights = AST(model, 16, 1024, len(LABELS)).state_dict()
    identity = {"model": to_dict(model), "front_end": to_dict(front_end), "labels": list(LABELS), "loss": "bce"}
    write_bundle(folder, [("seed-0", weights, {**identity, "mean": -6.0, "std": 4.0})], True)
    return folder


@pytest.mark.timeout(120)
def test_prepare_writes_an_outcome_for_each_length(tmp_path: Path, measured: Callable[..., None]) -> None:
    paths = write_lengths(tmp_path / "data")
    listing = write_list(tmp_path / "data" / "list.csv", [path.name for path in paths.values()], test=1)
    settings = prepare_settings(listing, tmp_path / "shards")
    found: dict[str, str] = {}
    for part in plan(settings, load_manifest(listing, "manifest"), listing):
        refused = {row["clip_id"]: f"{row['stage']}: {row['reason']}" for row in write_shard_part(part)}
        found |= {clip.clip_id: refused.get(clip.clip_id, "kept") for clip in part.clips}
    for name, path in paths.items():
        assert found[path.name].startswith(SHORT.get(name, "kept")), name
    measured("R13", prepared=len(found), refused=sum(outcome != "kept" for outcome in found.values()))


@pytest.mark.timeout(170)
def test_predicting_hours_needs_no_more_memory_than_a_second(
    tmp_path: Path, many: Callable[[int, int], int], measured: Callable[..., None]
) -> None:
    paths, bundle = write_lengths(tmp_path / "data"), write_long_window_bundle(tmp_path / "bundle")
    paths["hours"] = tmp_path / "data" / "hours.wav"
    write_silence(paths["hours"], hours := many(1, 10))
    mb: dict[str, list[float]] = {}
    for name in ("silence", "hours"):
        command = [sys.executable, "-c", MEASURED, str(bundle), str(paths[name]), str(tmp_path / "scores.json")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        mb[name] = [int(word) * 1024 / 1e6 for word in done.stdout.split("KB")[1].split()]
        (row,) = json.loads((tmp_path / "scores.json").read_text())
        assert row["error"] == ""
    own, decoder, resident = mb["hours"]
    assert own + decoder < 600
    assert resident - mb["silence"][2] < 150  # as samples, an hour is 230 MB
    measured(
        "R13", hours=hours, own_mb=own, decoder_mb=decoder, resident_mb=resident, own_mb_of_a_second=mb["silence"][0],
        resident_mb_of_a_second=mb["silence"][2],
    )  # fmt: skip


@pytest.mark.timeout(120)
def test_predict_scores_or_refuses_each_length(tmp_path: Path, trained_bundle: Path) -> None:
    predictor, decoder = Predictor(Bundle.load(trained_bundle)), Decoder()
    for name, path in write_lengths(tmp_path / "data").items():
        if name in SHORT:
            with pytest.raises(Exception, match=SHORT[name]):
                predictor.probabilities(Recording(path, RATE_HZ, decoder))
        elif name != "ten hours":
            scores_C = predictor.probabilities(Recording(path, RATE_HZ, decoder))
            assert np.array_equal(scores_C, predictor.probabilities(load_waveform(path, RATE_HZ)))
            assert np.isfinite(scores_C).all()


@pytest.mark.timeout(120)
def test_predicting_blocks_equals_predicting_the_complete_recording(
    tmp_path: Path, trained_bundle: Path, many: Callable[[int, int], int], measured: Callable[..., None]
) -> None:
    path, predictor = tmp_path / "long.flac", Predictor(Bundle.load(trained_bundle))
    rng = np.random.default_rng(1)
    soundfile.write(path, rng.normal(0, 0.1, 44_100 * many(60, 1800)), 44_100)
    whole_N = load_waveform(path, RATE_HZ)
    assert len(list(read_blocks(path, RATE_HZ))) > 3
    recording = Recording(path, RATE_HZ, Decoder())
    difference = np.abs(predictor.probabilities(recording) - predictor.probabilities(whole_N)).max()
    ours, theirs = predictor.timeline(recording, 0.5), predictor.timeline(whole_N, 0.5)
    np.testing.assert_array_equal(ours[0], theirs[0])
    difference = max(difference, np.abs(ours[1] - theirs[1]).max())
    assert difference < 1e-6
    measured("R13", seconds=many(60, 1800), largest_difference_of_a_probability=float(difference))
