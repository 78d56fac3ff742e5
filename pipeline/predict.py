"""Tag recordings of any length, rate and format with a registered ensemble or a bundle folder.

ast-pipeline predict RECORDING_OR_FOLDER ... --model models:/ast-demo@champion
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["predict", *sys.argv[1:]])
    sys.exit()


import numpy as np
from rich.console import Console
from rich.progress import track

from ast_core.audio.decoder import Decoder, Recording
from ast_core.dataset.file_tree import list_recordings
from ast_core.errors import ClipError, require
from ast_core.evaluation.prediction_table import SUFFIXES as OUTPUT_SUFFIXES
from ast_core.evaluation.prediction_table import Prediction, write_predictions
from ast_core.evaluation.predictor import MeasuredBlocks, Predictor
from ast_core.weights.bundle import Bundle
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import PredictSettings
from pipeline.reporting.predictions import Labelling, predictions_table
from pipeline.scoring.device import choose_device


def predict(settings: PredictSettings) -> dict[str, np.ndarray]:
    """Tag every file; a file that cannot be used is reported, and the others go on.

    Returns:
        Probabilities, float32 [C], by path; calibrated probabilities with `decide`.

    Raises:
        UserError: an input or the model does not exist, or no file could be used.
    """
    require(bool(settings.inputs), "There is nothing to predict; give audio files or folders.")
    if settings.output:
        require(
            settings.output.suffix in OUTPUT_SUFFIXES,
            f"--output {settings.output} must end in .csv, .json or .parquet.",
        )
    files = list(dict.fromkeys(_list_files(settings.inputs)))  # the user may name a folder and a file in it
    require(bool(files), f"No audio file was found in {', '.join(map(str, settings.inputs))}.")
    bundle = Bundle.load(_bundle_folder(settings))
    require(
        not settings.decide or bundle.decisions is not None,
        f"{settings.model} has no thresholds to decide by: run calibrate (and register) first.",
    )
    predictor = Predictor(bundle, choose_device(settings.gpus))
    labelling = Labelling(bundle, settings.decide, settings.top_k)
    found: list[Prediction] = []
    decoder, rate_hz = Decoder(), bundle.front_end.sample_rate_hz
    names = _name_pictures(settings, files)
    for path in track(files, "predict", console=Console(stderr=True)):
        try:
            recording = Recording(path, rate_hz, decoder)
            measured = MeasuredBlocks(recording)
            scores_C = predictor.probabilities(measured)
            end_s = measured.samples / rate_hz
            _draw(settings, names, predictor, recording, labelling)
            # After drawing: a file that disappears meanwhile counts once, as refused.
            found += labelling.label(str(path), [0.0], [end_s], scores_C[None])
        except ClipError as error:
            found.append(Prediction(str(path), error=str(error)))
    scores = {own.path: own.probabilities_C for own in found if own.probabilities_C is not None}
    refused = sum(bool(own.error) for own in found)
    Console().print(predictions_table(found, bundle.labels))
    Console().print(f"{len(files)} files = {len(scores)} predicted + {refused} refused")
    require(len(files) == len(scores) + refused, "A file was lost between reading and writing. Run again.")
    if settings.output:
        write_predictions(settings.output, found, bundle.labels)
    require(bool(scores), "No file could be used; the table says why.")
    return scores


def _bundle_folder(settings: PredictSettings) -> Path:
    if not settings.model.startswith(("models:/", "runs:/")):
        return Path(settings.model).absolute()
    from pipeline.tracking.registry import bundle_folder  # noqa: PLC0415  # MLflow takes 100 MB

    return bundle_folder(settings.model, settings.tracking)


def _name_pictures(settings: PredictSettings, files: Sequence[Path]) -> dict[Path, Path]:
    """Return the names of the pictures to write; none if the user asked for none."""
    if not (settings.timeline or settings.attention):
        return {}
    from pipeline.reporting import recording_pictures  # noqa: PLC0415  # matplotlib: 35 MB

    return recording_pictures.name_pictures(files)


def _draw(
    settings: PredictSettings, names: Mapping[Path, Path], predictor: Predictor, recording: Recording, rule: Labelling
) -> None:
    if names:
        from pipeline.reporting import recording_pictures  # noqa: PLC0415  # matplotlib: 35 MB

        recording_pictures.write_pictures(settings, names[recording.path], predictor, recording, rule)


def _list_files(inputs: Sequence[Path]) -> list[Path]:
    """Return the files that the user named and the audio files below the named folders; print what the others are.

    A file is audio if it has an audio suffix or begins as an audio file does.
    """
    files: list[Path] = []
    for path in inputs:
        require(path.exists(), f"{path} does not exist; give a file or a folder.")
        if not path.is_dir():
            files.append(path)
            continue
        found, unlisted = list_recordings(path)
        files += found
        for counts in unlisted:
            Console(soft_wrap=True, highlight=False).print(f"{path}: {counts.sentence}", markup=False)
    return files


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: predict(parse_settings(PredictSettings, __doc__, argv)))
