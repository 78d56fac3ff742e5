"""Former name of `pipeline.tracking.pyfunc`: models that were registered before the move name it as their loader.

MLflow puts the copies of the packages that such a model carries first on the path. If this file runs nevertheless, the
current `pipeline` was imported before; the current `ast_core` must then come with it, not the model's old copy.

The signature of such a model promises one column per class and `clip_error`, so it goes on to answer with them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, _root := str(Path(__file__).resolve().parents[2]))
try:
    from ast_core.evaluation.prediction_table import ERROR, PROBABILITIES
    from pipeline.tracking.pyfunc import Tagger
finally:
    sys.path.remove(_root)

__all__ = ["_load_pyfunc"]


class OldTagger(Tagger):
    """The pyfunc model of versions that were registered before the move."""

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return the answer of `Tagger.predict` with a column for each class, and `clip_error`."""
        answer = super().predict(model_input, params)
        kind = object if any(answer[ERROR]) else "float32"  # None is valid in JSON, unlike NaN
        columns: dict[str, Any] = {
            label: pd.Series([None if own is None else own[label] for own in answer[PROBABILITIES]], dtype=kind)
            for label in self.predictor.bundle.labels
        }
        return pd.DataFrame({**columns, "clip_error": answer[ERROR]})


def _load_pyfunc(data_path: str) -> OldTagger:
    """Load the model from the folder of its bundle; MLflow calls this function by its name."""
    return OldTagger(Path(data_path))
