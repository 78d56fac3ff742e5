"""A registered bundle as an MLflow pyfunc model. MLflow loads this module by its name, so nothing is pickled.

Requests are read by `pipeline.tracking.serving_requests`. Class names are keys inside the column
`probabilities`, so no name can replace a column of the answer.
"""

from __future__ import annotations

import os
import queue
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ast_core.audio.decoder import Decoder, Recording
from ast_core.audio.waveform import resample
from ast_core.errors import ClipError
from ast_core.evaluation.prediction_table import ERROR, LABELS, PROBABILITIES, top_classes
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle
from pipeline.tracking.serving_requests import Row, read_request, require_loudness

TOP_LABELS = 5
"""Number of classes in the column `labels`, as on the screen of `predict`."""
MOST_DECODERS = 8
"""Highest number of decoder processes, of 40 MB each; decoding is much faster than the model."""


class Tagger:
    """The pyfunc model: it predicts the probabilities of recordings.

    Args:
        folder: folder of the bundle.
    """

    def __init__(self, folder: Path) -> None:
        self.predictor = Predictor(Bundle.load(folder), "cuda" if torch.cuda.is_available() else "cpu")
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
            model_input: one recording per row: its file in `audio` (bytes, or base64 text), or its samples in
                `waveform` with `sample_rate_hz`. A row whose `audio` is a list stands for one row per element.
            params: not used.

        Returns:
            One row per recording: `error`, the reason why it could not be used, else ""; `labels`, the most probable
            classes; `probabilities`, a dictionary with the probability of each class. Of a recording that could not be
            used, `labels` and `probabilities` are None, which is valid in JSON, unlike NaN.

        Raises:
            RequestError: a row is not a recording; the message names the row and says what to send.
        """
        rows = read_request(model_input)
        answers = [self._answer(row) for row in rows]
        columns = {name: [answer[name] for answer in answers] for name in (ERROR, LABELS, PROBABILITIES)}
        return pd.DataFrame(columns, dtype=object)

    def _answer(self, row: Row) -> dict[str, Any]:
        """Return the answer for one recording, by column."""
        try:
            scores_C = self._probabilities(row)
        except ClipError as error:
            return {ERROR: str(error), LABELS: None, PROBABILITIES: None}
        classes = self.predictor.bundle.labels
        labels = [classes[c] for c in top_classes(scores_C, TOP_LABELS)]
        return {ERROR: "", LABELS: labels, PROBABILITIES: dict(zip(classes, scores_C.tolist(), strict=True))}

    def _probabilities(self, row: Row) -> np.ndarray:
        """Return the probabilities of one recording, float32 [C]."""
        rate_hz = self.predictor.bundle.front_end.sample_rate_hz
        if row.waveform_N is not None:
            require_loudness(row.waveform_N)
            return self.predictor.probabilities(resample(row.waveform_N, row.rate_hz or rate_hz, rate_hz))
        decoder = self._decoders.get()
        try:
            with tempfile.NamedTemporaryFile() as file:
                file.write(row.content)
                file.flush()
                return self.predictor.probabilities(Recording(Path(file.name), rate_hz, decoder))
        finally:
            self._decoders.put(decoder)


def _load_pyfunc(data_path: str) -> Tagger:
    """Load the model from the folder of its bundle; MLflow calls this function by its name."""
    return Tagger(Path(data_path))
