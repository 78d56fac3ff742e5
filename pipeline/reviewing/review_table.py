"""The table `clips.csv` of clips whose labels look wrong, which the user fills in.

| column | value |
|---|---|
| `clip_id` | id of the clip |
| `labels` | labels that it has, with `;` between several |
| `suggested_labels` | labels that probe and neighbours suggest |
| `corrected_labels` | empty: the user writes the right labels here |
| `leave_out` | empty: the user writes `yes` here to leave the clip out |
| `suspicion` | 1 minus the mean of `probe` and `neighbours`; the table is sorted by it |
| `because` | `loss`, `neighbours`, or both: what disagrees with the labels by itself |
| `label_at_issue` | class that the suspicion is about |
| `probe`, `neighbours` | probability by the probe, and share of the neighbours, that the clip is right about it |
| `loss` | loss of the probe for the clip |
| `split` | split of the clip |
| `path` | its recording; a segment's is followed by its times |
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ast_core.dataset.clips import Clip
from ast_core.dataset.contents.clip_contents import describe_recording
from ast_core.dataset.loose.label_cells import join_labels
from ast_core.evaluation.prediction_table import to_text
from ast_core.probing.label_review import Suspect
from ast_core.redaction import without_secrets
from ast_core.storage.atomic_files import atomic_write

ID, LABELS, CORRECTED, LEFT_OUT = "clip_id", "labels", "corrected_labels", "leave_out"
COLUMNS = (
    ID, LABELS, "suggested_labels", CORRECTED, LEFT_OUT, "suspicion", "because", "label_at_issue", "probe",
    "neighbours", "loss", "split", "path",
)  # fmt: skip


@dataclass(frozen=True)
class SuspectRow:
    """A suspect as the table and the page show it."""

    clip_id: str
    labels: tuple[str, ...]
    suggested: tuple[str, ...]
    suspicion: float
    because: str
    label: str
    """Class that the suspicion is about."""
    given: bool
    """Whether the clip has this class."""
    probe: float
    neighbours: float
    loss: float
    split: str
    path: str


def make_row(suspect: Suspect, clip: Clip, names: Sequence[str], audio_column: str) -> SuspectRow:
    """Return a suspect with names instead of numbers."""
    reasons = [word for word, own in (("loss", suspect.by_probe), ("neighbours", suspect.by_neighbours)) if own]
    path = describe_recording(clip, audio_column)
    if clip.is_segment:
        path += f", {clip.start_s:g} s to {'the end' if clip.end_s is None else f'{clip.end_s:g} s'}"
    return SuspectRow(
        to_text(clip.clip_id),
        tuple(names[label] for label in clip.labels),
        tuple(names[label] for label in suspect.suggested),
        suspect.suspicion,
        " and ".join(reasons) or "both together",
        names[suspect.label],
        suspect.given,
        suspect.probe,
        suspect.neighbours,
        suspect.loss,
        clip.split,
        without_secrets(to_text(path)),
    )


def write_review(path: Path, rows: Sequence[SuspectRow]) -> None:
    """Commit the table."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow([
            row.clip_id, join_labels(row.labels), join_labels(row.suggested), "", "", f"{row.suspicion:.4f}",
            row.because, row.label, f"{row.probe:.4f}", f"{row.neighbours:.4f}", f"{row.loss:.4f}", row.split, row.path,
        ])  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
