"""What `predict` writes of a recording besides its tags: probabilities over time, and what the model looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import torch

from ast_core.audio.decoder import Recording
from ast_core.audio.fbank import Fbank, fit_length
from ast_core.evaluation.attention_rollout import attention_rollout
from ast_core.evaluation.predictor import Predictor
from ast_core.storage.atomic_files import atomic_write
from pipeline.cli.stages import PredictSettings
from pipeline.reporting.plots import plot_attention, plot_timeline


def write_pictures(settings: PredictSettings, predictor: Predictor, recording: Recording) -> None:
    """Write what was asked for, under the recording's own name with its ending, so that a.wav and a.mp3 both stay."""
    if settings.timeline:
        _timeline(settings.timeline / recording.path.name, settings.hop_s, predictor, recording)
    if settings.attention:
        _attention(settings.attention / f"{recording.path.name}.png", predictor, recording)


def _timeline(stem: Path, hop_s: float, predictor: Predictor, recording: Recording) -> None:
    labels = predictor.bundle.labels
    times_s, scores_WC = predictor.timeline(recording, hop_s)
    columns: dict[str, Any] = {"start_s": times_s} | {label: scores_WC[:, c] for c, label in enumerate(labels)}
    with atomic_write(stem.with_name(f"{stem.name}.csv")) as temporary:
        pyarrow.csv.write_csv(pa.table(columns), temporary)
    plot_timeline(stem.with_name(f"{stem.name}.png"), stem.name, times_s, scores_WC, labels)


def _attention(path: Path, predictor: Predictor, recording: Recording) -> None:
    member = predictor.bundle.members[0]
    front_end = member.front_end
    window_s = ((front_end.target_frames - 1) * front_end.frame_shift_ms + front_end.frame_length_ms) / 1000
    wave_N = torch.from_numpy(recording.read_beginning(window_s))
    fbank_TM = fit_length(Fbank(front_end)(wave_N), front_end.target_frames)
    share_TM = attention_rollout(member, fbank_TM.to(predictor.device)).cpu().numpy()
    seconds = front_end.target_frames * front_end.frame_shift_ms / 1000
    plot_attention(path, f"{path.stem}, {member.name}", fbank_TM.numpy(), share_TM, seconds)
