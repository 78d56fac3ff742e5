"""Synthetic sounds and shards for the benchmarks, and access to the user's recordings.

Shapes: N samples, K channels, T frames, M mel bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ast_core.config import FrontEndConfig
from ast_core.serialization import to_dict
from ast_core.shards.index import INDEX
from ast_core.shards.writer import Row, write_part
from ast_core.storage.json_files import write_hashed_json

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3"}
SPLITS = ("train", "test")
CLASSES = 527


def sound(seed: int, rate_hz: int, seconds: float = 10.0, channels: int = 1) -> np.ndarray:
    """Return bursts of noise and tones over faint noise, float32 [N, K] in [-1, 1].

    The sound compresses about as well as recordings do.
    """
    rng = np.random.default_rng(seed)
    samples = int(rate_hz * seconds)
    times_N = np.arange(samples) / rate_hz
    wave_NK = rng.normal(0, 0.003, (samples, channels))
    for _ in range(8):
        start, length = rng.uniform(0, 0.8 * seconds), rng.uniform(0.1, 0.2) * seconds
        inside_N = (times_N >= start) & (times_N < start + length)
        envelope_N = inside_N * np.exp(-3 * (times_N - start) / length)
        tone_N = sum(np.sin(2 * np.pi * k * rng.uniform(80, 1200) * times_N) / k for k in range(1, 4))
        noise_NK = np.cumsum(rng.normal(0, 0.05, (samples, channels)), axis=0)
        noise_NK -= np.convolve(noise_NK[:, 0], np.full(64, 1 / 64), "same")[:, None]
        wave_NK += 0.15 * envelope_N[:, None] * (np.asarray(tone_N)[:, None] + noise_NK)
    return np.clip(wave_NK, -1, 1).astype(np.float32)


def save_sounds(folder: Path, suffix: str, rate_hz: int, clips: int, channels: int = 1) -> list[Path]:
    """Write files of 10 s each; `suffix`, with its dot, chooses the format."""
    import soundfile  # noqa: PLC0415, a machine with a GPU may have none

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}{suffix}" for number in range(clips)]
    for number, path in enumerate(paths):
        soundfile.write(path, sound(number, rate_hz, channels=channels), rate_hz)
    return paths


def recordings(folder: Path, most: int) -> list[Path]:
    """Return at most `most` audio files below a folder, evenly spread over the sorted list."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"{folder} holds no audio ({', '.join(sorted(SUFFIXES))}): give another folder with --audio.")
    return paths[:: max(1, len(paths) // most)][:most]


def write_shards(
    folder: Path, clips: dict[str, int], front_end: FrontEndConfig, classes: int = CLASSES, part: int = 512
) -> Path:
    """Write shards of noise with two labels for each clip, as `prepare` does.

    Args:
        folder: folder of the shards.
        clips: number of clips by split.
        front_end: settings with the frames and mel bins of a clip.
        classes: number of labels to draw from.
        part: clips in each Parquet file.
    """
    splits = {}
    for split, count in clips.items():
        counts = {"listed": count, "kept": count, "rejected": 0, "missing": 0}
        splits[split] = counts | {"sum": 0.0, "sum_sq": 0.0, "count": 0, "parts": []}
        for first in range(0, count, part):
            name = f"part-{first // part:05d}.parquet"
            shape = front_end.target_frames, front_end.num_mel_bins
            rows = made_rows(split, range(first, min(first + part, count)), shape, classes)
            written = write_part(folder / split / name, rows, {}, *shape)
            for key in ("sum", "sum_sq", "count"):
                splits[split][key] += getattr(written, key)
            splits[split]["parts"].append({"name": name, "rows": written.rows, "sha256": written.sha256})
    meaning = {"front_end": to_dict(front_end), "labels": [f"label {c}" for c in range(classes)]}
    rest = {"single_label": False, "layout": "manifest", "data_hash": "made", "splits": splits}
    write_hashed_json(folder / INDEX, meaning | rest)
    return folder


def made_rows(split: str, numbers: Iterable[int], shape: tuple[int, int], classes: int) -> Iterator[Row]:
    """Yield clips of noise with two labels each; `shape` is that of their filterbanks."""
    for number in numbers:
        fbank_TM = np.random.default_rng(number).standard_normal(shape, np.float32) * 4 - 5
        labels = sorted({number % classes, (7 * number + 3) % classes})
        yield Row(f"{split}-{number}", tuple(labels), shape[0], fbank_TM.astype("<f2"))
