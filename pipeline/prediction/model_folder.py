"""The folder of the bundle that `predict` and `embed` use."""

from __future__ import annotations

from pathlib import Path


def find_model_folder(model: str, tracking: str) -> Path:
    """Return the folder of a bundle; a registered model is downloaded from its store if it is on another machine.

    Args:
        model: value of `--model`.
        tracking: value of `--tracking`.

    Raises:
        UserError: the registered model does not exist, or its store does not answer.
    """
    if not model.startswith(("models:/", "runs:/")):
        return Path(model).absolute()
    from pipeline.tracking.registry import bundle_folder  # noqa: PLC0415  # MLflow takes 100 MB

    return bundle_folder(model, tracking)
