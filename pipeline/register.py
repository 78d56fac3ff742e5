"""Register a run's members and ensembles as MLflow models; the best so far is `champion`, the newest `challenger`.

ast-pipeline register --recipe esc50 --run-dir work/esc50
"""

from __future__ import annotations

import io
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["register", *sys.argv[1:]])
    sys.exit()


import numpy as np
import pandas as pd
import soundfile
from rich.console import Console
from rich.table import Table

from ast_core.dataset.problems import shorten
from ast_core.errors import UserError, require
from ast_core.evaluation.metrics import headline_metric
from ast_core.redaction import without_secrets
from ast_core.weights.bundle import Bundle
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import RegisterSettings
from pipeline.run_folder.layout import ALL_BUNDLES, ALL_EVALUATION, PROBE, RunFolder
from pipeline.run_folder.opened import opened
from pipeline.scoring.results import EvaluationResult
from pipeline.tracking import mlflow_store, registry, runs
from pipeline.tracking.model_card import model_card
from pipeline.tracking.registry import CHALLENGER, CHAMPION
from pipeline.tracking.serving_requests import AUDIO

MOST_NAMES = 10
"""Classes without test clips that the screen names."""


@dataclass(frozen=True)
class Candidate:
    """A bundle that becomes a version of a model."""

    name: str
    folder: Path
    bundle: Bundle
    evaluation: EvaluationResult
    """Content of its `evaluation/NAME.json`."""
    per_class: Path
    """CSV file with its metrics of each class."""

    @property
    def decisions_digest(self) -> str:
        """Digest of its thresholds; "" if it has none."""
        return self.bundle.decisions.digest if self.bundle.decisions else ""

    @property
    def untested_labels(self) -> list[str]:
        """Labels without a clip in the test split."""
        return [label for label, row in self.evaluation.per_class.items() if not row.positives]

    @property
    def tags(self) -> dict[str, str]:
        """Tags of its version: what identifies it, where it came from, and what promotion compares."""
        facts, metrics = self.bundle.facts, self.evaluation.metrics
        metric = headline_metric("accuracy" in metrics)
        return {
            "bundle_digest": self.bundle.digest,
            "decisions_digest": self.decisions_digest,
            "data_hash": facts.data_hash,
            "recipe": facts.recipe,
            "seeds": ", ".join(str(seed) for seed in facts.seeds),
            "train_runs": ", ".join(facts.train_runs),
            "labels": str(len(self.bundle.labels)),
            "members": str(len(self.bundle.members)),
            "metric": metric,
            "score": repr(metrics[metric]),
            "evaluated_on": self.evaluation.evaluated_on,
        }


def register(settings: RegisterSettings) -> dict[str, int]:
    """Register the largest ensemble (or the only member) as NAME, other bundles as NAME-BUNDLE.

    A bundle that is registered already keeps its version. An alias is set only after its version was fetched back and
    its hashes were verified: `challenger` always, `champion` if the test split has clips of every class, and the model
    has no champion or the score is better than the champion's on the same test clips.

    Returns:
        The version by model name.

    Raises:
        UserError: the run has no bundle, a bundle was not evaluated, or the registry cannot be reached.
    """
    # Two registrations of one run at a time would each miss the other's version.
    with opened(settings, [ALL_BUNDLES, ALL_EVALUATION], exclusive="register") as run:
        candidates = _candidates(settings, run)
        mlflow_store.open_store(settings.tracking)
        tags = {"stage": "register", "run_dir": str(run.path), "model": settings.model_name}
        with runs.start_run(settings.experiment, f"{settings.experiment}-register", {}, tags) as run_id:
            require(bool(run_id), f"MLflow at {settings.tracking} failed; nothing was registered. Run register again.")
            versions = {own.name: _version(own, run_id) for own in candidates}
            for own in candidates:
                _verify(own, versions[own.name])
            verdicts = {own.name: _set_aliases(own, versions[own.name], settings.force) for own in candidates}
    _show(settings, versions, candidates, verdicts)
    return versions


def _verify(own: Candidate, version: int) -> None:
    """Fetch a version back from the registry and compare it with the bundle."""
    stored = Bundle.load(registry.fetch_bundle(f"models:/{own.name}/{version}"))
    same = stored.digest == own.bundle.digest
    require(same, f"{own.name} version {version} in the registry is another bundle than {own.folder}.")


def _is_complete(own: Candidate, version: int) -> bool:
    """Return whether the registry still has the bundle of a version with all its bytes."""
    try:
        _verify(own, version)
    except UserError:
        return False
    return True


def _show(
    settings: RegisterSettings, versions: dict[str, int], candidates: Sequence[Candidate], verdicts: dict[str, str]
) -> None:
    Console().print(_table(versions, candidates, verdicts))
    for name, verdict in verdicts.items():
        if verdict:
            Console(soft_wrap=True).print(f"{name}: {verdict}", markup=False)
    uri = shlex.quote(without_secrets(settings.tracking))
    Console(soft_wrap=True).print(f"Registry's page: mlflow ui --backend-store-uri {uri}", markup=False)


def _candidates(settings: RegisterSettings, run: RunFolder) -> list[Candidate]:
    """Return members, ensembles and a probe, the main bundle last: its alias is what everyone uses."""
    main = run.main_bundle()
    roles = {folder.name: description.facts.role for folder, description in run.described_bundles()}
    members = [name for name, role in roles.items() if role == "member"]
    ensembles = [name for name, role in roles.items() if role == "ensemble"]
    probes = [name for name, role in roles.items() if role == PROBE]
    require(bool(members or probes), f"{run.bundles} holds no bundle of a member: run combine first.")
    require(
        bool(ensembles) or len(members) <= 1,
        f"{run.bundles} holds {len(members)} members and no ensemble: run combine again.",
    )
    others = [name for name in [*members, *ensembles, *probes] if name != main or name not in ensembles]
    models = [(f"{settings.model_name}-{name}", name) for name in others] + [(settings.model_name, main)]
    return [_candidate(run, model, bundle) for model, bundle in models]


def _candidate(run: RunFolder, model: str, name: str) -> Candidate:
    folder = run.bundle(name)
    result = EvaluationResult.load(run.result(name), "Evaluation (run evaluate)")
    bundle = Bundle.load(folder)
    require(result.bundle_digest == bundle.digest, f"{folder} changed after it was evaluated: run evaluate again.")
    return Candidate(model, folder, bundle, result, run.per_class(name))


def _version(own: Candidate, run_id: str) -> int:
    """Return the version that holds this bundle, a known or a new one, and set its texts."""
    card = model_card(own.name, own.bundle, own.evaluation)
    version = registry.find_version(own.name, own.bundle.digest, own.decisions_digest)
    if version is not None and not _is_complete(own, version):
        mlflow_store.warn(f"{own.name} version {version} lost its files, so its bundle becomes a new version")
        version = None
    if version is None:
        example = _example(own.bundle.front_end.sample_rate_hz)
        metrics = {key: value for key, value in own.evaluation.metrics.items() if value is not None}
        version = registry.add_version(own.name, own.folder, run_id, example, metrics, own.tags)
    with tempfile.TemporaryDirectory() as scratch:
        readme = Path(scratch) / "README.md"
        readme.write_text(card, encoding="utf-8")
        runs.log_artifacts(run_id, readme, under=f"models/{own.name}")
    runs.log_artifacts(run_id, own.per_class, under=f"models/{own.name}")
    registry.describe_version(own.name, version, card)
    return version


def _set_aliases(own: Candidate, version: int, force: bool) -> str:
    """Set the aliases; return why this version does not become the champion, "" if it is the champion."""
    registry.set_alias(own.name, CHALLENGER, version)
    champion = registry.version_of_alias(own.name, CHAMPION)
    if champion is not None and not force and not registry.has_files(own.name, champion.number):
        champion = None  # no one can use it
    is_champion = champion is not None and champion.number == version
    if own.untested_labels and not is_champion and not force:
        who = f"version {champion.number} stays champion" if champion else "it is not champion"
        names = ", ".join(shorten(label) for label in own.untested_labels[:MOST_NAMES])
        return (
            f"{who}: {len(own.untested_labels)} of {len(own.bundle.labels)} classes have no clips in the test split "
            f"({names}); --force promotes this one"
        )
    if champion is not None and not is_champion and not force:
        score, theirs = float(own.tags["score"]), champion.tags.get("score", "")
        if champion.tags.get("evaluated_on") != own.tags["evaluated_on"] or not theirs:
            return f"version {champion.number} stays champion: it was tested on other clips; --force promotes this one"
        retuned = champion.tags.get("bundle_digest") == own.bundle.digest
        if not (score > float(theirs) or retuned):
            return f"version {champion.number} stays champion: {float(theirs):.4f}, this one {score:.4f}"
    if not is_champion:
        registry.set_alias(own.name, CHAMPION, version)
    return ""


def _example(rate_hz: int) -> pd.DataFrame:
    """Return the bytes of a WAV file: one second of a 440 Hz tone."""
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz)
    content = io.BytesIO()
    soundfile.write(content, tone.astype(np.float32), rate_hz, format="WAV", subtype="PCM_16")
    return pd.DataFrame({AUDIO: [content.getvalue()]})


def _table(versions: dict[str, int], candidates: Sequence[Candidate], verdicts: dict[str, str]) -> Table:
    table = Table("model", "version", "score", "aliases", title="register")
    for own in candidates:
        score = f"{own.tags['metric']} {float(own.tags['score']):.4f}"
        table.add_row(
            own.name, str(versions[own.name]), score, CHALLENGER + ("" if verdicts[own.name] else f", {CHAMPION}")
        )
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: register(parse_settings(RegisterSettings, __doc__, argv)))
