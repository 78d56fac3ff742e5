"""Register a run's members and ensemble as MLflow models; the alias `champion` moves last.

python pipeline/register.py --recipe esc50 --run-dir work/esc50
"""

from __future__ import annotations

import io
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pandas as pd
import soundfile
from rich.console import Console
from rich.table import Table

from ast_core.bundle import Bundle
from ast_core.config import require
from ast_core.files import read_json
from pipeline import tracking
from pipeline.card import model_card
from pipeline.serving import AUDIO, Tagger
from pipeline.settings import RegisterSettings, parse, run_stage

ALIAS = "champion"
"""What `predict` asks for."""


def register(settings: RegisterSettings) -> dict[str, int]:
    """Register the ensemble (or the only member) as NAME and each member as NAME-seed-N.

    A bundle that is registered already keeps its version. An alias is set only after its version was fetched back and
    its hashes were verified.

    Returns:
        The version by model name.

    Raises:
        UserError: no bundle, one that was not evaluated, or the registry cannot be reached.
    """
    names = _names(settings)
    evaluations = {folder: _evaluation(settings, folder) for folder in names.values()}
    tracking.open_store(settings.tracking)
    tags = {"stage": "register", "run_dir": str(settings.run_dir), "model": settings.model_name}
    versions: dict[str, int] = {}
    digests: dict[str, str] = {}
    # Two registrations of one run at a time would each miss the other's version.
    with (
        filelock.FileLock(settings.run_dir / ".register.lock"),
        tracking.start_run(settings.experiment, f"{settings.experiment}-register", {}, tags) as run_id,
    ):
        require(bool(run_id), f"MLflow at {settings.tracking} cannot be used; nothing was registered. Run it again.")
        for name, folder in names.items():
            bundle = Bundle.load(folder)
            versions[name] = _version(name, folder, bundle, run_id, evaluations[folder])
            digests[name] = bundle.digest
        for name, version in versions.items():
            stored = Bundle.load(tracking.fetch_bundle(f"models:/{name}/{version}"))
            require(stored.digest == digests[name], f"{name} version {version} in the registry is another bundle.")
        for name, version in versions.items():
            tracking.set_alias(name, ALIAS, version)
    Console().print(_table(versions, digests))
    uri = shlex.quote(settings.tracking)
    Console(soft_wrap=True).print(f"Registry's page: mlflow ui --backend-store-uri {uri}", markup=False)
    return versions


def _names(settings: RegisterSettings) -> dict[str, Path]:
    """Bundle folders by model name, the main one last: its alias is what everyone uses."""
    bundles = settings.run_dir / "bundles"
    described = sorted(path.parent for path in bundles.glob("seed-*/bundle.json"))
    members = [folder for folder in described if folder.name.removeprefix("seed-").isdigit()]
    require(bool(members), f"There is no bundle in {bundles}: run combine first.")
    ensemble = bundles / "ensemble"
    whole = (ensemble / "bundle.json").is_file()
    require(whole or len(members) == 1, f"{ensemble} is missing for {len(members)} members: run combine again.")
    names = {f"{settings.model_name}-{folder.name}": folder for folder in members}
    return names | {settings.model_name: ensemble if whole else members[0]}


def _evaluation(settings: RegisterSettings, folder: Path) -> dict[str, Any]:
    path = settings.run_dir / "evaluation" / f"{folder.name}.json"
    result: dict[str, Any] = read_json(path, "Evaluation (run evaluate)")
    own = read_json(folder / "bundle.json", "Bundle")["digest"]
    require(result["bundle_digest"] == own, f"{folder} changed after it was evaluated: run evaluate again.")
    return result


def _version(name: str, folder: Path, bundle: Bundle, run_id: str, evaluation: dict[str, Any]) -> int:
    """The model's version that holds this bundle: the known one, or a new one. Its texts are set either way."""
    card = model_card(name, bundle, evaluation)
    version = tracking.find_version(name, bundle.digest)
    if version is None:
        example = _example(bundle.front_end.sample_rate_hz)
        metrics = {key: value for key, value in evaluation["metrics"].items() if value is not None}
        tags = {
            "bundle_digest": bundle.digest,
            "data_hash": str(bundle.facts.get("data_hash", "")),
            "recipe": str(bundle.facts.get("recipe", "")),
            "labels": str(len(bundle.labels)),
            "members": str(len(bundle.members)),
        }
        version = tracking.add_version(name, folder, run_id, example, Tagger(folder).predict(example), metrics, tags)
    with tempfile.TemporaryDirectory() as scratch:
        readme = Path(scratch) / "README.md"
        readme.write_text(card, encoding="utf-8")
        tracking.log_artifacts(run_id, readme, under=f"cards/{name}")
    tracking.describe_version(name, version, card)
    return version


def _example(rate_hz: int) -> pd.DataFrame:
    """A second of a 440 Hz tone as a WAV file's bytes."""
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz)
    content = io.BytesIO()
    soundfile.write(content, tone.astype(np.float32), rate_hz, format="WAV", subtype="PCM_16")
    return pd.DataFrame({AUDIO: [content.getvalue()]})


def _table(versions: dict[str, int], digests: dict[str, str]) -> Table:
    table = Table("model", "version", "alias", "digest", title="register")
    for name, version in versions.items():
        table.add_row(name, str(version), ALIAS, digests[name][:12])
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: register(parse(RegisterSettings, __doc__, argv)))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.register import main

    main()
