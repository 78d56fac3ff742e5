"""Synthesise the demo's audio: ten sounds that people can distinguish, mixed into a multi-label data set.

The data set has AudioSet's layout.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from ast_core.errors import require
from ast_core.storage.json_files import read_json, write_json

RATE_HZ = 16_000
SECONDS = 4
TRAIN_CLIPS, EVAL_CLIPS = 320, 160
MARKER = "SYNTHESISED.json"
Rng = np.random.Generator


def _time(seconds: float) -> np.ndarray:
    return np.arange(int(seconds * RATE_HZ)) / RATE_HZ


def _siren(rng: Rng) -> np.ndarray:
    t = _time(2.4)
    phase = np.cumsum(rng.uniform(600, 900) * (1 + 0.35 * np.sin(2 * np.pi * rng.uniform(0.4, 0.9) * t))) / RATE_HZ
    return np.sin(2 * np.pi * phase)


def _alarm_beeps(rng: Rng) -> np.ndarray:
    t = _time(2.0)
    gate = (t * rng.uniform(3, 5)) % 1 < 0.5
    return np.sign(np.sin(2 * np.pi * rng.uniform(900, 1600) * t)) * gate * 0.5


def _telephone(rng: Rng) -> np.ndarray:
    t = _time(2.4)
    first, second = rng.uniform(400, 440), rng.uniform(450, 500)
    trill = np.sin(2 * np.pi * 20 * t) > 0
    return (np.sin(2 * np.pi * first * t) + np.sin(2 * np.pi * second * t)) * trill * ((t % 1.2) < 0.8) / 2


def _rain(rng: Rng) -> np.ndarray:
    noise = rng.normal(size=int(3 * RATE_HZ))
    drops = np.zeros_like(noise)
    drops[rng.integers(0, len(drops), 300)] = rng.uniform(2, 6, 300)
    return np.diff(noise * 0.3 + drops, prepend=0.0)


def _clock(rng: Rng) -> np.ndarray:
    out = np.zeros(int(3 * RATE_HZ))
    click = np.exp(-_time(0.02) * 400) * np.sin(2 * np.pi * rng.uniform(2000, 3500) * _time(0.02))
    for start in np.arange(rng.uniform(0, 0.3), 2.9, rng.uniform(0.35, 0.6)):
        first = int(start * RATE_HZ)
        out[first : first + len(click)] += click
    return out


def _bird(rng: Rng) -> np.ndarray:
    out = np.zeros(int(2.5 * RATE_HZ))
    for _ in range(rng.integers(4, 9)):
        t = _time(rng.uniform(0.08, 0.2))
        chirp = np.sin(2 * np.pi * (rng.uniform(3000, 5000) * t + rng.uniform(4000, 9000) * t**2)) * np.hanning(len(t))
        first = rng.integers(0, len(out) - len(t))
        out[first : first + len(t)] += chirp
    return out


def _engine(rng: Rng) -> np.ndarray:
    t = _time(3.0)
    base = rng.uniform(45, 90) * (1 + 0.05 * np.sin(2 * np.pi * 0.5 * t))
    phase = 2 * np.pi * np.cumsum(base) / RATE_HZ
    hum = sum(np.sin(k * phase + rng.uniform(0, 6)) / k for k in range(1, 12))
    return np.asarray(hum) * (1 + 0.5 * np.sin(phase / 2))


def _bell(rng: Rng) -> np.ndarray:
    t = _time(3.0)
    base = rng.uniform(250, 500)
    partials = ((0.5, 1.0, 1.2), (1.0, 0.8, 1.8), (1.19, 0.6, 2.2), (2.0, 0.5, 3.0), (2.74, 0.4, 4.0), (4.1, 0.3, 6.0))
    tones = (gain * np.exp(-decay * t) * np.sin(2 * np.pi * base * ratio * t) for ratio, gain, decay in partials)
    return np.asarray(sum(tones))


def _bark(rng: Rng) -> np.ndarray:
    out = np.zeros(int(2.0 * RATE_HZ))
    for start in np.cumsum(rng.uniform(0.3, 0.6, rng.integers(2, 4))):
        t = _time(0.18)
        pitch = rng.uniform(350, 550)
        voice = sum(np.sin(2 * np.pi * k * (pitch * t - 500 * t**2)) / k for k in range(1, 8))
        burst = (np.asarray(voice) + rng.normal(size=len(t)) * 0.6) * np.hanning(len(t))
        first = int(start * RATE_HZ)
        out[first : first + len(t)] += burst[: max(0, len(out) - first)]
    return out


def _melody(rng: Rng) -> np.ndarray:
    notes = []
    scale = np.array([0, 2, 4, 7, 9, 12])
    root = rng.uniform(220, 330)
    for step in rng.choice(scale, 7):
        t = _time(rng.uniform(0.28, 0.4))
        pitch = root * 2 ** (step / 12)
        tones = (np.sin(2 * np.pi * k * pitch * t) * np.exp(-(3 + 2 * k) * t) / k for k in range(1, 6))
        notes.append(np.asarray(sum(tones)))
    return np.concatenate(notes)


SOUNDS: dict[str, Callable[[Rng], np.ndarray]] = {
    "Siren": _siren,
    "Alarm beeps": _alarm_beeps,
    "Telephone": _telephone,
    "Rain": _rain,
    "Clock tick": _clock,
    "Bird song": _bird,
    "Engine": _engine,
    "Church bell": _bell,
    "Dog bark": _bark,
    "Melody": _melody,
}


def make_demo_audio(folder: Path, seed: int = 0, train_clips: int = TRAIN_CLIPS, eval_clips: int = EVAL_CLIPS) -> Path:
    """Write the demo's data set, unless it exists: 4 s FLAC clips of one to three sounds each.

    As in every real download, one listed clip in a hundred has no file, and one file is broken.

    Args:
        folder: folder to write, in AudioSet's layout; its marker file holds the other arguments.
        seed: seed of all random numbers.
        train_clips: number of clips listed in `balanced_train`.
        eval_clips: number of clips listed in `eval`.

    Returns:
        The folder.

    Raises:
        UserError: the folder holds other files.
    """
    made = {"seed": seed, "train_clips": train_clips, "eval_clips": eval_clips}
    if (folder / MARKER).is_file():
        if read_json(folder / MARKER, "The marker of the demo's audio") == made:
            return folder
        shutil.rmtree(folder)
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(free, f"{folder} holds files that are not the demo's; give another --run-dir, or move the files elsewhere.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for split, count in (("balanced_train", train_clips), ("eval", eval_clips)):
        _write_split(partial, split, count, rng)
    with (partial / "class_labels_indices.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "mid", "display_name"])
        writer.writerows([index, _mid(index), name] for index, name in enumerate(SOUNDS))
    write_json(partial / MARKER, made)
    partial.replace(folder)
    return folder


def _mid(index: int) -> str:
    return f"/s/{index:02d}"


def _write_split(folder: Path, split: str, count: int, rng: Rng) -> None:
    audio = folder / "audio" / split
    audio.mkdir(parents=True)
    lines = ["# Synthesised", f"# num_ytids={count}", "# YTID, start_seconds, end_seconds, positive_labels"]
    for number in range(count):
        wave, classes = _mix(rng)
        name = f"{split[:2]}{number:09d}"
        lines.append(f'{name}, 0.000, {SECONDS:.3f}, "{",".join(_mid(c) for c in classes)}"')
        if number % 100 == 99:
            continue  # listed without a file, as in every download of AudioSet
        path = audio / f"Y{name}.flac"
        soundfile.write(path, wave, RATE_HZ, subtype="PCM_16")
        if split == "balanced_train" and number == 7:
            path.write_bytes(path.read_bytes()[:2000])  # an interrupted download
    (folder / f"{split}_segments.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _mix(rng: Rng) -> tuple[np.ndarray, list[int]]:
    """Mix one to three different sounds at random places and levels with faint noise: float32 [N], and its classes."""
    wave = rng.normal(0, 10 ** rng.uniform(-4, -2.5), RATE_HZ * SECONDS)
    classes = rng.choice(len(SOUNDS), size=rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]), replace=False)
    for sound in (list(SOUNDS.values())[c] for c in classes):
        event = sound(rng)
        event = event / np.abs(event).max() * 10 ** (rng.uniform(-20, -8) / 20)
        start = rng.integers(0, len(wave) - len(event) + 1)
        wave[start : start + len(event)] += event
    return np.clip(wave, -1, 1).astype(np.float32), sorted(int(c) for c in classes)
