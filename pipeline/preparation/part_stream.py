"""Write parts with Ray Data: in one task each, or decoded by tasks on CPUs and committed by actors on GPUs.

With GPUs, the waveforms of a part travel from one stage to the other in Ray's object store. Ray Data starts no more
decoders than the store has room for (back pressure), and actors as waveforms come (autoscaling).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from ast_core.dataset.clips import Clip
from ast_core.errors import ClipError, UserError
from pipeline.preparation.part_writer import Found, commit_part, read_part, report_part, write_part_row
from pipeline.ray_runtime.heartbeat import send_heartbeats, start_heartbeat
from pipeline.ray_runtime.shard_part import PartResult, PartTask

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("part", "stores", "watch", "key", "error", "faults")),
        ("lengths", pa.list_(pa.int64())),
        ("samples", pa.large_binary()),
    ]
)
"""Columns of a decoded part, which is one row: its task, its key, and its clips' waveforms one after the other."""


def write_parts(tasks: Sequence[PartTask], workers: int) -> ray.data.Dataset:
    """Return the data set of the `PartResult`s of parts, each of which one task on a CPU writes.

    Args:
        tasks: parts to write.
        workers: largest number of tasks at the same time; 0 for as many as the cluster has CPUs.
    """
    items = [task.to_row() for task in tasks]
    parts = ray.data.from_items(items, override_num_blocks=len(items))
    return parts.map(write_part_row, num_cpus=1, compute=_limit_tasks(workers, len(items)))


def stream_parts(tasks: Sequence[PartTask], workers: int, gpus: int, device: str = "cuda") -> ray.data.Dataset:
    """Return the data set of the `PartResult`s of parts that tasks decode and actors commit.

    Args:
        tasks: parts to write.
        workers: largest number of decoders at the same time; 0 for as many as the cluster has CPUs.
        gpus: largest number of actors; each has a GPU.
        device: `cuda`, or `cpu` for actors without a GPU.
    """
    # A part is one row, and Ray Data cuts no row. The output of the decoders is what back pressure counts.
    items = [task.to_row() for task in tasks]
    parts = ray.data.from_items(items, override_num_blocks=len(items))
    decoded = parts.map_batches(
        decode_part, batch_size=1, batch_format="pyarrow", num_cpus=1, compute=_limit_tasks(workers, len(items))
    )
    return decoded.map_batches(
        PartCommitter,
        fn_constructor_kwargs={"watch": tasks[0].watch},
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0,  # other resources than the decoders', or Ray Data would make one stage of both
        num_gpus=1 if device == "cuda" else 0,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(gpus, len(items)))),
    )


def _limit_tasks(workers: int, parts: int) -> ray.data.TaskPoolStrategy:
    """Return the limit of the tasks at the same time; without `workers`, Ray Data starts one a free CPU."""
    return ray.data.TaskPoolStrategy(min(workers, parts) or None)


def decode_part(table: Any) -> Any:
    """Decode the clips of one part, a row of a `PartTask`, into a row of `SCHEMA`."""
    (row,) = table.to_pylist()
    task = PartTask.from_row(row)
    try:
        with send_heartbeats(task.watch, f"{task.part.split}/{task.part.name}, decoding"):
            key, pairs = read_part(task.part)
            return _pack(row, key, [found for _, found in pairs])
    except UserError as error:
        return _pack({**row, "part": "", "error": str(error)}, "", [])


class PartCommitter:
    """An actor that computes the filterbanks of decoded parts and commits the parts.

    Args:
        watch: name of the driver's `LivenessWatch`.
    """

    def __init__(self, watch: str) -> None:
        start_heartbeat(watch, "")

    def __call__(self, table: Any) -> dict[str, list[Any]]:
        """Commit the part of a row of `SCHEMA`; return the fields of a `PartResult`."""
        (row,) = table.drop_columns(["samples"]).to_pylist()
        if row["error"]:
            result = vars(PartResult(error=row["error"]))
        else:
            task = PartTask.from_row(row)
            waveforms = _unpack(task.part.clips, row, table.column("samples").chunk(0))
            result = report_part(task, lambda part: commit_part(part, waveforms, lambda: str(row["key"])))
        return {name: [value] for name, value in result.items()}


def _pack(row: dict[str, Any], key: str, found: Sequence[Found]) -> pa.Table:
    """Return a row of `SCHEMA` without a copy of the samples beyond the one that joins them."""
    waves = [each for each in found if isinstance(each, np.ndarray)]
    joined = np.concatenate(waves) if waves else np.empty(0, np.float32)
    buffers: list[Any] = [np.array([0, joined.nbytes], np.int64), joined]
    samples = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, *map(pa.py_buffer, buffers)])
    columns = {
        "error": "",
        **row,
        "key": key,
        "faults": json.dumps([_pack_fault(each) for each in found if not isinstance(each, np.ndarray)]),
        "lengths": [len(each) if isinstance(each, np.ndarray) else -1 for each in found],
    }
    arrays = [pa.array([columns[field.name]], field.type) for field in SCHEMA if field.name != "samples"]
    return pa.table([*arrays, samples], schema=SCHEMA)


def _unpack(clips: Sequence[Clip], row: dict[str, Any], samples: Any) -> Iterator[tuple[Clip, Found]]:
    """Yield the clips of a decoded part with their waveforms or faults."""
    joined = np.frombuffer(samples[0].as_buffer(), np.float32)
    faults, place = iter(json.loads(row["faults"])), 0
    for clip, length in zip(clips, row["lengths"], strict=True):
        if length < 0:
            yield clip, ClipError(*next(faults))
        else:
            yield (
                clip,
                joined[place : place + length].copy(),
            )  # torch warns about memory of the store, which is read-only
            place += length


def _pack_fault(fault: ClipError | OSError) -> list[str]:
    if isinstance(fault, ClipError):
        return [fault.stage, fault.reason]
    raise fault  # `read_part` has raised it already
