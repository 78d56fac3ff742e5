"""Clips a second of a `prepare` worker from loose files, Parquet, a tar archive and an S3 server on loopback; no Ray.

python benchmarks/sources.py [--audio FOLDER] [--no-s3]
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import socket
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from peers.comparison import arguments, cpu_seconds, interleave, one_core, print_machine, verdict
from peers.made_data import recordings, save_sounds

from ast_core.config import FrontEndConfig
from ast_core.dataset.clips import Clip
from pipeline.preparation.part_writer import write_shard_part
from pipeline.ray_runtime.shard_part import ShardMetadata, ShardPart

CLIPS, ROUNDS, ROWS = 48, 7, 16
"""Number of clips, rounds of the comparison, and rows of a row group."""
GOAL = 1.1
"""Largest ratio of the time to that of loose files."""
BUCKET = "recordings"
STORE = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "a", "AWS_DEFAULT_REGION": "us-east-1"}
Sources = dict[str, tuple[Clip, ...]]


def pack(paths: Sequence[Path], folder: Path) -> Sources:
    """Write the files once more as Parquet and as a tar archive; return the clips of each."""
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"audio": pa.array(rows, kind)}), folder / "a.parquet", row_group_size=ROWS)
    with tarfile.open(folder / "a.tar", "w") as archive:
        for path in paths:
            info = tarfile.TarInfo(path.name)
            info.size = path.stat().st_size
            archive.addfile(info, io.BytesIO(path.read_bytes()))
    with tarfile.open(folder / "a.tar") as archive:
        members = [(info.offset_data, info.size) for info in archive]
    loose = tuple(Clip(path.name, str(path), (0,), "train") for path in paths)
    places: dict[str, tuple[str, list[tuple[int, int]]]] = {
        "Parquet": ("a.parquet", [divmod(row, ROWS) for row in range(len(paths))]),
        "tar": ("a.tar", members),
    }
    packed = {
        name: tuple(
            dataclasses.replace(clip, path=str(folder / file), member=member)
            for clip, member in zip(loose, own, strict=True)
        )
        for name, (file, own) in places.items()
    }
    return {"loose files": loose, **packed}


@contextlib.contextmanager
def store(files: Sequence[Path]) -> Iterator[None]:
    """Run an S3 server on loopback that holds the files."""
    import boto3  # noqa: PLC0415  # part of the development packages

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    os.environ |= {**STORE, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
            time.sleep(0.1)
        client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        client.create_bucket(Bucket=BUCKET)
        for file in files:
            client.upload_file(str(file), BUCKET, file.name)
        yield
    finally:
        process.kill()
        process.wait()


def compare(sources: Sources, folder: Path, rounds: int) -> None:
    """Write the part of each source in turn; print clips a second and ratios to loose files."""
    metadata = ShardMetadata(FrontEndConfig(), ("sound",), single_label=False)
    parts = {
        name: ShardPart(
            str(folder / name), "part-00000", "train", clips, str(folder), metadata,
            audio_column="audio" if clips[0].path.endswith(".parquet") else "",
        )
        for name, clips in sources.items()
    }  # fmt: skip
    ways = {name: lambda part=part: write_shard_part(part) for name, part in parts.items()}
    clips = len(next(iter(sources.values())))
    for clock, what in ((time.perf_counter, "time"), (cpu_seconds, "CPU time, the server's not counted")):
        chosen = ways if clock is time.perf_counter else {n: w for n, w in ways.items() if not n.endswith("S3")}
        seconds = interleave(chosen, rounds, clock, warm=clock is cpu_seconds)
        for name, values in seconds.items():
            ratios = sorted(own / loose for own, loose in zip(values, seconds["loose files"], strict=True))
            middle = ratios[len(ratios) // 2]
            aim = "" if name == "loose files" else f"; goal {GOAL} or less: {verdict(middle <= GOAL)}"
            print(f"{clips / statistics.median(values):.1f} clips/s, ratio {middle:.3g} of the {what}: {name}{aim}")
    files = {(folder / name / "part-00000.parquet").read_bytes() for name in ways}
    print(f"{len(ways)} sources, {len(files)} different part files")


def main() -> None:
    """Time all sources of the same recordings in the same rounds."""
    parser = arguments(__doc__)
    parser.add_argument("--audio", type=Path, help="folder of recordings to use instead of synthetic sounds")
    parser.add_argument("--no-s3", action="store_true", help="start no S3 server")
    args = parser.parse_args()
    one_core()
    clips, rounds = (4, 1) if args.quick else (CLIPS, ROUNDS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = recordings(args.audio, clips) if args.audio else save_sounds(folder, ".flac", 44_100, clips)
        sources = pack(paths, folder)
        if args.quick or args.no_s3:
            compare(sources, folder, rounds)
        else:
            with store([*paths, folder / "a.parquet", folder / "a.tar"]):
                for kind, own in list(sources.items()):
                    sources[f"{kind} on S3"] = tuple(
                        dataclasses.replace(clip, path=f"s3://{BUCKET}/{Path(clip.path).name}") for clip in own
                    )
                compare(sources, folder, rounds)
    print_machine()


if __name__ == "__main__":
    main()
