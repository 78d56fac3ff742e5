"""Run chunks of recordings on Ray Data: a pool of actors that hold the model, one for each GPU or CPU."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.exceptions import OutOfDiskError, RayError

from ast_core.errors import UserError, require
from ast_core.weights.bundle import Bundle
from pipeline.cli.gpu_choice import Gpus
from pipeline.prediction.chunk_task import ChunkTask
from pipeline.prediction.recording_chunks import Chunk, ChunkResult, ChunkResults
from pipeline.ray_runtime import cluster_size, connection, internals
from pipeline.ray_runtime.heartbeat import send_heartbeats
from pipeline.ray_runtime.liveness import LivenessWatch
from pipeline.scoring.device import choose_device
from pipeline.scoring.model_worker import ModelWorker

RETRIES = 2
"""Number of times that a chunk is used again after its worker died. Recordings that crash the decoder do not
count: they are refused."""
DECODERS_OF_GPU, DECODERS_OF_CPU = 4, 2
"""Decoders of one worker: a GPU is faster than several of them."""
_CHUNK = "chunk"
"""Column of the packed chunks."""
_RESULT_FIELDS: list[pa.Field[Any]] = [pa.field("facts", pa.string()), pa.field("rows", pa.large_binary())]
"""Columns of a result: frame embeddings of long recordings may exceed the 2 GB of `binary`."""


@dataclass(frozen=True)
class PoolOptions:
    """What each worker of the pool needs."""

    folder: Path
    """Folder of the bundle on the driver's node."""
    digest: str
    """Digest of the bundle."""
    task: ChunkTask
    """What to make of each recording."""
    gpus: Gpus
    watch: str = ""
    """Name of the driver's `LivenessWatch`."""
    node_id: str = ""
    """Ray's id of the driver's node."""


class ChunkWorker(ModelWorker):
    """The actor of one worker.

    Args:
        options: what each worker needs.
        files: files of the bundle as uint8 arrays by name, for nodes that do not see the driver's folder.
    """

    def __init__(self, options: PoolOptions, files: ray.ObjectRef[dict[str, np.ndarray]] | None) -> None:
        super().__init__(options.watch, options.task.stage, options.gpus)
        self._watch = options.watch
        with _find_bundle(options, files) as folder:
            bundle = Bundle.load(folder)
        require(
            bundle.digest == options.digest,
            f"The bundle {options.folder} changed while this program ran. Run the same command again.",
        )
        device = choose_device(options.gpus)
        decoders = DECODERS_OF_CPU if device == "cpu" else DECODERS_OF_GPU
        self._runner = options.task.open(bundle, device, decoders, mixed=True)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield the results of the chunks of a batch, which has one."""
        chunks: list[Any] = batch.column(_CHUNK).to_pylist()
        for packed in chunks:
            for result in self._run(Chunk.unpack(packed)):
                yield pa.Table.from_pylist([result.to_row()], schema=pa.schema(_RESULT_FIELDS))

    def _run(self, chunk: Chunk) -> Iterator[ChunkResult]:
        with send_heartbeats(self._watch, f"recordings from {chunk.number}"):
            try:
                yield from self._runner.run_chunk(chunk)
            except UserError as error:
                yield ChunkResult(chunk.number, chunk.file_name, error=str(error))


def run_on_ray(chunks: Sequence[bytes], options: PoolOptions, address: str, workers: int) -> ChunkResults:
    """Yield the results of packed chunks in the order of their ends.

    Args:
        chunks: packed chunks.
        options: what each worker needs.
        address: value of `--address`.
        workers: value of `--workers`.

    Raises:
        UserError: a recording cannot be read, because of the disk or the store; a chunk cannot be used, because
            its workers died; or `connection.connect` refuses.
    """
    with connection.connect(address, workers, options.gpus):
        count = cluster_size.workers_that_fit(workers, options.gpus, len(chunks))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # ours counts recordings, Ray Data's blocks
        context.print_on_execution_start = False
        context.max_errored_blocks = 0
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        with LivenessWatch(options.task.stage, count) as watch:
            own = replace(options, watch=watch.name, node_id=ray.get_runtime_context().get_node_id())
            items = ray.data.from_items([{_CHUNK: chunk} for chunk in chunks], override_num_blocks=len(chunks))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Ray has no other argument for the retries
                done = items.map_batches(
                    ChunkWorker,
                    batch_size=1,
                    batch_format="pyarrow",
                    fn_constructor_kwargs={"options": own, "files": _share_bundle(options.folder)},
                    concurrency=count,
                    num_cpus=1,
                    num_gpus=1 if cluster_size.uses_gpu(options.gpus) else 0,
                    max_task_retries=RETRIES,
                )
            with _explain_dead_workers():
                for row in done.iter_rows():
                    result = ChunkResult.from_row(row)
                    require(not result.error, result.error)
                    yield result


def _share_bundle(folder: Path) -> ray.ObjectRef[dict[str, np.ndarray]] | None:
    """Put the files of a bundle into Ray's object store, unless all workers run on this machine."""
    if internals.is_local():
        return None
    files = {path.name: np.fromfile(path, np.uint8) for path in sorted(folder.iterdir()) if path.is_file()}
    return ray.put(files)


@contextlib.contextmanager
def _find_bundle(options: PoolOptions, files: ray.ObjectRef[dict[str, np.ndarray]] | None) -> Iterator[Path]:
    """Yield the folder of the bundle: the driver's on its node, else one in which the shared files are written."""
    if files is None or ray.get_runtime_context().get_node_id() == options.node_id:
        yield options.folder
        return
    with tempfile.TemporaryDirectory(prefix="ast-bundle-") as name:
        folder = Path(name) / options.folder.name  # a digest of Hugging Face's format holds the name of its folder
        folder.mkdir()
        for file, content in ray.get(files).items():
            (folder / file).write_bytes(content.data)
        yield folder


@contextlib.contextmanager
def _explain_dead_workers() -> Iterator[None]:
    try:
        yield
    except OutOfDiskError:  # `connect` explains it
        raise
    except RayError as error:
        cause = error.__cause__ if isinstance(error.__cause__, UserError) else getattr(error, "cause", None)
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(
            f"The recordings of one chunk ended their worker {RETRIES + 1} times: {str(error).strip()[-400:]}. The "
            "rows that were written stay: fix the cause, often too little memory, and run the same command again."
        ) from error
