"""The program `ast-pipeline STAGE`: every stage as a sub-command.

It parses a stage's flags before it imports the stage, so `--help` and a wrong flag need no torch, Ray or MLflow.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from pipeline.cli.command_line import parse_settings
from pipeline.cli.inputs import require_inputs
from pipeline.cli.program import run_stage

PROGRAM = "ast-pipeline"


@dataclass(frozen=True)
class StageEntry:
    """Place of a stage and of its settings, as names: nothing is imported before it is needed."""

    module: str
    """Module of the stage; its function with the module's last name runs the stage."""
    settings: str
    """Class of its settings."""
    settings_module: str = "pipeline.cli.stages"
    starts_ray: bool = False
    """Whether the stage begins with work for Ray, which can then start while the stage's libraries are imported."""

    def load_settings_class(self) -> type[Any]:
        """Return the class of the stage's settings."""
        found: type[Any] = getattr(importlib.import_module(self.settings_module), self.settings)
        return found

    def read_docstring(self) -> str:
        """Return the docstring of the stage's module, which is read but not imported."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{self.module} is not installed.")
        return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""

    def run(self, settings: Any) -> Any:
        """Import the stage and run it with settings of its class."""
        with self._start_ray(settings):
            stage = getattr(importlib.import_module(self.module), self.module.rpartition(".")[2])
            return stage(settings)

    def _start_ray(self, settings: Any) -> contextlib.AbstractContextManager[None]:
        if not self.starts_ray:
            return contextlib.nullcontext()
        from pipeline.ray_runtime import connection  # noqa: PLC0415  # imports Ray

        return connection.start_early(settings.address, settings.workers)


STAGES = {
    "run": StageEntry("pipeline.run", "RunSettings", starts_ray=True),
    "check": StageEntry("pipeline.check", "CheckSettings"),
    "prepare": StageEntry("pipeline.prepare", "PrepareSettings", starts_ray=True),
    "train": StageEntry("pipeline.train", "TrainSettings", starts_ray=True),
    "combine": StageEntry("pipeline.combine", "CombineSettings"),
    "evaluate": StageEntry("pipeline.evaluate", "EvaluateSettings"),
    "calibrate": StageEntry("pipeline.calibrate", "CalibrateSettings"),
    "register": StageEntry("pipeline.register", "RegisterSettings"),
    "report": StageEntry("pipeline.report", "ReportSettings"),
    "predict": StageEntry("pipeline.predict", "PredictSettings"),
    "listen": StageEntry("pipeline.listen", "ListenSettings", "pipeline.cli.listen_settings"),
    "embed": StageEntry("pipeline.embed", "EmbedSettings"),
    "probe": StageEntry("pipeline.probe", "ProbeSettings"),
    "serve": StageEntry("pipeline.serve", "ServeSettings"),
    "export": StageEntry("pipeline.export", "ExportSettings"),
    "cross-validate": StageEntry("pipeline.cross_validate", "CrossValidateSettings", starts_ray=True),
    "search": StageEntry("tune.search", "SearchSettings", "tune.settings", starts_ray=True),
    "ensemble": StageEntry("tune.ensemble", "EnsembleSettings", "tune.settings"),
}
"""Stages by the name of their sub-command, in the order of `--help`."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the program `ast-pipeline`."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0].replace("_", "-") if words else ""  # `cross_validate` is the name of the file
    entry = STAGES.get(name)
    if entry is not None:
        run_stage(lambda: entry.run(_parse_stage(name, entry, words[1:])))
        return
    parser = _top_level_parser()
    if words and not words[0].startswith("-"):
        similar = difflib.get_close_matches(name.lower(), STAGES, 1)
        advice = f"Did you mean {similar[0]}? " if similar else ""
        parser.error(f"the stage {words[0]!r} does not exist. {advice}`{PROGRAM} --help` lists the stages.")
    if shell := parser.parse_args(words).print_completion:
        _print_completion(shell)
    else:
        parser.print_help()


def _parse_stage(name: str, entry: StageEntry, flags: Sequence[str]) -> Any:
    settings = parse_settings(entry.load_settings_class(), entry.read_docstring(), flags, f"{PROGRAM} {name}")
    require_inputs(settings)
    return settings


def _top_level_parser() -> argparse.ArgumentParser:
    """Return the parser of a command line that does not begin with a stage."""
    width = max(map(len, STAGES)) + 2
    lines = (f"  {name:{width}}{entry.read_docstring().splitlines()[0]}" for name, entry in STAGES.items())
    parser = argparse.ArgumentParser(
        PROGRAM,
        usage=f"{PROGRAM} STAGE [flags of the stage]\n       {PROGRAM} STAGE --help",
        description="The Audio Spectrogram Transformer as a pipeline on Ray and MLflow.",
        epilog="\n".join(["stages:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    parser.add_argument(
        "--print-completion",
        choices=("bash", "zsh", "tcsh"),
        help="print the script with which this shell completes stages and flags, then exit",
    )
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version(PROGRAM)
    except importlib.metadata.PackageNotFoundError:  # the image holds the files only
        return "(not installed)"


def _print_completion(shell: str) -> None:
    stages: dict[str, Callable[..., Any]] = {name: entry.load_settings_class() for name, entry in STAGES.items()}
    tyro.extras.subcommand_cli_from_dict(stages, prog=PROGRAM, args=["--tyro-print-completion", shell])


if __name__ == "__main__":
    main()
