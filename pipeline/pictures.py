"""What `predict` writes of a recording besides its tags: probabilities over time, and what the model looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch

from ast_core.attention import rollout
from ast_core.fbank import Fbank, fit_length
from ast_core.files import committed
from ast_core.predictor import Predictor
from pipeline.plots import plot_attention, plot_timeline
from pipeline.settings import PredictSettings


def write(settings: PredictSettings, predictor: Predictor, path: Path, waveform_N: np.ndarray) -> None:
    """Write what was asked for, under the recording's own name with its ending, so that a.wav and a.mp3 both stay."""
    if settings.timeline:
        _timeline(settings.timeline / path.name, settings.hop_s, predictor, waveform_N)
    if settings.attention:
        _attention(settings.attention / f"{path.name}.png", predictor, waveform_N)


def _timeline(stem: Path, hop_s: float, predictor: Predictor, waveform_N: np.ndarray) -> None:
    labels = predictor.bundle.labels
    times_s, scores_WC = predictor.timeline(waveform_N, hop_s)
    columns: dict[str, Any] = {"start_s": times_s} | {label: scores_WC[:, c] for c, label in enumerate(labels)}
    with committed(stem.with_name(f"{stem.name}.csv")) as beside:
        pyarrow.csv.write_csv(pa.table(columns), beside)
    plot_timeline(stem.with_name(f"{stem.name}.png"), stem.name, times_s, scores_WC, labels)


def _attention(path: Path, predictor: Predictor, waveform_N: np.ndarray) -> None:
    member = predictor.bundle.members[0]
    front_end = member.front_end
    fbank_TM = fit_length(Fbank(front_end)(torch.from_numpy(waveform_N)), front_end.target_frames)
    share_TM = rollout(member, fbank_TM.to(predictor.device)).cpu().numpy()
    seconds = front_end.target_frames * front_end.frame_shift_ms / 1000
    plot_attention(path, f"{path.stem}, {member.name}", fbank_TM.numpy(), share_TM, seconds)
