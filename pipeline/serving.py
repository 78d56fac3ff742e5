"""A registered bundle as MLflow's pyfunc model. MLflow loads this module by its name: nothing of it is pickled."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ast_core.audio import load_waveform
from ast_core.bundle import Bundle
from ast_core.errors import ClipError
from ast_core.predictor import Predictor

AUDIO = "audio"
"""Input column: a recording's bytes, in any format that libsndfile reads. Base64 in a JSON request."""
ERROR = "clip_error"
"""Output column: why a recording could not be used, else ""."""


class Tagger:
    """Recordings to probabilities.

    Args:
        folder: of the bundle.
    """

    def __init__(self, folder: Path) -> None:
        self._predictor = Predictor(Bundle.load(folder))

    def predict(
        self,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002, MLflow calls with both
    ) -> pd.DataFrame:
        """Probabilities of recordings.

        Args:
            model_input: column `audio`, the bytes of a recording a row.
            params: not used.

        Returns:
            A row a recording: a column a label, float32, NaN where `clip_error` says why there is none.
        """
        bundle = self._predictor.bundle
        scores, errors = [], []
        for content in model_input[AUDIO]:
            scores_C, error = self._one(content)
            scores.append(scores_C)
            errors.append(error)
        scores_BC = np.array(scores, np.float32).reshape(len(scores), len(bundle.labels))
        return pd.DataFrame(scores_BC, columns=list(bundle.labels)).assign(**{ERROR: errors})

    def _one(self, content: bytes) -> tuple[np.ndarray, str]:
        bundle = self._predictor.bundle
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            try:
                waveform_N = load_waveform(file.name, bundle.front_end.sample_rate_hz)
                return self._predictor.probabilities(waveform_N), ""
            except ClipError as error:
                return np.full(len(bundle.labels), np.nan, np.float32), str(error)


def _load_pyfunc(data_path: str) -> Tagger:
    """What MLflow calls with the bundle's folder."""
    return Tagger(Path(data_path))
