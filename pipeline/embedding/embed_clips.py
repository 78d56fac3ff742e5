"""Embed listed recordings into a data set: the engine of `embed`, which `probe` uses, too."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ast_core.dataset.clips import Clip
from ast_core.errors import require
from ast_core.evaluation.embedder import find_member
from ast_core.evaluation.prediction_table import to_text
from ast_core.storage.file_systems import is_uri
from ast_core.storage.name_set import NameSet
from ast_core.weights.adapted_member import adapt_member
from ast_core.weights.bundle import Bundle
from ast_core.weights.ensemble_mean import Member
from pipeline.cli.gpu_choice import Gpus
from pipeline.embedding.chunk_embedder import EmbedTask
from pipeline.prediction.chunk_task import FEW, choose_decoders
from pipeline.prediction.recording_chunks import Chunk, ChunkResult, ChunkResults, chunk_clips, count_reasons
from pipeline.prediction.row_folder import EMBEDDINGS, RowFolder
from pipeline.reporting.progress_bars import show_recordings
from pipeline.run_folder.folder_lock import lock_folder
from pipeline.scoring.device import choose_device


@dataclass(frozen=True)
class EmbedModel:
    """A member of a bundle, and which of its embeddings are wanted. `load_embed_model` makes it."""

    folder: Path
    """Folder of the bundle."""
    bundle: Bundle
    chosen: Member
    """The member, with positions for the wanted length."""
    layer: int
    """Block whose output is used, counted from 1."""
    frames: bool
    """Whether there is one row a patch in time, else one a recording."""

    @property
    def member(self) -> str:
        """Name of the member."""
        return self.chosen.name

    @property
    def target_frames(self) -> int:
        """Frames of a window."""
        return self.chosen.front_end.target_frames

    @property
    def size(self) -> int:
        """Number of values of an embedding."""
        return self.chosen.model.pos_embed.shape[2]

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the rows besides the recordings, as JSON."""
        kind = "frames" if self.frames else "clips"
        which = {"model": self.bundle.digest, "member": self.member, "target_frames": self.target_frames}
        return {**which, "layer": self.layer, "kind": kind}


@dataclass(frozen=True)
class Workers:
    """Where the model runs: in this process for a few recordings, else on workers of Ray."""

    gpus: Gpus = "auto"
    """Value of `--gpus`."""
    workers: int = 0
    """Value of `--workers`; 0 leaves it to the number of recordings."""
    address: str = ""
    """Value of `--address`."""


@dataclass
class EmbedCounts:
    """Counts of a run, which balance: listed = known + embedded + refused."""

    listed: int = 0
    """Recordings that were given."""
    known: int = 0
    """Recordings that had a row before."""
    embedded: int = 0
    refused: int = 0
    length_s: float = 0.0
    """Length of all recordings that this run embedded."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Refused recordings of this run by reason."""

    @property
    def balances(self) -> bool:
        """Whether each listed recording has exactly one outcome."""
        return self.listed == self.known + self.embedded + self.refused

    def add(self, result: ChunkResult) -> None:
        """Count the recordings of a written file."""
        self.refused += result.refused
        self.embedded += result.recordings - result.refused
        self.length_s += result.length_s
        count_reasons(self.reasons, result.reasons)


def load_embed_model(
    folder: Path,
    member: str | None = None,
    layer: int | None = None,
    frames: bool = False,
    target_frames: int | None = None,
) -> EmbedModel:
    """Load a bundle, check that it has the member and the block, and adapt the member's positions.

    Args:
        folder: folder of the bundle.
        member: name of the member; None for the only one.
        layer: block whose output is used, counted from 1; None for the last one.
        frames: whether to make one row a patch in time, else one a recording.
        target_frames: frames of a window; None for those of the member's training.

    Raises:
        UserError: the folder holds no bundle, or there is no such member or block; or the bundle has several members
            and `member` is None; or a window would be smaller than a patch.
    """
    bundle = Bundle.load(folder)
    found = bundle.members[find_member(bundle, member)]
    if target_frames is not None:
        found = adapt_member(found, target_frames)
    return EmbedModel(folder, bundle, found, found.model.find_layer(layer), frames)


def embed_clips(
    clips: Iterable[Clip],
    output: str,
    model: EmbedModel,
    workers: Workers | None = None,
    *,
    audio_column: str = "",
    option: str = "--output",
) -> EmbedCounts:
    """Write the embeddings of the clips that have no row in a data set yet; one that cannot be used has a row, too.

    Args:
        clips: recordings or parts of them, each with another `clip_id`, which the column `path` holds.
        output: folder of the data set, also as a URI.
        model: model, and which of its embeddings.
        workers: where the model runs.
        audio_column: column of the recordings in Parquet files; "" finds it.
        option: the user's option that names the folder, for errors.

    Raises:
        UserError: another run writes there, the rows there are of another model, member, length, layer or kind, or a
            recording cannot be read because of the disk or the store.
    """
    chosen, counts = workers or Workers(), EmbedCounts()
    task = EmbedTask(model.member, model.layer, model.frames, model.target_frames, audio_column)
    with contextlib.ExitStack() as stack:
        if not is_uri(output):
            require(not Path(output).is_file(), f"{option} {output} is a file; give a folder's name.")
            stack.enter_context(lock_folder(Path(output), "embed", option))
        folder = stack.enter_context(RowFolder(EMBEDDINGS, output, option))
        folder.open(model.identity)
        chunks = _list_chunks(clips, folder, counts)
        results = stack.enter_context(contextlib.closing(_run_chunks(task, model, chunks, chosen, counts)))
        advance = stack.enter_context(show_recordings("embed", counts.listed - counts.known))
        for result in results:
            folder.write_part(result.file_name, result.rows)
            counts.add(result)
            advance(result.recordings)
    require(counts.balances, "A recording was lost between reading and writing. Run again.")
    return counts


def _list_chunks(clips: Iterable[Clip], folder: RowFolder, counts: EmbedCounts) -> list[bytes]:
    """Return packed chunks of the clips without a row, a few bytes a clip."""
    known = NameSet()
    for name in folder.names():
        known.add(name)

    def list_new() -> Iterator[tuple[int, Clip]]:
        for place, clip in enumerate(clips):
            counts.listed += 1
            if to_text(clip.clip_id) in known:
                counts.known += 1
            else:
                yield place, clip

    return [chunk.pack() for chunk in chunk_clips(list_new())]


def _run_chunks(
    task: EmbedTask, model: EmbedModel, chunks: list[bytes], workers: Workers, counts: EmbedCounts
) -> ChunkResults:
    """Return the results of the chunks: of this process if they are few, else of workers on Ray."""
    apart = bool(workers.workers or workers.address)
    if not chunks or (not apart and counts.listed - counts.known < FEW):
        return _run_here(task, model, chunks, workers)
    from pipeline.prediction import chunk_pool  # noqa: PLC0415  # Ray takes seconds

    options = chunk_pool.PoolOptions(model.folder, model.bundle.digest, task, workers.gpus)
    return chunk_pool.run_on_ray(chunks, options, workers.address, workers.workers)


def _run_here(task: EmbedTask, model: EmbedModel, chunks: list[bytes], workers: Workers) -> ChunkResults:
    """Yield the results of the chunks; the clip embeddings are those of `Predictor.embed`."""
    device = choose_device(workers.gpus)
    with task.open(model.bundle, device, choose_decoders(chunks), mixed=False) as runner:
        for packed in chunks:
            yield from runner.run_chunk(Chunk.unpack(packed))
