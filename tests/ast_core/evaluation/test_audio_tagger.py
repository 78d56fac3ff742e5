"""Recordings in files and arrays have one answer, and what is no recording is refused by name."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from bundles import LABELS, write_run
from conftest import SaveTone

import ast_core
from ast_core.audio.waveform import load_waveform
from ast_core.errors import UserError
from ast_core.evaluation.audio_tagger import AudioTagger
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.decisions import Decisions

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> AudioTagger:
    """Return an ensemble of two members with random weights."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return ast_core.load(folder / "bundles" / "ensemble", device="cpu")


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def test_a_file_has_the_probabilities_of_the_predictor_sorted(
    model: AudioTagger, tmp_path: Path, save_tone: SaveTone
) -> None:
    path = save_tone(tmp_path / "tone.wav", seconds=3.0)
    found = model.predict(path)
    expected_C = Predictor(model.bundle).probabilities(load_waveform(path, RATE_HZ))
    assert found == dict(zip(LABELS, expected_C.tolist(), strict=True))
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found == model.predict(str(path))
    assert all(type(score) is float for score in found.values())


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("kind", ["int16", "int32", "float32"])
def test_an_array_has_the_answer_of_its_file(
    model: AudioTagger, tmp_path: Path, rate_hz: int, channels: int, kind: str
) -> None:
    path, subtype = tmp_path / "a.wav", {"int16": "PCM_16", "int32": "PCM_32", "float32": "FLOAT"}[kind]
    samples_NC = np.stack([noise(rate_hz, seed) for seed in range(channels)], axis=1)
    soundfile.write(path, samples_NC, rate_hz, subtype=subtype)
    samples, rate = soundfile.read(path, dtype=kind)
    assert model.predict(samples, rate) == model.predict(path)


def test_tensors_and_float64_and_a_float_rate_are_taken(model: AudioTagger) -> None:
    samples_N = noise(9_000)
    expected = model.predict(samples_N, RATE_HZ)
    assert model.predict(torch.from_numpy(samples_N), RATE_HZ) == expected
    assert model.predict(samples_N.astype(np.float64), np.float64(RATE_HZ)) == expected
    assert model.predict(samples_N[:, None], sample_rate_hz=RATE_HZ) == expected


def test_several_recordings_have_a_list_in_their_order(model: AudioTagger, tmp_path: Path, save_tone: SaveTone) -> None:
    paths = [save_tone(tmp_path / f"{n}.wav", pitch_hz=200.0 * (n + 1)) for n in range(3)]
    one_by_one = [model.predict(path) for path in paths]
    assert model.predict(paths) == one_by_one
    assert model.predict(sorted(tmp_path.glob("*.wav"))) == one_by_one
    assert model.predict(path for path in paths) == one_by_one
    samples_N = noise(9_000)
    mixed = model.predict([paths[0], samples_N, str(paths[2])], RATE_HZ)
    assert mixed == [one_by_one[0], model.predict(samples_N, RATE_HZ), one_by_one[2]]
    assert model.predict(paths[:1]) == one_by_one[:1]
    assert model.predict([]) == []
    assert [len(own.starts_s) for own in model.timeline(paths[:2], hop_s=0.1)] == [3, 3]


def test_a_timeline_has_the_windows_of_the_predictor_and_ends_with_the_recording(model: AudioTagger) -> None:
    samples_N = noise(15_000)
    found = model.timeline(samples_N, RATE_HZ, hop_s=0.1)
    starts_s, scores_WC = Predictor(model.bundle).timeline(samples_N, 0.1)
    assert np.array_equal(found.starts_s, starts_s)
    assert np.array_equal(found.probabilities, scores_WC)
    assert found.ends_s == pytest.approx(np.minimum(starts_s + 0.335, 15_000 / RATE_HZ))
    assert found.labels == tuple(LABELS)
    assert repr(found) == f"Timeline({len(starts_s)} windows, 0.94 s, 3 classes)"
    top = found.top(2)
    assert [list(own.values()) for own in top] == [sorted(own, reverse=True)[:2] for own in scores_WC.tolist()]
    assert list(top[0]) == [LABELS[c] for c in np.argsort(-scores_WC[0])[:2]]


def test_events_are_those_of_a_timeline_with_edges_for_one_and_several_recordings(model: AudioTagger) -> None:
    first_N, second_N = noise(15_000), noise(9_000, 1)
    rule = {"min_s": 0.05, "gap_s": 0.2, "overlap": 0.1, "release": 0.9}
    expected = model.timeline(first_N, RATE_HZ, hop_s=0.1, edges=True).events(0.4, **rule)
    assert expected
    assert model.events(first_N, RATE_HZ, threshold=0.4, hop_s=0.1, **rule) == expected
    several = model.events([first_N, second_N], RATE_HZ, threshold=0.4, hop_s=0.1, **rule)
    assert several == [expected, model.events(second_N, RATE_HZ, threshold=0.4, hop_s=0.1, **rule)]
    assert model.events([], hop_s=0.1) == []
    with pytest.raises(UserError, match="threshold of events is 2"):
        model.events("missing.wav", threshold=2.0)


def test_embeddings_are_those_of_the_predictor_for_files_arrays_and_lists(
    model: AudioTagger, tmp_path: Path, save_tone: SaveTone
) -> None:
    path = save_tone(tmp_path / "tone.wav", seconds=1.0)
    samples_N = load_waveform(path, RATE_HZ)
    expected = Predictor(model.bundle).embed(samples_N, member="seed-1")
    for found in (model.embed(path, member="seed-1"), *model.embed([path, samples_N], RATE_HZ, member="seed-1")):
        assert np.array_equal(found.clip, expected.clip)
        assert np.array_equal(found.frames, expected.frames)
    assert not np.array_equal(model.embed(path, member="seed-1", layer=2).clip, expected.clip)
    with pytest.raises(UserError, match=r"missing\.wav does not exist"):
        model.embed(str(tmp_path / "missing.wav"), member="seed-0")
    with pytest.raises(UserError, match="has 2 members"):
        model.embed([])
    with pytest.raises(UserError, match="this model has 4 blocks"):
        model.embed([], member="seed-0", layer=5)


def test_decide_chooses_by_the_thresholds_and_calibrates(tmp_path: Path) -> None:
    write_run(tmp_path, seeds=(0,))
    folder = tmp_path / "bundles" / "seed-0"
    plain = ast_core.load(folder, device="cpu")
    with pytest.raises(UserError, match="no thresholds to decide by; run `ast-pipeline calibrate`"):
        plain.predict(noise(9_000), RATE_HZ, decide=True)
    scores = plain.predict(noise(9_000), RATE_HZ)
    first, second, third = scores
    thresholds = {first: 1.0, second: 0.0, third: 0.0}
    Decisions(plain.bundle.digest, {}, False, (0.5,) * 3, (0.1,) * 3, tuple(thresholds[name] for name in LABELS)).write(
        folder
    )
    chosen = ast_core.load(folder, device="cpu").predict(noise(9_000), RATE_HZ, decide=True)
    logits = {name: np.log(score / (1 - score)) for name, score in scores.items()}
    expected = {name: 1 / (1 + np.exp(-0.5 * logits[name] - 0.1)) for name in (second, third)}
    assert list(chosen) == [second, third]
    assert chosen == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.wav", "missing.wav does not exist; give the path of a recording"),
        ("folder", "is a folder; give its recordings, such as sorted"),
        ("empty.wav", "empty.wav cannot be used .read.: the file is empty. Check the path"),
        ("broken.wav", "broken.wav cannot be used .decode.: .* Convert it to WAV or FLAC"),
        ("cut.wav", "cut.wav cannot be used .decode."),
        ("short.wav", "short.wav cannot be used .fbank.: 160 samples are less than one window of 400. Give a longer"),
        ("a\0b", "does not exist"),
        ("a" * 300, "cannot be opened: File name too long|does not exist"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(
    model: AudioTagger, tmp_path: Path, save_tone: SaveTone, name: str, message: str
) -> None:
    good = save_tone(tmp_path / "good.wav")
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.wav").touch()
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / "cut.wav").write_bytes(good.read_bytes()[:9000])
    save_tone(tmp_path / "short.wav", seconds=0.01)
    for predict in (model.predict, model.timeline):
        with pytest.raises(UserError, match=message):
            predict(str(tmp_path / name))
        with pytest.raises(UserError, match=message):
            predict([good, str(tmp_path / name)])
    assert len(model.predict(good)) == len(LABELS)  # the model goes on after an error


@pytest.mark.parametrize(
    ("audio", "rate_hz", "message"),
    [
        (noise(9_000), None, "The recording is an array, and sample_rate_hz is missing"),
        (noise(9_000), 44_100.5, "sample_rate_hz is 44100.5; give a whole number from 1000 to 768000"),
        (noise(9_000), 44.1, "sample_rate_hz is 44.1"),
        (noise(9_000), np.nan, "sample_rate_hz is nan"),
        (noise(9_000), "16000", "sample_rate_hz is '16000'"),
        (noise(9_000), True, "sample_rate_hz is True"),
        (np.empty(0, np.float32), RATE_HZ, "has no samples"),
        (np.empty((0, 2), np.float32), RATE_HZ, "has no samples"),
        (np.float32(0.5), RATE_HZ, r"has the shape \(\); give .samples. or .samples, channels."),
        (np.zeros((2, 9_000), np.float32), RATE_HZ, r"2 samples of 9000 channels. .* give `audio.T`; .* `list.audio.`"),
        (np.zeros((500, 400), np.float32), RATE_HZ, "500 samples of 400 channels"),
        (np.zeros((2, 9_000, 2), np.float32), RATE_HZ, "give .samples. or .samples, channels., and a list for several"),
        (np.array([0.1, np.nan] * 900), RATE_HZ, "The recording cannot be used .decode.: a sample is nan"),
        (np.array([0.1, 1e300] * 900), RATE_HZ, "a sample is inf; .* Give finite samples in .-1, 1."),
        (np.array([3, -700] * 900), RATE_HZ, "integers above 1, whose full scale is unknown. Give finite samples"),
        (np.array([3.0, -700.0] * 900), RATE_HZ, "integers above 1, whose full scale is unknown"),
        (np.array([0.5, 1j] * 900), RATE_HZ, "has the type complex128; give floating-point samples"),
        (np.array([True, False] * 900), RATE_HZ, "has the type bool"),
        (np.array(["a", "b"] * 900), RATE_HZ, "has the type <U1"),
        (np.array([[0.5, -0.5]] * 900), RATE_HZ, "the 2 channels cancel out"),
        (noise(100), RATE_HZ, "100 samples are less than one window of 400. Give a longer recording"),
        (noise(100), 768_000, "cannot be used .fbank.: .* Give a longer recording"),
        (torch.zeros(9_000, requires_grad=True), RATE_HZ, "is no array on the CPU"),
        (3, RATE_HZ, "The recording is of type int; give a path, an array, or a list of them"),
        (b"RIFF", None, "is of type bytes; give a path, an array"),
        ({"audio": 1}, None, "is of type dict; give a path, an array"),
        ([noise(9_000), 0.5], RATE_HZ, "Recording 1 is of type float; give a path, or an array"),
        ([noise(9_000), np.array([np.inf, 0.5] * 900)], RATE_HZ, "Recording 1 cannot be used"),
        ([[0.1, 0.2]], RATE_HZ, "Recording 0 is of type list"),
    ],
)
def test_what_is_no_recording_is_refused(model: AudioTagger, audio: object, rate_hz: object, message: str) -> None:
    for predict in (model.predict, model.timeline):
        with pytest.raises(UserError, match=message):
            predict(audio, rate_hz)  # type: ignore[call-overload]


def test_a_rate_for_a_file_is_refused(model: AudioTagger, tmp_path: Path, save_tone: SaveTone) -> None:
    path = save_tone(tmp_path / "a.wav")
    with pytest.raises(UserError, match=r"sample_rate_hz is 16000, but .*a.wav is a file, which has its own rate"):
        model.predict(path, RATE_HZ)


def test_a_list_is_checked_before_the_first_recording_is_predicted(
    model: AudioTagger, tmp_path: Path, save_tone: SaveTone, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, asked = save_tone(tmp_path / "a.wav"), []
    monkeypatch.setattr(model._predictor, "probabilities", asked.append)
    with pytest.raises(UserError, match="does not exist"):
        model.predict([good, tmp_path / "missing.wav"])
    assert not asked


def test_without_a_hop_windows_shorter_than_a_second_leave_no_gaps(model: AudioTagger) -> None:
    assert model.window_s == 0.335
    found = model.timeline(noise(32_000), RATE_HZ)
    assert np.diff(found.starts_s) == pytest.approx(0.33)  # whole frames
    assert model.events(noise(32_000), RATE_HZ, threshold=0.01)


@pytest.mark.parametrize("hop_s", [0.0, 0.001, -1.0, np.nan, np.inf, "1"])
def test_a_hop_that_is_no_time_is_refused(model: AudioTagger, hop_s: object) -> None:
    with pytest.raises(UserError, match=r"give a number of seconds|less than one frame; give at least 0.01 s"):
        model.timeline(noise(9_000), RATE_HZ, hop_s=hop_s)  # type: ignore[call-overload]


def test_a_fault_of_the_disk_is_reported_with_the_file(
    model: AudioTagger, tmp_path: Path, save_tone: SaveTone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    path = save_tone(tmp_path / "a.wav")
    monkeypatch.setattr(model._decoder, "blocks", fail)
    with pytest.raises(UserError, match=r"a.wav could not be read: Input/output error. Check its disk"):
        model.predict(path)


def test_threads_share_a_model(model: AudioTagger, tmp_path: Path, save_tone: SaveTone) -> None:
    paths = [save_tone(tmp_path / f"{n}.wav", seconds=2.0, seed=n) for n in range(4)]
    expected = [model.predict(path) for path in paths]
    found: dict[int, list[dict[str, float]]] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: [model.predict(paths[n]) for _ in range(5)]}))  # type: ignore[misc]
        for n in range(len(paths))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [expected[n]] * 5 for n in range(len(paths))}
