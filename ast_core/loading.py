"""Load a model by the path or the address of its weights. Importing this module loads no torch; `load` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ast_core.evaluation.audio_tagger import AudioTagger


def load(
    source: str | os.PathLike[str],
    *,
    device: str = "auto",
    labels: Sequence[str] | str | os.PathLike[str] | None = None,
) -> AudioTagger:
    """Load a model, ready to predict.

    Args:
        source: one of

            - the folder of a bundle, of one member or an ensemble, such as `work/demo/bundles/ensemble`;
            - a local folder in Hugging Face's AST format (`config.json`, `model.safetensors`);
            - a model on Hugging Face's hub, `hf:ORG/NAME` or `hf:ORG/NAME@REVISION`, which is downloaded once: its
              settings and safetensors, no code and no pickles;
            - a published checkpoint of AST, `FILE.pth`, which is read without running code from it;
            - a registered model, `models:/NAME@champion`, `models:/NAME/3` or `runs:/ID/NAME`, if the package mlflow is
              installed. The registry is the one of `mlflow.set_tracking_uri`, else of the environment variable
              `MLFLOW_TRACKING_URI`, else `work/mlflow.db`.

        device: `auto` for the GPU if torch finds one with CUDA, else the CPU; or `cpu`, `cuda`, `cuda:1`.
        labels: names of the classes of a published checkpoint, which does not hold them: a list, or a CSV file with the
            columns `index` and `display_name`, such as AudioSet's `class_labels_indices.csv`. By default they are
            named by their numbers, `0`, `1` and so on.

    Returns:
        The model with its front end, so that it takes recordings.

    Raises:
        UserError: the source does not exist, is not a model or cannot be downloaded, a package that it needs is not
            installed, torch does not find the device, or the labels do not fit.
        DamagedError: a file of a bundle has another hash than the bundle says; it is a `UserError`, too.
    """
    # These import torch, which takes a second.
    from ast_core.evaluation.audio_tagger import AudioTagger, choose_device  # noqa: PLC0415
    from ast_core.weights.bundle_sources import load_bundle  # noqa: PLC0415

    chosen = choose_device(device)  # first, because reading the weights takes longer
    return AudioTagger(load_bundle(source, labels), chosen)
