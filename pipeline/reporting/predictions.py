"""The result of `predict` as a table on the screen and as rows of `ast_core.evaluation.prediction_table`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from ast_core.evaluation.prediction_table import Prediction, top_classes
from ast_core.weights.bundle import Bundle


@dataclass(frozen=True)
class Labelling:
    """The rule that chooses the labels of recordings: the decisions of a bundle, or the most probable classes."""

    bundle: Bundle
    decide: bool
    """Whether to use the decisions of the bundle, and to calibrate its probabilities."""
    top_k: int
    """Number of classes without `decide`."""
    min_probability: float = 0.0
    """Lowest probability of a class that is chosen."""

    def label(
        self, path: str, starts_s: Iterable[float], ends_s: Iterable[float], scores_BC: np.ndarray
    ) -> list[Prediction]:
        """Return the predictions for parts of one recording, one for each row of probabilities [B, C]."""
        shown_BC, chosen = self._choose(scores_BC)
        parts = zip(starts_s, ends_s, chosen, shown_BC, strict=True)
        return [
            Prediction(path, float(start), float(end), "", tuple(self.bundle.labels[c] for c in own), scores_C)
            for start, end, own, scores_C in parts
        ]

    def _choose(self, scores_BC: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
        """Return the probabilities to show, [B, C], and the indices of the chosen classes, the most probable first."""
        rule = self.bundle.decisions
        if not self.decide or rule is None:
            shown_BC, chosen = scores_BC, [top_classes(scores_C, self.top_k) for scores_C in scores_BC]
        else:
            shown_BC, decided_BC = rule.calibrated(scores_BC), rule.decide(scores_BC)
            ranked = [top_classes(shown_C, len(shown_C)) for shown_C in shown_BC]
            chosen = [[c for c in own if decided_BC[b, c]] for b, own in enumerate(ranked)]
        return shown_BC, [[c for c in own if shown_BC[b, c] >= self.min_probability] for b, own in enumerate(chosen)]


def predictions_table(predictions: Sequence[Prediction], classes: Sequence[str]) -> Table:
    """Return a table of the labels of each file, then of the refused files with their reasons."""
    table = Table(title="predictions")
    table.add_column("file", overflow="fold")
    table.add_column("labels")
    places = {name: c for c, name in enumerate(classes)}
    for own in predictions:
        if own.labels is not None and own.probabilities_C is not None:
            shown = ", ".join(f"{name} {own.probabilities_C[places[name]]:.3f}" for name in own.labels)
            table.add_row(escape(Path(own.path).name), escape(shown) or "no class")
    for own in predictions:
        if own.error:
            table.add_row(escape(Path(own.path).name), escape(f"refused: {own.error}"), style="red")
    return table
