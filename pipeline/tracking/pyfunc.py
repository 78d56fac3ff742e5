"""A registered bundle as an MLflow pyfunc model. MLflow loads this module by its name, so nothing is pickled."""

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
"""Input column with the bytes of a recording, in any format that libsndfile reads; base64 in a JSON request."""
WAVEFORM, RATE = "waveform", "sample_rate_hz"
"""Input columns with mono samples, nominally in [-1, 1], and their rate; the default is the rate of the model."""
ERROR = "clip_error"
"""Output column with the reason why a recording could not be used, else ""."""
MOST_DECODERS = 8
"""Highest number of decoder processes, of 40 MB each; decoding is much faster than the model."""


class Tagger:
    """The pyfunc model: it predicts the probabilities of recordings.

    Args:
        folder: folder of the bundle.
    """

    def __init__(self, folder: Path) -> None:
        self._predictor = Predictor(Bundle.load(folder), "cuda" if torch.cuda.is_available() else "cpu")
        # Requests come in threads, and a decoder reads one recording at a time. It starts its process at the first.
        self._decoders: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
        for _ in range(min(MOST_DECODERS, os.cpu_count() or 1)):
            self._decoders.put(Decoder())

    def predict(
        self,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002, MLflow calls with both
    ) -> pd.DataFrame:
        """Predict the probabilities of recordings.

        Args:
            model_input: one recording per row: its bytes in `audio`, or its samples in `waveform` with
                `sample_rate_hz`. A row whose `audio` is a list stands for one row per element.
            params: not used.

        Returns:
            One row per recording with the probability of each label, float32, and `clip_error`. If a recording could
            not be used, its probabilities are None, which is valid in JSON, unlike NaN.

        Raises:
            ValueError: the table has neither the column `audio` nor `waveform`.
        """
        if not {AUDIO, WAVEFORM} & set(model_input.columns):
            raise ValueError(
                f"the request has neither {AUDIO} (bytes of a file, base64) nor {WAVEFORM} (samples); send one of them"
            )
        if AUDIO in model_input:
            # MLflow reads {"audio": [recording, recording]} as one row, because the signature has an array column.
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
        """Return the probabilities of one recording, float32 [C]."""
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
        """Return the mono samples of a row, resampled to the rate of the model, [N]."""
        rate_hz = self._predictor.bundle.front_end.sample_rate_hz
        samples = row.get(WAVEFORM)
        if samples is None or isinstance(samples, float):  # pandas stores NaN for a missing value
            raise ClipError("read", f"the row has neither {AUDIO} (bytes) nor {WAVEFORM} (samples)")
        waveform_N = _parse_samples(samples)
        from_hz = _parse_rate(row.get(RATE), rate_hz)
        return resample(waveform_N, from_hz, rate_hz)


def _parse_samples(samples: Any) -> np.ndarray:
    """Convert the samples of a request to float32 [N]; raise ClipError if they are not a waveform."""
    try:
        waveform_N = np.asarray(samples, np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise ClipError("read", f"{WAVEFORM} is not a list of numbers ({shorten(str(error))})") from error
    if waveform_N.ndim != 1 or not len(waveform_N):
        raise ClipError("read", f"{WAVEFORM} has the shape {waveform_N.shape}; give one list of mono samples")
    if not np.abs(waveform_N).max() <= MAX_AMPLITUDE:
        raise ClipError(
            "read", f"{WAVEFORM} has samples that are not finite or above {MAX_AMPLITUDE:g}; scale them to [-1, 1]"
        )
    return waveform_N


def _parse_rate(given: Any, own_hz: int) -> int:
    """Return the rate of a request, by default that of the model; raise ClipError if the rate is not valid."""
    if given is None or (isinstance(given, float) and math.isnan(given)):
        return own_hz
    known = isinstance(given, int | float | np.integer | np.floating)
    if not (known and MIN_RATE_HZ <= given <= MAX_RATE_HZ):
        raise ClipError("read", f"{RATE} is {shorten(str(given))}; use a number from {MIN_RATE_HZ} to {MAX_RATE_HZ}")
    return int(given)


def _load_pyfunc(data_path: str) -> Tagger:
    """Load the model from the folder of its bundle; MLflow calls this function by its name."""
    return Tagger(Path(data_path))
