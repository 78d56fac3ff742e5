"""The result of `predict` as a table on the screen and as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from rich.table import Table

from ast_core.storage.atomic_files import atomic_write
from ast_core.storage.json_files import write_json
from ast_core.weights.bundle import Bundle

DECIDED = "decided"
"""Column with the labels that the model decided on, separated by `;`."""


@dataclass(frozen=True)
class Predictions:
    """Probabilities of recordings, and decisions if the user asked for them."""

    labels: tuple[str, ...]
    scores: dict[str, np.ndarray]
    """Probabilities by path of the recording, float32 [C]."""
    faults: dict[str, str]
    """The reasons why recordings could not be used, by path."""
    decided: dict[str, list[int]] | None = None
    """The indices of the classes decided on by path, the most probable first."""

    def decide(self, bundle: Bundle) -> Predictions:
        """Return calibrated probabilities and decisions; return the same object if the bundle is not calibrated."""
        rule = bundle.decisions
        if rule is None:
            return self
        calibrated = {path: rule.calibrated(scores_C[None])[0] for path, scores_C in self.scores.items()}
        decided: dict[str, list[int]] = {}
        for path, scores_C in self.scores.items():
            found_K = np.flatnonzero(rule.decide(scores_C[None])[0])
            decided[path] = found_K[np.argsort(-calibrated[path][found_K], kind="stable")].tolist()
        return Predictions(self.labels, calibrated, self.faults, decided)

    def table(self, top_k: int) -> Table:
        """Return a table of the labels decided on, or the `top_k` most probable, and of the refused files."""
        table = Table(title="predictions")
        table.add_column("file", overflow="fold")
        table.add_column("labels")
        for path, scores_C in self.scores.items():
            top = np.argsort(-scores_C, kind="stable")[:top_k] if self.decided is None else self.decided[path]
            shown = ", ".join(f"{self.labels[c]} {scores_C[c]:.3f}" for c in top)
            table.add_row(Path(path).name, shown.replace("[", "\\[") or "no class")
        for path, reason in self.faults.items():
            table.add_row(Path(path).name, f"refused: {reason}".replace("[", "\\["), style="red")
        return table

    def write(self, path: Path) -> None:
        """Write .csv, .json or .parquet, one row per recording: path, error, decision, probability of each label."""
        rows = self._rows()
        if path.suffix == ".json":
            write_json(path, rows)
            return
        table = pa.Table.from_pylist(rows)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            if path.suffix == ".csv":
                pyarrow.csv.write_csv(table, file)
            else:
                pyarrow.parquet.write_table(table, file)

    def _rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for path, scores_C in self.scores.items():
            row: dict[str, Any] = {"path": path, "error": ""}
            if self.decided is not None:
                row[DECIDED] = ";".join(self.labels[c] for c in self.decided[path])
            rows.append(row | dict(zip(self.labels, scores_C.tolist(), strict=True)))
        no_decision = {} if self.decided is None else {DECIDED: None}
        rows += [
            {"path": path, "error": reason, **no_decision, **dict.fromkeys(self.labels)}
            for path, reason in self.faults.items()
        ]
        return rows
