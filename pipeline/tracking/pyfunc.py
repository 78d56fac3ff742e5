"""A registered bundle as MLflow's pyfunc model. MLflow loads this module by its name: nothing of it is pickled."""

from __future__ import annotations

import math
import os
import queue
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ast_core.audio.decoder import Decoder, Recording
from ast_core.audio.waveform import MAX_AMPLITUDE, MAX_RATE_HZ, MIN_RATE_HZ, resample
from ast_core.dataset.problems import shorten
from ast_core.errors import ClipError
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle

AUDIO = "audio"
"""Input column: a recording's bytes, in any format that libsndfile reads. Base64 in a JSON request."""
WAVEFORM, RATE = "waveform", "sample_rate_hz"
"""Input columns: or a recording's samples, mono, nominally in [-1, 1], and their rate; without it, the model's."""
ERROR = "clip_error"
"""Output column: why a recording could not be used, else ""."""
MOST_DECODERS = 8
"""Processes of 40 MB; the model takes far longer over a recording than they do."""


class Tagger:
    """Recordings to probabilities.

    Args:
        folder: of the bundle.
    """

    def __init__(self, folder: Path) -> None:
        self._predictor = Predictor(Bundle.load(folder), "cuda" if torch.cuda.is_available() else "cpu")
        # Requests come in threads. A decoder takes one recording at a time, and has no process before its first.
        self._decoders: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for _ in range(min(MOST_DECODERS, os.cpu_count() or 1)):
            self._decoders.put(Decoder())

    def predict(
        self,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002, MLflow calls with both
    ) -> pd.DataFrame:
        """Probabilities of recordings.

        Args:
            model_input: a row a recording: `audio`, its bytes, or `waveform`, its samples, with `sample_rate_hz`. A
                row whose `audio` is a list of recordings is as many rows.
            params: not used.

        Returns:
            A row a recording: a column a label, float32; where `clip_error` says why there is none, None, which
            JSON can say.

        Raises:
            ValueError: no column of a recording, in all of the table.
        """
        if not {AUDIO, WAVEFORM} & set(model_input.columns):
            raise ValueError(f"the request has neither {AUDIO} (bytes of a file, base64) nor {WAVEFORM} (samples)")
        if AUDIO in model_input:
            # MLflow makes one row of {"audio": [recording, recording]}: its signature has an array, the waveform.
            model_input = model_input.explode(AUDIO)
        labels = self._predictor.bundle.labels
        scores, errors = [], []
        for row in model_input.to_dict("records"):
            try:
                scores.append(self._probabilities(row))
                errors.append("")
            except ClipError as error:
                scores.append(np.full(len(labels), np.nan, np.float32))
                errors.append(str(error))
        scores_BC = np.array(scores, np.float32).reshape(len(scores), len(labels))
        table = pd.DataFrame(scores_BC, columns=list(labels), index=model_input.index)
        if any(errors):
            table = table.astype(object).where(table.notna(), None)
        return table.assign(**{ERROR: errors})

    def _probabilities(self, row: dict[Any, Any]) -> np.ndarray:
        """Of one recording, float32 [C]."""
        content = row.get(AUDIO)
        if not isinstance(content, bytes):
            return self._predictor.probabilities(self._waveform(row))
        decoder = self._decoders.get()
        try:
            with tempfile.NamedTemporaryFile() as file:
                file.write(content)
                file.flush()
                rate_hz = self._predictor.bundle.front_end.sample_rate_hz
                return self._predictor.probabilities(Recording(Path(file.name), rate_hz, decoder))
        finally:
            self._decoders.put(decoder)

    def _waveform(self, row: dict[Any, Any]) -> np.ndarray:
        """Mono samples [N] at the model's rate."""
        rate_hz = self._predictor.bundle.front_end.sample_rate_hz
        samples = row.get(WAVEFORM)
        if samples is None or isinstance(samples, float):  # pandas' way to say that a row has none
            raise ClipError("read", f"the row has neither {AUDIO} (bytes) nor {WAVEFORM} (samples)")
        waveform_N = _samples(samples)
        from_hz = _rate(row.get(RATE), rate_hz)
        return resample(waveform_N, from_hz, rate_hz)


def _samples(samples: Any) -> np.ndarray:
    """Float32 [N] of a request's list, whatever is in it; ClipError if that is no sound."""
    try:
        waveform_N = np.asarray(samples, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise ClipError("read", f"{WAVEFORM} is no list of samples ({shorten(str(error))})") from error
    if waveform_N.ndim != 1 or not len(waveform_N):
        raise ClipError("read", f"{WAVEFORM} has the shape {waveform_N.shape}; give one list of mono samples")
    if not np.abs(waveform_N).max() <= MAX_AMPLITUDE:
        raise ClipError("read", f"{WAVEFORM} has samples that are not finite or far from [-1, 1]")
    return waveform_N


def _rate(given: Any, own_hz: int) -> int:
    """A request's rate; the model's own where it has none. ClipError if that is no rate."""
    if given is None or (isinstance(given, float) and math.isnan(given)):
        return own_hz
    known = isinstance(given, int | float | np.integer | np.floating)
    if not (known and MIN_RATE_HZ <= given <= MAX_RATE_HZ):
        raise ClipError("read", f"{RATE} is {shorten(str(given))}; {MIN_RATE_HZ} to {MAX_RATE_HZ} are accepted")
    return int(given)


def _load_pyfunc(data_path: str) -> Tagger:
    """What MLflow calls with the bundle's folder."""
    return Tagger(Path(data_path))
