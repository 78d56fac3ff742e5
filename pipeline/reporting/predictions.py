"""What `predict` found out about recordings: as a table on the screen, and as a file."""

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
"""Column of the labels that a recording has, `;` between them."""


@dataclass(frozen=True)
class Predictions:
    """Recordings' probabilities, and decisions where they were asked for."""

    labels: tuple[str, ...]
    scores: dict[str, np.ndarray]
    """Float32 [C], by path."""
    faults: dict[str, str]
    """Why a recording could not be used, by path."""
    decided: dict[str, list[int]] | None = None
    """The classes that a recording has, the most probable first."""

    def decide(self, bundle: Bundle) -> Predictions:
        """The same with calibrated probabilities, and decisions; the bundle has those."""
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
        """The labels it has, or its `top_k` most probable ones; then what was refused."""
        table = Table(title="predictions")
        table.add_column("file", overflow="fold")
        table.add_column("labels")
        for path, scores_C in self.scores.items():
            top = np.argsort(-scores_C, kind="stable")[:top_k] if self.decided is None else self.decided[path]
            shown = ", ".join(f"{self.labels[c]} {scores_C[c]:.3f}" for c in top)
            table.add_row(Path(path).name, shown.replace("[", "\\[") or "none of the classes")
        for path, reason in self.faults.items():
            table.add_row(Path(path).name, f"refused: {reason}".replace("[", "\\["), style="red")
        return table

    def write(self, path: Path) -> None:
        """Commit a row a file to .csv, .json or .parquet: path, error, decision, and each label's probability."""
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
        none = {} if self.decided is None else {DECIDED: None}
        rows += [
            {"path": path, "error": reason, **none, **dict.fromkeys(self.labels)}
            for path, reason in self.faults.items()
        ]
        return rows
