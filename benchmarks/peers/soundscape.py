"""Recordings that are mixed from sounds at known times, and a small model that is trained to hear the sounds.

Shapes: N samples, T frames, M mel bins, B windows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peers.made_data import SUFFIXES
from torch.nn import functional

from ast_core.audio.fbank import Fbank, fit_length
from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.dataset.synthetic import SOUNDS
from ast_core.evaluation.events import Event
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.weights.bundle import write_bundle

RATE_HZ = 16_000
FRAME = 320
"""Samples of a frame that decides what is audible: 20 ms."""
AUDIBLE_DB, CLEAR_DB = 30.0, 15.0
"""A sound lasts while it is at most 30 dB below its peak; a part at most 15 dB below the peak is clearly audible."""
LONGEST_S = 3.0
"""Longer sounds are cut, so that there are many in a recording."""
NOISE_DB = -65.0
"""Level of the background."""
MODEL = ModelConfig("ast_micro", patch_freq=128, patch_time=8, freq_stride=128, time_stride=8, init="scratch")
Draw = Callable[[np.random.Generator], np.ndarray]
"""Function that returns a sound, float [N] at `RATE_HZ`."""


def generated_sounds() -> dict[str, Draw]:
    """Return the sounds of the demo by class."""
    return {name: (lambda rng, make=make: trim(make(rng))) for name, make in SOUNDS.items()}


def recorded_sounds(folder: Path, part: int) -> dict[str, Draw]:
    """Return sounds from recordings in class folders.

    Args:
        folder: folder of class folders.
        part: 0 for the sounds to train on, 1 for those to mix into the recording; no file is in both.
    """
    from ast_core.audio.waveform import load_waveform  # noqa: PLC0415  # a machine with a GPU may have no soundfile

    sounds: dict[str, Draw] = {}
    for own in sorted(path for path in folder.iterdir() if path.is_dir()):
        files = sorted(path for path in own.iterdir() if path.suffix.lower() in SUFFIXES)[part::2]
        waves = [trim(np.asarray(load_waveform(path, RATE_HZ))) for path in files]
        if waves:
            sounds[own.name] = lambda rng, waves=waves: waves[rng.integers(len(waves))]
    if not sounds:
        raise SystemExit(f"{folder} holds no folders with audio ({', '.join(sorted(SUFFIXES))}): give class folders.")
    return sounds


def levels_db(wave_N: np.ndarray) -> np.ndarray:
    """Return the level of each frame of a sound in dB."""
    frames = np.pad(wave_N, (0, -len(wave_N) % FRAME)).reshape(-1, FRAME)
    return 10 * np.log10(np.square(frames).mean(axis=1) + 1e-12)


def trim(wave_N: np.ndarray) -> np.ndarray:
    """Return the audible part of a sound with peak 1, without the silence around it and no longer than `LONGEST_S`."""
    level = levels_db(wave_N)
    audible = np.flatnonzero(level > level.max() - AUDIBLE_DB)
    first, last = audible[0] * FRAME, (audible[-1] + 1) * FRAME
    cut_N = wave_N[first : min(last, first + int(LONGEST_S * RATE_HZ))]
    return (cut_N / np.abs(cut_N).max()).astype(np.float32)


def mix_recording(
    sounds: dict[str, Draw], seconds: float, separation_s: float, seed: int
) -> tuple[np.ndarray, list[Event]]:
    """Return a recording and what was mixed into it, in the order of time.

    Two sounds may be heard at the same time, but sounds of one class have at least `separation_s` between them.
    """
    rng = np.random.default_rng(seed)
    wave_N = rng.normal(0, 10 ** (NOISE_DB / 20), int(seconds * RATE_HZ)).astype(np.float32)
    free_from = dict.fromkeys(sounds, 0.0)
    mixed, time_s = [], 0.0
    while True:
        time_s += rng.exponential(2.5)
        label = list(sounds)[rng.integers(len(sounds))]
        sound_N = sounds[label](rng)
        first = int(time_s * RATE_HZ)
        if first + len(sound_N) > len(wave_N):
            return wave_N, mixed
        if time_s < free_from[label]:
            continue
        wave_N[first : first + len(sound_N)] += sound_N * 10 ** (rng.uniform(-20, -8) / 20)
        end_s = (first + len(sound_N)) / RATE_HZ
        free_from[label] = end_s + separation_s
        mixed.append(Event(label, first / RATE_HZ, end_s, 1.0))


def mix_window(
    sounds: dict[str, Draw], samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a window with parts of up to three sounds, its labels [C], and which labels are certain, [C].

    A label is certain if a clearly audible part of the sound is in the window, or no audible part of it.
    """
    length = samples if rng.random() < 0.75 else int(rng.uniform(0.1, 1) * samples)  # as at the ends of a recording
    wave_N = rng.normal(0, 10 ** (NOISE_DB / 20), length).astype(np.float32)
    label_C, certain_C = np.zeros(len(sounds), np.float32), np.ones(len(sounds), np.float32)
    for c in rng.choice(len(sounds), rng.integers(0, 4), replace=False):
        sound_N = list(sounds.values())[c](rng)
        start = int(rng.integers(-len(sound_N), length))
        inside_N = sound_N[max(0, -start) : length - start]
        if not len(inside_N):
            continue
        loudest = levels_db(inside_N).max() - levels_db(sound_N).max()
        label_C[c], certain_C[c] = loudest > -CLEAR_DB, loudest > -CLEAR_DB or loudest < -AUDIBLE_DB
        first = max(0, start)
        wave_N[first : first + len(inside_N)] += inside_N * 10 ** (rng.uniform(-20, -8) / 20)
    return wave_N, label_C, certain_C


def train_bundle(
    folder: Path, sounds: dict[str, Draw], window_s: float, windows: int, epochs: int, seed: int = 0
) -> Path:
    """Train a small model on windows of mixed sounds, and write its bundle.

    Args:
        folder: folder of the bundle.
        sounds: sounds by class.
        window_s: seconds of a window.
        windows: number of training windows.
        epochs: number of passes over them.
        seed: seed of the windows and the weights.
    """
    front_end = FrontEndConfig(target_frames=round(100 * window_s) - 2)
    fbank, rng = Fbank(front_end), np.random.default_rng(seed)
    made = [mix_window(sounds, fbank.clip_samples, rng) for _ in range(windows)]
    logmel = [fbank(torch.from_numpy(wave_N)) for wave_N, _, _ in made]
    inside = torch.cat([own_TM.flatten() for own_TM in logmel])
    mean, std = float(inside.mean()), float(inside.std())
    batch_BTM = (torch.stack([fit_length(own_TM, front_end.target_frames) for own_TM in logmel]) - mean) / (2 * std)
    label_BC, certain_BC = (torch.from_numpy(np.stack([own[n] for own in made])) for n in (1, 2))
    torch.manual_seed(seed)
    model = AST(MODEL, front_end.num_mel_bins, front_end.target_frames, len(sounds))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-2)
    steps = epochs * -(-windows // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(epochs):
        for own in torch.randperm(windows).split(32):
            loss_BC = functional.binary_cross_entropy_with_logits(model(batch_BTM[own]), label_BC[own], certain_BC[own])
            optimizer.zero_grad()
            loss_BC.backward()
            optimizer.step()
            schedule.step()
    settings = {"model": to_dict(MODEL), "front_end": to_dict(front_end), "labels": list(sounds), "loss": "bce"}
    identity = {**settings, "mean": mean, "std": std}
    write_bundle(folder, [("seed-0", model.eval().state_dict(), identity)], False)
    return folder
