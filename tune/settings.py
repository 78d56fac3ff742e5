"""Settings of the stages `search` and `ensemble`; the attributes' docstrings are the texts of `--help`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.cli.stages import RunSettings


@dataclass(frozen=True)
class SearchSettings(RunSettings):
    """Settings of `search`."""

    study: str = "overlap"
    """Study to run: one of the paper's (overlap, patch, positions, pretraining, full, ensemble) or a TOML file."""
    repeats: int = 1
    """Number of seeds of each variant, counted from 0. The table shows mean and standard deviation over them."""
    winner: Path | None = None
    """File to write the best variant to, as a recipe."""

    @property
    def study_dir(self) -> Path:
        """Folder of the study's trials and results."""
        from pipeline.run_folder.layout import RunFolder  # noqa: PLC0415 - it loads torch, which `--help` must not

        return RunFolder.of(self).studies / Path(self.study).stem


@dataclass(frozen=True)
class EnsembleSettings(SearchSettings):
    """Settings of `ensemble`."""

    study: str = "ensemble"
    """Members to train: `ensemble` for the paper's (16 x 16 patches at strides 10, 12, 14, 16), or a TOML file of your
    own. Ensemble-S is the first variant with `--repeats` seeds, Ensemble-M is all variants."""
    repeats: int = 3
    """Number of seeds of the first variant. The other variants of the paper's study have one seed each."""
    subsets: bool = False
    """Scores of every subset of two or more members, written to `report/subsets.csv`."""
