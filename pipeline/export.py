"""Export a bundle or registered model: to Hugging Face's format, or to ONNX with the front end inside.

python pipeline/export.py FOLDER --model work/demo/bundles/seed-0
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ast_core.errors import require
from ast_core.weights.bundle import Bundle
from ast_core.weights.huggingface import HuggingFaceModel, write_folder
from ast_core.weights.onnx_export import export_onnx
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import ExportSettings
from pipeline.tracking.registry import bundle_folder


def export(settings: ExportSettings) -> Path:
    """Write the model in another format.

    Returns:
        What was written.

    Raises:
        UserError: the format cannot say what this model is, or needs an extra that is not installed.
    """
    bundle = Bundle.load(bundle_folder(settings.model, settings.tracking))
    if settings.format == "onnx":
        export_onnx(bundle, settings.output)
    else:
        write_folder(settings.output, _only_member(bundle))
    Console().print(f"Wrote {settings.output}: {len(bundle.members)} members, {len(bundle.labels)} labels.")
    return settings.output


def _only_member(bundle: Bundle) -> HuggingFaceModel:
    require(
        len(bundle.members) == 1,
        f"Hugging Face's format holds one model, this is an ensemble of {len(bundle.members)}: "
        "give one member's bundle.",
    )
    member = bundle.members[0]
    return HuggingFaceModel(
        model=member.config,
        front_end=member.front_end,
        mean=member.mean,
        std=member.std,
        labels=bundle.labels,
        single_label=bundle.single_label,
        weights={key: value.cpu() for key, value in member.model.state_dict().items()},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: export(parse_settings(ExportSettings, __doc__, argv)))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.export import main

    main()
