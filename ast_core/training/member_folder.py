"""Every path in the folder of one member, which is what a training writes: `members/seed-N`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MemberFolder:
    """The folder of one member."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the member, such as `seed-0`."""
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints that a training resumes from."""
        return self.path / "checkpoints"

    @property
    def epochs(self) -> Path:
        """Folder with the weights of every finished epoch."""
        return self.path / "epochs"

    def epoch(self, number: int) -> Path:
        """Return the folder of one epoch's weights; epochs count from 1."""
        return self.epochs / f"epoch-{number:04d}"

    @property
    def history(self) -> Path:
        """JSON lines with one row for each epoch."""
        return self.path / "metrics.jsonl"

    @property
    def settings_file(self) -> Path:
        """JSON file with the settings that the training was started with."""
        return self.path / "run.json"
