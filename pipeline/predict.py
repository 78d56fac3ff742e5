"""Tag recordings, one or a million, with a registered ensemble or a bundle folder.

ast-pipeline predict RECORDING_OR_FOLDER ... --model models:/ast-demo@champion
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["predict", *sys.argv[1:]])
    sys.exit()


from rich.console import Console

from ast_core.dataset.clips import Clip
from ast_core.errors import require
from ast_core.evaluation.prediction_table import to_text
from ast_core.evaluation.predictor import Predictor
from ast_core.serialization import to_dict
from ast_core.storage.file_systems import is_uri
from ast_core.storage.json_files import sha256_of_json
from ast_core.storage.name_set import NameSet
from ast_core.weights.bundle import Bundle
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import PredictSettings
from pipeline.prediction.chunk_predictor import ChunkPredictor, ForRecording, PredictTask
from pipeline.prediction.chunk_task import FEW, choose_decoders
from pipeline.prediction.input_listing import InputListing
from pipeline.prediction.output_place import OutputPlace
from pipeline.prediction.recording_chunks import Chunk, ChunkResults, chunk_clips
from pipeline.prediction.run_summary import PredictSummary
from pipeline.reporting.predictions import Labelling
from pipeline.reporting.progress_bars import show_recordings
from pipeline.scoring.device import choose_device
from pipeline.tracking.model_choice import fetch_model_folder


def predict(settings: PredictSettings) -> PredictSummary:
    """Tag every recording; one that cannot be used has a row with the reason, and the others go on.

    Returns:
        Counts, and the rows of the first recordings. The other rows are only in the output.

    Raises:
        UserError: an input or the model does not exist, the output holds rows of another model, or no recording could
            be used.
    """
    inputs = [str(own) for own in settings.inputs]
    require(bool(inputs), "There is nothing to predict; give audio files or folders.")
    output = OutputPlace(None if settings.output is None else str(settings.output))
    folder = fetch_model_folder(settings.model, settings.tracking)
    bundle = Bundle.load(folder)
    require(
        not settings.decide or bundle.decisions is not None,
        f"{settings.model} has no thresholds to decide by: run calibrate (and register) first.",
    )
    listing, summary = InputListing(inputs), PredictSummary(output=output.output)
    with output.open(_identity(settings, bundle), inputs) as known:
        chunks = _list_chunks(listing, known, summary)
        started_s = time.monotonic()
        results = _start(settings, folder, bundle, chunks, summary)
        with contextlib.closing(results), show_recordings("predict", summary.listed - summary.known) as advance:
            for result in results:
                output.write(result)
                summary.add(result)
                advance(result.recordings)
        summary.seconds = time.monotonic() - started_s
        summary.show(bundle.labels)
        require(summary.balances, "A file was lost between reading and writing. Run again.")
        output.finish(bundle.labels, listing.holds)
    require(summary.predicted + summary.known > 0, "No file could be used; the table says why.")
    return summary


def _identity(settings: PredictSettings, bundle: Bundle) -> dict[str, Any]:
    """Return what decides the rows besides the recordings."""
    decisions = sha256_of_json(to_dict(bundle.decisions)) if settings.decide else None
    options = {"decide": settings.decide, "top_k": settings.top_k, "min_probability": settings.min_probability}
    return {"model": bundle.digest, "decisions": decisions, **options}


def _list_chunks(listing: InputListing, known: NameSet, summary: PredictSummary) -> list[bytes]:
    """Return packed chunks of the recordings without a row, a few bytes a recording; print what else there is."""

    def list_new() -> Iterator[tuple[int, Clip]]:
        for place, clip in enumerate(listing):
            summary.listed += 1
            if to_text(clip.clip_id) in known:
                summary.known += 1
            else:
                yield place, clip

    chunks = [chunk.pack() for chunk in chunk_clips(list_new())]
    for note in listing.notes:
        Console(soft_wrap=True, highlight=False).print(note, markup=False)
    require(summary.listed > 0, f"No audio file was found in {', '.join(listing.inputs)}.")
    return chunks


def _start(
    settings: PredictSettings, folder: Path, bundle: Bundle, chunks: Sequence[bytes], summary: PredictSummary
) -> ChunkResults:
    """Return the results of the chunks: of this process if they are few, else of workers on Ray."""
    more, apart = _wants_more(settings), bool(settings.workers or settings.address)
    require(
        not (more and apart),
        "--timeline, --events and --attention are made in this process; leave out --workers and --address, or make "
        "those of a few recordings with a command of their own.",
    )
    require(
        not (more and summary.known),
        f"{summary.output} has rows of {summary.known} of these recordings, which are not predicted again, so they "
        "would have no timelines, events or pictures. Give another --output.",
    )
    if more or not chunks or (not apart and summary.listed - summary.known < FEW):
        return _predict_here(settings, bundle, chunks)
    from pipeline.prediction import chunk_pool  # noqa: PLC0415  # Ray takes seconds

    task = PredictTask(settings.decide, settings.top_k, settings.min_probability)
    options = chunk_pool.PoolOptions(folder, bundle.digest, task, settings.gpus)
    return chunk_pool.run_on_ray(chunks, options, settings.address, settings.workers)


def _predict_here(settings: PredictSettings, bundle: Bundle, chunks: Sequence[bytes]) -> ChunkResults:
    """Yield the results of the chunks; their values are those of `AudioTagger`, to the bit."""
    predictor = Predictor(bundle, choose_device(settings.gpus))
    labelling = Labelling(bundle, settings.decide, settings.top_k, settings.min_probability)
    with (
        _open_outputs(settings, predictor, labelling, chunks) as outputs,
        ChunkPredictor(predictor, labelling, choose_decoders(chunks), mixed=False) as own,
    ):
        for packed in chunks:
            yield own.predict_chunk(Chunk.unpack(packed), outputs)


@contextlib.contextmanager
def _open_outputs(
    settings: PredictSettings, predictor: Predictor, labelling: Labelling, chunks: Sequence[bytes]
) -> Iterator[ForRecording | None]:
    """Yield what makes the pictures and events of each recording; None if the user asked for none."""
    if not _wants_more(settings):
        yield None
        return
    from pipeline.reporting.recording_outputs import open_outputs  # noqa: PLC0415  # for few commands

    clips = [clip for packed in chunks for clip in Chunk.unpack(packed).clips]
    others = next((clip.clip_id for clip in clips if clip.member is not None or is_uri(clip.path)), "")
    require(not others, f"--timeline, --events and --attention take files of this machine, and {others} is not one.")
    with open_outputs(settings, predictor, labelling, [Path(clip.clip_id) for clip in clips]) as outputs:
        yield outputs
    outputs.show()


def _wants_more(settings: PredictSettings) -> bool:
    """Return whether the user asked for more of each recording than its row."""
    return any(place is not None for place in (settings.timeline, settings.events, settings.attention))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: predict(parse_settings(PredictSettings, __doc__, argv)))
