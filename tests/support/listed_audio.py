"""Make data sets of short clips with a manifest for tests of `prepare`, and read the shards that it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile

from ast_core.config import DataConfig, FrontEndConfig, PrepareConfig
from ast_core.shards.index import ShardIndex
from pipeline.cli.stages import PrepareSettings

RATE_HZ = 16_000
FRAMES, BINS = 32, 16
FRONT_END = FrontEndConfig(target_frames=FRAMES, num_mel_bins=BINS)


def write_clips(folder: Path, count: int) -> list[str]:
    """Write files `good-NNNN.wav` of 0.3 s of noise, each with other noise, and return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"good-{number:04d}.wav" for number in range(count)]
    for number, name in enumerate(names):
        wave_N = np.random.default_rng(number).normal(0, 0.1, 3 * RATE_HZ // 10)
        soundfile.write(folder / name, wave_N, RATE_HZ, subtype="PCM_16")
    return names


def write_list(path: Path, names: Sequence[str], test: int = 4) -> Path:
    """Write a manifest of the files NAME-NN.wav next to it; the first `test` of them are the test split."""
    labels = ["odd" if int(name[-5]) % 2 else "even" for name in names]
    splits = ["test" if place < test else "train" for place in range(len(names))]
    rows = [",".join([name, *row]) for name, *row in zip(names, names, labels, splits, strict=True)]
    path.write_text("\n".join(["clip_id,path,labels,split", *rows]) + "\n", encoding="utf-8")
    return path


def prepare_settings(listing: Path, shards: Path, per_part: int = 40, **prepare: Any) -> PrepareSettings:
    """Return settings of `prepare` for a manifest that `write_list` wrote."""
    return PrepareSettings(
        run_dir=shards.parent, shards=shards, workers=2,
        data=DataConfig(source=str(listing), layout="manifest"),
        prepare=PrepareConfig(clips_per_part=per_part, max_reject_share=1.0, **prepare),
        front_end=FRONT_END,
    )  # fmt: skip


def flags(settings: PrepareSettings) -> list[str]:
    """Return the command-line flags of these settings."""
    text = f"""
    --recipe esc50_small --run-dir {settings.run_dir} --shards {settings.shards} --workers {settings.workers}
    --data.source {settings.data.source} --data.layout manifest --data.train-splits train --data.test-split test
    --prepare.clips-per-part {settings.prepare.clips_per_part} --prepare.max-reject-share 1.0
    --prepare.decode-limit-s {settings.prepare.decode_limit_s}
    --front-end.target-frames {FRAMES} --front-end.num-mel-bins {BINS}
    """
    return text.split()


def files(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Read all files of a folder by relative path, except those of the folder's lock."""
    found = [path for path in sorted(folder.rglob(pattern)) if path.is_file() and path.name not in {".lock", ".holder"}]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def written(shards: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of each part; both change if the part is written again."""
    return {f"{p.parent.name}/{p.stem}": (p.stat().st_ino, p.stat().st_mtime_ns) for p in shards.glob("*/*.parquet")}


def rows(shards: Path) -> dict[str, dict[str, Any]]:
    """Read the shards' rows by clip id; fail if a clip occurs twice."""
    found: dict[str, dict[str, Any]] = {}
    for path in shards.glob("*/*.parquet"):
        for row in pq.read_table(path).to_pylist():
            assert found.setdefault(row["clip_id"], row) is row
    return found


def rejects(shards: Path) -> dict[str, dict[str, str]]:
    """Read the table of rejected and missing clips by id; fail if a clip occurs twice."""
    table = pq.read_table(shards / "rejects.parquet").to_pylist()
    found = {row["clip_id"]: row for row in table}
    assert len(found) == len(table)
    return found


def require_balance(index: ShardIndex, shards: Path, listed: int) -> Mapping[str, int]:
    """Fail unless every listed clip is kept, rejected or missing, both in the index and in the files."""
    counts = {
        key: sum(getattr(split, key) for split in index.splits.values())
        for key in ("listed", "kept", "rejected", "missing")
    }
    assert counts["listed"] == listed == counts["kept"] + counts["rejected"] + counts["missing"]
    assert counts["kept"] == len(rows(shards))
    assert counts["rejected"] + counts["missing"] == len(rejects(shards))
    return counts
