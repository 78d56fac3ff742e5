"""The pictures that `predict` writes of a recording: probabilities over time, and the attention of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ast_core.audio.decoder import Recording
from ast_core.audio.fbank import Fbank, fit_length
from ast_core.evaluation.attention_rollout import attention_rollout
from ast_core.evaluation.prediction_table import write_predictions
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.window_cuts import MeasuredBlocks
from pipeline.cli.stages import PredictSettings
from pipeline.reporting.plots import plot_attention, plot_timeline
from pipeline.reporting.predictions import Labelling


def write_pictures(
    settings: PredictSettings, name: Path, predictor: Predictor, recording: Recording, labelling: Labelling
) -> None:
    """Write the pictures that the settings ask for, to paths that begin with a name of `name_recordings`."""
    if settings.timeline:
        _write_timeline(settings.timeline / name, settings.hop_s, predictor, recording, labelling)
    if settings.attention:
        path = settings.attention / name
        _write_attention(path.with_name(f"{path.name}.png"), predictor, recording)


def _write_timeline(
    stem: Path, hop_s: float | None, predictor: Predictor, recording: Recording, labelling: Labelling
) -> None:
    measured = MeasuredBlocks(recording)
    starts_s, scores_WC = predictor.timeline(measured, hop_s)
    length_s = measured.samples / recording.sample_rate_hz
    ends_s = np.minimum(starts_s + predictor.bundle.front_end.clip_s, length_s)  # the last window is padded
    windows = labelling.label(str(recording.path), starts_s, ends_s, scores_WC)
    classes = predictor.bundle.labels
    write_predictions(stem.with_name(f"{stem.name}.csv"), windows, classes)
    shown_WC = np.array([window.probabilities_C for window in windows])
    plot_timeline(stem.with_name(f"{stem.name}.png"), stem.name, starts_s, shown_WC, classes)


def _write_attention(path: Path, predictor: Predictor, recording: Recording) -> None:
    member = predictor.bundle.members[0]
    front_end = member.front_end
    wave_N = torch.from_numpy(recording.read_beginning(front_end.clip_s))
    fbank_TM = fit_length(Fbank(front_end)(wave_N), front_end.target_frames)
    share_TM = attention_rollout(member, fbank_TM.to(predictor.device)).cpu().numpy()
    seconds = front_end.target_frames * front_end.frame_shift_ms / 1000
    plot_attention(path, f"{path.stem}, {member.name}", fbank_TM.numpy(), share_TM, seconds)
