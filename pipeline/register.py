"""Register a run's members and ensembles as MLflow models; the best so far is `champion`, the newest `challenger`.

python pipeline/register.py --recipe esc50 --run-dir work/esc50
"""

from __future__ import annotations

import io
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from rich.console import Console
from rich.table import Table

from ast_core.errors import require
from ast_core.redaction import without_secrets
from ast_core.storage.json_files import read_hashed_json, read_json
from ast_core.weights.bundle import DESCRIPTION, Bundle
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import RegisterSettings
from pipeline.run_folder import folder_lock, sync
from pipeline.tracking import mlflow_store, registry, runs
from pipeline.tracking.model_card import model_card
from pipeline.tracking.pyfunc import AUDIO
from pipeline.tracking.registry import CHALLENGER, CHAMPION


@dataclass(frozen=True)
class Candidate:
    """A bundle that is to be a model's version."""

    name: str
    folder: Path
    bundle: Bundle
    evaluation: dict[str, Any]
    """Content of its `evaluation/NAME.json`."""

    @property
    def decisions_digest(self) -> str:
        """Of its thresholds; "" without."""
        return self.bundle.decisions.digest if self.bundle.decisions else ""

    @property
    def tags(self) -> dict[str, str]:
        """What a version is told by, where it came from, and what promotion looks at."""
        facts, metrics = self.bundle.facts, self.evaluation["metrics"]
        metric = "accuracy" if "accuracy" in metrics else "mAP"
        return {
            "bundle_digest": self.bundle.digest,
            "decisions_digest": self.decisions_digest,
            "data_hash": str(facts.get("data_hash", "")),
            "recipe": str(facts.get("recipe", "")),
            "seeds": ", ".join(str(seed) for seed in facts.get("seeds", [])),
            "train_runs": ", ".join(facts.get("train_runs", [])),
            "labels": str(len(self.bundle.labels)),
            "members": str(len(self.bundle.members)),
            "metric": metric,
            "score": repr(metrics[metric]),
            "evaluated_on": str(self.evaluation.get("evaluated_on", "")),
        }


def register(settings: RegisterSettings) -> dict[str, int]:
    """Register the largest ensemble (or the only member) as NAME, other bundles as NAME-BUNDLE.

    A bundle that is registered already keeps its version. An alias is set only after its version was fetched back and
    its hashes were verified: `challenger` always, `champion` where there is none or the score on the very same test
    clips is better than its.

    Returns:
        The version by model name.

    Raises:
        UserError: no bundle, one that was not evaluated, or the registry cannot be reached.
    """
    sync.download_inputs(settings, files=["bundles/*", "evaluation/*"])
    # Two registrations of one run at a time would each miss the other's version.
    with folder_lock.lock_folder(settings.run_dir / "bundles", "registered"):
        return _registered(settings)


def _registered(settings: RegisterSettings) -> dict[str, int]:
    candidates = _candidates(settings)
    mlflow_store.open_store(settings.tracking)
    tags = {"stage": "register", "run_dir": str(settings.run_dir), "model": settings.model_name}
    versions: dict[str, int] = {}
    verdicts: dict[str, str] = {}
    with runs.start_run(settings.experiment, f"{settings.experiment}-register", {}, tags) as run_id:
        require(bool(run_id), f"MLflow at {settings.tracking} cannot be used; nothing was registered. Run it again.")
        for own in candidates:
            versions[own.name] = _version(own, run_id)
        for own in candidates:
            stored = Bundle.load(registry.fetch_bundle(f"models:/{own.name}/{versions[own.name]}"))
            whole = stored.digest == own.bundle.digest
            require(whole, f"{own.name} version {versions[own.name]} in the registry is another bundle.")
        for own in candidates:
            verdicts[own.name] = _set_aliases(own, versions[own.name], settings.force)
    Console().print(_table(versions, candidates, verdicts))
    for name, verdict in verdicts.items():
        if verdict:
            Console(soft_wrap=True).print(f"{name}: {verdict}", markup=False)
    uri = shlex.quote(without_secrets(settings.tracking))
    Console(soft_wrap=True).print(f"Registry's page: mlflow ui --backend-store-uri {uri}", markup=False)
    return versions


def _candidates(settings: RegisterSettings) -> list[Candidate]:
    """Members and ensembles, the main one last: its alias is what everyone uses."""
    bundles = settings.run_dir / "bundles"
    described = {path.parent: read_hashed_json(path, "Bundle") for path in sorted(bundles.glob(f"*/{DESCRIPTION}"))}
    roles = {folder: content["facts"].get("role") for folder, content in described.items()}
    members = [folder for folder, role in roles.items() if role == "member"]
    ensembles = [folder for folder, role in roles.items() if role == "ensemble"]
    require(bool(members), f"There is no bundle of a member in {bundles}: run combine first.")
    require(
        bool(ensembles) or len(members) == 1,
        f"{bundles} has {len(members)} members and no ensemble: run combine again.",
    )
    main = max(ensembles, key=lambda folder: len(described[folder]["members"]), default=members[0])
    names = {folder: f"{settings.model_name}-{folder.name}" for folder in [*members, *ensembles] if folder != main}
    if main in members:
        names[members[0]] = f"{settings.model_name}-{members[0].name}"
    own = [(name, folder) for folder, name in names.items()] + [(settings.model_name, main)]
    return [Candidate(name, folder, Bundle.load(folder), _evaluation(settings, folder)) for name, folder in own]


def _evaluation(settings: RegisterSettings, folder: Path) -> dict[str, Any]:
    path = settings.run_dir / "evaluation" / f"{folder.name}.json"
    result: dict[str, Any] = read_json(path, "Evaluation (run evaluate)")
    own = read_hashed_json(folder / DESCRIPTION, "Bundle")["digest"]
    require(result["bundle_digest"] == own, f"{folder} changed after it was evaluated: run evaluate again.")
    return result


def _version(own: Candidate, run_id: str) -> int:
    """The model's version that holds this bundle: the known one, or a new one. Its texts are set either way."""
    card = model_card(own.name, own.bundle, own.evaluation)
    version = registry.find_version(own.name, own.bundle.digest, own.decisions_digest)
    if version is None:
        example = _example(own.bundle.front_end.sample_rate_hz)
        metrics = {key: value for key, value in own.evaluation["metrics"].items() if value is not None}
        version = registry.add_version(own.name, own.folder, run_id, example, own.bundle.labels, metrics, own.tags)
    with tempfile.TemporaryDirectory() as scratch:
        readme = Path(scratch) / "README.md"
        readme.write_text(card, encoding="utf-8")
        runs.log_artifacts(run_id, readme, under=f"models/{own.name}")
    runs.log_artifacts(run_id, _per_class(own), under=f"models/{own.name}")
    registry.describe_version(own.name, version, card)
    return version


def _per_class(own: Candidate) -> Path:
    return own.folder.parents[1] / "evaluation" / f"{own.folder.name}-per-class.csv"


def _set_aliases(own: Candidate, version: int, force: bool) -> str:
    """Point the aliases; gives why another version stays the champion, "" if this one is it."""
    registry.set_alias(own.name, CHALLENGER, version)
    champion = registry.version_of_alias(own.name, CHAMPION)
    if champion is not None and champion.number != version and not force:
        score, theirs = float(own.tags["score"]), champion.tags.get("score", "")
        if champion.tags.get("evaluated_on") != own.tags["evaluated_on"] or not theirs:
            return f"version {champion.number} stays champion: it was tested on other clips; --force promotes this one"
        retuned = champion.tags.get("bundle_digest") == own.bundle.digest
        if not (score > float(theirs) or retuned):
            return f"version {champion.number} stays champion: {float(theirs):.4f}, this one {score:.4f}"
    if champion is None or champion.number != version:
        registry.set_alias(own.name, CHAMPION, version)
    return ""


def _example(rate_hz: int) -> pd.DataFrame:
    """A second of a 440 Hz tone as a WAV file's bytes."""
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


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.register import main

    main()
