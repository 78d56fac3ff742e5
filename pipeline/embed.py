"""Write the embeddings of recordings, one or a million, with one model of a registered ensemble or a bundle folder.

ast-pipeline embed RECORDING_OR_FOLDER ... --model work/own/bundles/seed-0 --output embeddings/

One row a recording: the mean of the prefix tokens after the final norm, averaged over the windows of a long recording.
With --frames, one row for each patch in time, averaged over frequency.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["embed", *sys.argv[1:]])
    sys.exit()


from rich.console import Console

from ast_core.errors import require
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import EmbedSettings
from pipeline.embedding.embed_clips import EmbedCounts, EmbedModel, Workers, embed_clips, load_embed_model
from pipeline.prediction.input_listing import InputListing
from pipeline.prediction.run_summary import SHOWN, count_table, describe_speed
from pipeline.tracking.model_choice import fetch_model_folder


def embed(settings: EmbedSettings) -> EmbedCounts:
    """Embed every recording; one that cannot be used has a row with the reason, and the others go on.

    Returns:
        Counts of the recordings.

    Raises:
        UserError: an input, the model, the member or the block does not exist, the output holds rows of another model
            or kind, or no recording could be used.
    """
    inputs = [str(own) for own in settings.inputs]
    require(bool(inputs), "There is nothing to embed; give audio files or folders.")
    folder = fetch_model_folder(settings.model, settings.tracking)
    model = load_embed_model(folder, settings.member, settings.layer, settings.frames, settings.target_frames)
    listing, workers = InputListing(inputs), Workers(settings.gpus, settings.workers, settings.address)
    started_s = time.monotonic()
    counts = embed_clips(listing, settings.output, model, workers)
    for note in listing.notes:
        Console(soft_wrap=True, highlight=False).print(note, markup=False)
    require(counts.listed > 0, f"No audio file was found in {', '.join(inputs)}.")
    _show(settings, model, counts, time.monotonic() - started_s)
    require(counts.embedded + counts.known > 0, "No file could be used; the table says why.")
    return counts


def _show(settings: EmbedSettings, model: EmbedModel, counts: EmbedCounts, seconds: float) -> None:
    """Print the refused recordings by reason, the speed of many recordings, and the counts."""
    console = Console(soft_wrap=True, highlight=False)
    if counts.reasons:
        Console().print(count_table("reason of refusal", counts.reasons, ""))
    if counts.refused:
        console.print("The column error of the rows names each refused file's reason.", markup=False)
    done = counts.embedded + counts.refused
    if done > SHOWN:
        console.print(describe_speed(done, counts.length_s, seconds))
    known = f" + {counts.known} with a row already" if counts.known else ""
    console.print(f"{counts.listed} files = {counts.embedded} embedded + {counts.refused} refused{known}")
    rows = "One row a patch in time" if model.frames else "One row a recording"
    console.print(
        f"{rows}, {model.size} values of member {model.member}, block {model.layer}, windows of {model.target_frames} "
        f"frames: {settings.output}",
        markup=False,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: embed(parse_settings(EmbedSettings, __doc__, argv)))
