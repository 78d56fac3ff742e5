"""CPU time of a `prepare` worker on a part, against the published loader's steps with pyarrow's defaults; without Ray.

python benchmarks/prepare.py [--audio FOLDER]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from peers.comparison import (
    arguments,
    cpu_seconds,
    interleave,
    one_core,
    print_machine,
    print_medians,
    print_ratio,
    verdict,
)
from peers.made_data import recordings, save_sounds
from peers.published_loader import write_table

from ast_core.audio.waveform import load_waveform
from ast_core.config import FrontEndConfig
from ast_core.dataset.manifest import Clip
from pipeline.preparation.part_writer import write_shard_part
from pipeline.ray_runtime.shard_part import ShardMetadata, ShardPart

CLIPS, ROUNDS = 24, 9
FORMATS = {
    "16 kHz wav": (".wav", 16_000, 1, 2.8),
    "44.1 kHz flac": (".flac", 44_100, 1, 1.5),
    "44.1 kHz ogg": (".ogg", 44_100, 1, 1.5),
    "44.1 kHz stereo flac": (".flac", 44_100, 2, 1.5),
    "44.1 kHz stereo ogg": (".ogg", 44_100, 2, 1.5),
}
"""Suffix, rate in Hz, channels, and the goal."""
GOAL_OVER_DECODING = 1.25
"""Largest ratio of the complete work to decoding and resampling alone, for compressed files."""


def make_part(paths: list[Path], folder: Path) -> ShardPart:
    """Return the part that `prepare` would make of these files."""
    clips = tuple(Clip(path.stem, str(path), (0,), "train") for path in paths)
    metadata = ShardMetadata(FrontEndConfig(), ("sound",), single_label=False)
    return ShardPart(str(folder), "part-00000", "train", clips, str(paths[0].parent), metadata)


def compare(what: str, paths: list[Path], folder: Path, rounds: int, goal: float | None) -> None:
    """Time the complete work on some files: ours, the published steps, and decoding and resampling alone."""
    part = make_part(paths, folder / "shards")
    rate_hz = FrontEndConfig().sample_rate_hz
    ways = {
        "published": lambda: write_table(paths, folder / "published.parquet"),
        "ours": lambda: write_shard_part(part),
        "decoding alone": lambda: [load_waveform(path, rate_hz) for path in paths],
    }
    seconds = interleave(ways, rounds, cpu_seconds)
    print_medians(seconds, f"CPU time of a clip, {what}", per=len(paths))
    print_ratio(seconds, "published", goal=goal)
    compressed = paths[0].suffix != ".wav"
    shares = sorted(whole / alone for whole, alone in zip(seconds["ours"], seconds["decoding alone"], strict=True))
    times = shares[len(shares) // 2]
    # A wav file needs no decoding, so the front end is most of its work and the ratio says little.
    aim = f"; goal {GOAL_OVER_DECODING} or less: {verdict(times <= GOAL_OVER_DECODING)}" if compressed else ""
    print(f"{times:.2f} times decoding and resampling alone{aim}")


def main() -> None:
    """Time each format in turn, or the files of a folder; both ways decode with libsndfile."""
    parser = arguments(__doc__)
    parser.add_argument("--audio", type=Path, help="folder of recordings to use instead of synthetic sounds")
    args = parser.parse_args()
    one_core()
    clips, rounds = (2, 1) if args.quick else (CLIPS, ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.audio:
            compare("recordings", recordings(args.audio, 4 * clips), folder, rounds, None)
        else:
            for what, (suffix, rate_hz, channels, goal) in FORMATS.items():
                paths = save_sounds(folder / suffix[1:], suffix, rate_hz, clips, channels)
                compare(f"10 s, {what}", paths, folder, rounds, goal)
    print_machine()


if __name__ == "__main__":
    main()
