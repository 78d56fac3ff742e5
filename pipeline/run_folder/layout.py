"""Every path in the folder of a run. No other file spells the names of these folders and files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ast_core.errors import require
from ast_core.training.member_folder import MemberFolder
from ast_core.weights.bundle_description import FILE as DESCRIPTION
from ast_core.weights.bundle_description import Description, read_description

if TYPE_CHECKING:  # workers import this module, and need no command line
    from pipeline.cli.stages import Common

MEMBERS, BUNDLES, EVALUATION, CALIBRATION = "members", "bundles", "evaluation", "calibration"
TEACHER, STUDIES, TRIALS = "teacher", "studies", "trials"
EMBEDDINGS_FOLDER = "embeddings"
PROBE = "probe"
"""Name of the bundle that `probe` writes, and its role."""

HISTORIES = f"{MEMBERS}/*/{MemberFolder(Path()).history.name}"
SETTINGS_FILES = f"{MEMBERS}/*/{MemberFolder(Path()).settings_file.name}"
ALL_BUNDLES, ALL_EVALUATION, ALL_CALIBRATION, ALL_TEACHER, ALL_EMBEDDINGS = (
    f"{folder}/*" for folder in (BUNDLES, EVALUATION, CALIBRATION, TEACHER, EMBEDDINGS_FOLDER)
)
ALL_STUDIES = (
    f"{STUDIES}/*/report/*", f"{STUDIES}/*/{BUNDLES}/*", f"{STUDIES}/*/{EVALUATION}/summary.json",
)  # fmt: skip
"""Patterns of files below a run folder, for what a stage reads; `*` stands for folders too."""


def member_name(seed: int) -> str:
    """Return the name of a member's folder and of its bundle."""
    return f"seed-{seed}"


def member_files(seed: int, names: Iterable[str]) -> list[str]:
    """Return the patterns of some files in a member's folder."""
    return [f"{MEMBERS}/{member_name(seed)}/{name}" for name in names]


def trial_files(study: str, patterns: Iterable[str]) -> list[str]:
    """Return the patterns of some files in the run folders of a study's trials."""
    return [f"{STUDIES}/{study}/{TRIALS}/*/{pattern}" for pattern in patterns]


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, of a study or of a study's trial."""

    path: Path
    shards: Path
    """Folder of the shards, which may lie elsewhere and serve several runs."""

    @classmethod
    def of(cls, settings: Common) -> RunFolder:
        """Return the folder that the settings of a stage name."""
        return cls(settings.run_dir, settings.shards)

    def member(self, seed: int) -> MemberFolder:
        """Return the folder of one member."""
        return MemberFolder(self.path / MEMBERS / member_name(seed))

    def members(self) -> list[MemberFolder]:
        """Return the folders of all members that were started, by name."""
        return [MemberFolder(path.parent) for path in sorted(self.path.glob(SETTINGS_FILES))]

    @property
    def bundles(self) -> Path:
        """Folder of the bundles."""
        return self.path / BUNDLES

    def bundle(self, name: str) -> Path:
        """Return the folder of one bundle."""
        return self.bundles / name

    def described_bundles(self) -> Iterator[tuple[Path, Description]]:
        """Yield folder and description of every bundle, by name."""
        for path in sorted(self.bundles.glob(f"*/{DESCRIPTION}")):
            yield path.parent, read_description(path.parent)

    def main_bundle(self) -> str:
        """Return the bundle that stands for the run: the largest ensemble, else the first member, else the probe.

        Raises:
            UserError: no bundle exists.
        """
        sizes: dict[str, dict[str, int]] = {}
        for folder, description in self.described_bundles():
            role = description.facts.role or "member"  # `combine` writes it; a bundle from elsewhere may lack it
            sizes.setdefault(role, {})[folder.name] = len(description.members)
        members, ensembles = sizes.get("member", {}), sizes.get("ensemble", {})
        members = members or sizes.get(PROBE, {})
        require(bool(members or ensembles), f"{self.bundles} holds no bundle: run combine first.")
        return max(ensembles, key=lambda name: ensembles[name]) if ensembles else next(iter(members))

    @property
    def evaluation(self) -> Path:
        """Folder of scores, metrics and pictures on the test split."""
        return self.path / EVALUATION

    def result(self, bundle: str) -> Path:
        """Return the JSON file with a bundle's metrics on the test split."""
        return self.evaluation / f"{bundle}.json"

    def scores(self, bundle: str) -> Path:
        """Return the Parquet file with a bundle's probabilities of the test clips."""
        return self.evaluation / f"{bundle}-scores.parquet"

    def per_class(self, bundle: str) -> Path:
        """Return the CSV file with a bundle's metrics of each class."""
        return self.evaluation / f"{bundle}-per-class.csv"

    @property
    def summary(self) -> Path:
        """JSON file with the metrics of all bundles."""
        return self.evaluation / "summary.json"

    @property
    def distillation(self) -> Path:
        """JSON file that compares a teacher with its students."""
        return self.evaluation / "distillation.json"

    @property
    def calibration(self) -> Path:
        """Folder of scores on the validation split, and of what calibration changes."""
        return self.path / CALIBRATION

    @property
    def teacher(self) -> Path:
        """Folder of the teacher's bundle and its probabilities of the training clips."""
        return self.path / TEACHER

    @property
    def studies(self) -> Path:
        """Folder of the studies."""
        return self.path / STUDIES

    def fold(self, held_out: str) -> Path:
        """Return the run folder of the training that holds one fold out."""
        return self.path / "folds" / held_out

    def folds_result(self, seed: int) -> Path:
        """Return the folder of a cross-validation's results."""
        return self.path / "folds-result" / member_name(seed)

    @property
    def embeddings(self) -> Path:
        """Folder of the embeddings that `probe` makes."""
        return self.path / EMBEDDINGS_FOLDER

    @property
    def probe(self) -> Path:
        """Folder of what `probe` chose and found."""
        return self.path / PROBE

    @property
    def probe_result(self) -> Path:
        """JSON file with everything that `probe` chose and found."""
        return self.probe / "probe.json"

    @property
    def report_page(self) -> Path:
        """The report, one HTML file."""
        return self.path / "report.html"

    @property
    def report_pictures(self) -> Path:
        """Folder of the pictures that only the report shows."""
        return self.path / "report"

    @property
    def review(self) -> Path:
        """Folder of the review of labels: the table, and the embeddings that it compares."""
        return self.path / "review"

    @property
    def review_table(self) -> Path:
        """CSV file of the clips whose labels look wrong."""
        return self.review / "clips.csv"

    @property
    def synthetic_audio(self) -> Path:
        """Folder of the recordings that the demo makes."""
        return self.path / "audio"

    @property
    def archive_listings(self) -> Path:
        """Folder of what tar archives in an object store hold, so that they are read once for that."""
        return self.path / "archive-listings"

    @property
    def test_recordings(self) -> Path:
        """Folder of the test recordings that were taken out of Parquet files, archives or object stores to be shown."""
        return self.path / "recordings"

    @property
    def hub_models(self) -> Path:
        """JSON file with the commits and hashes of the models of Hugging Face's hub that the run uses."""
        return self.path / "hub-models.json"

    @property
    def stage_seconds(self) -> Path:
        """JSON file with the seconds that each stage of `run` took."""
        return self.path / "seconds.json"
