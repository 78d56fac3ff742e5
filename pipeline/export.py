"""Export a bundle or registered model: to Hugging Face's format, or to ONNX with the front end inside.

ast-pipeline export FOLDER --model work/esc50/bundles/seed-0
ast-pipeline export FILE.onnx --format onnx --model work/demo/bundles/ensemble

Hugging Face's format holds one member, with square patches, a distilled backbone and the default windows. ONNX holds
any of these and ensembles, and with --embeddings returns their embeddings, too. Neither holds a model that masks
padding.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["export", *sys.argv[1:]])
    sys.exit()


from rich.console import Console

from ast_core.errors import UserError, require
from ast_core.weights.bundle import Bundle
from ast_core.weights.huggingface import HuggingFaceModel, find_export_obstacle, write_folder
from ast_core.weights.onnx_export import export_onnx, name_outputs
from pipeline.cli.command_line import load_recipe, parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.recipe_file import RECIPES
from pipeline.cli.stages import ExportSettings
from pipeline.tracking.model_choice import fetch_model_folder


def export(settings: ExportSettings) -> Path:
    """Write the model in another format.

    Returns:
        What was written.

    Raises:
        UserError: the format cannot hold the model, or needs an extra that is not installed.
    """
    require(
        settings.format == "onnx" or not settings.embeddings,
        "--embeddings adds outputs to an ONNX graph; give --format onnx. transformers returns the embeddings of a "
        "folder in Hugging Face's format by itself: ASTModel's pooler_output and hidden_states.",
    )
    bundle = Bundle.load(fetch_model_folder(settings.model, settings.tracking))
    if settings.format == "onnx":
        export_onnx(bundle, settings.output, settings.embeddings)
    else:
        write_folder(settings.output, _only_member(bundle))
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"Wrote {settings.output}: {len(bundle.members)} members, {len(bundle.labels)} labels.", markup=False)
    if settings.embeddings:
        names = ", ".join(member.name for member in bundle.members)
        console.print(f"Outputs: {', '.join(name_outputs(bundle, True))}; members: {names}.", markup=False)
    return settings.output


def _only_member(bundle: Bundle) -> HuggingFaceModel:
    """Return the member of a bundle of one, if Hugging Face's format can hold it."""
    require(
        len(bundle.members) == 1,
        f"Hugging Face's format holds one model, this is an ensemble of {len(bundle.members)}: "
        "give one member's bundle, or export the ensemble with --format onnx.",
    )
    member = bundle.members[0]
    reason = find_export_obstacle(member.config, member.front_end)
    if reason:
        advice = "Train" if member.config.mask_padding else "Export it with --format onnx, or train"
        raise UserError(
            f"Hugging Face's format cannot hold {member.name}: {reason}. {advice} one of the recipes whose models the "
            f"format can hold: {', '.join(list_exportable_recipes())}."
        )
    return HuggingFaceModel(
        model=member.config,
        front_end=member.front_end,
        mean=member.mean,
        std=member.std,
        labels=bundle.labels,
        single_label=bundle.single_label,
        weights={key: value.cpu() for key, value in member.model.state_dict().items()},
    )


def list_exportable_recipes() -> list[str]:
    """Return the packaged recipes whose models Hugging Face's format can hold."""
    recipes = {path.stem: load_recipe(path.stem) for path in sorted(RECIPES.glob("*.toml"))}
    return [name for name, recipe in recipes.items() if not find_export_obstacle(recipe.model, recipe.front_end)]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: export(parse_settings(ExportSettings, __doc__, argv)))
