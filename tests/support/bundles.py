"""Run folders with bundles of tiny models, as if they had been trained and evaluated."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.evaluation.calibration import fit_decisions
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.storage.json_files import write_json
from ast_core.weights.bundle import Bundle, write_bundle
from ast_core.weights.bundle_description import BundleFacts

FRONT_END = FrontEndConfig(target_frames=32, num_mel_bins=16)
MODEL = ModelConfig(backbone="ast_micro", freq_stride=16, time_stride=16, init="scratch")
LABELS = ["dog", "rain, heavy", "Zoé's $5"]


def make_member(seed: int, weights_seed: int) -> tuple[str, dict[str, torch.Tensor], dict[str, object]]:
    """Return name, random weights and identity of a member."""
    torch.manual_seed(weights_seed)
    model = AST(MODEL, FRONT_END.num_mel_bins, FRONT_END.target_frames, len(LABELS))
    identity = {"model": to_dict(MODEL), "front_end": to_dict(FRONT_END), "labels": LABELS, "mean": -5.0, "std": 4.0}
    return f"seed-{seed}", model.state_dict(), {**identity, "loss": "bce"}


def calibrate_copy(source: Path, folder: Path) -> Path:
    """Copy a bundle and write decisions into it, as `calibrate` fits them; return the copy's folder.

    They are fitted on clips whose scores are like those of the random weights, which are close to 0.5.

    Args:
        source: folder of the bundle, with `LABELS`.
        folder: folder of the copy.
    """
    shutil.copytree(source, folder)
    rng = np.random.default_rng(0)
    scores_NC = np.clip(0.5 + 0.1 * rng.normal(0, 1, (500, len(LABELS))), 0.01, 0.99).astype(np.float32)
    hidden_NC = scores_NC + 0.05 * rng.normal(0, 1, scores_NC.shape)
    labels_NC = (hidden_NC > np.quantile(hidden_NC, [0.3, 0.5, 0.6], axis=0)[np.arange(3), np.arange(3)]).astype(int)
    fit_decisions(scores_NC, labels_NC, False, Bundle.load(folder).digest, {"split": "validation"}).write(folder)
    return folder


def write_run(
    folder: Path, seeds: tuple[int, ...] = (0, 1), score: float = 0.5, clips_of: str = "c", weights: int = 0
) -> None:
    """Write the bundles and evaluations of a run, with an ensemble if it has several members.

    Args:
        folder: folder of the run.
        seeds: seeds of the members.
        score: mAP in each evaluation.
        clips_of: identity of the clips in each evaluation.
        weights: number that the weights are drawn from; another number returns other weights under the same names.
    """
    made = [make_member(seed, 1000 * weights + seed) for seed in seeds]
    last = (f"seed-{seeds[0]}-last", [made[0]], "last")
    ensemble = [("ensemble", made, "ensemble")] if len(made) > 1 else []
    for name, members, role in [*((own[0], [own], "member") for own in made), *ensemble, last]:
        facts = BundleFacts("test", "d", tuple(seeds), "epoch 1", role, tuple(f"run-{seed}" for seed in seeds))
        digest = write_bundle(folder / "bundles" / name, members, False, facts)
        scores = {"mAP": score, "mAUC": 0.6, "d_prime": None, "chance_mAP": 0.3}
        clips = {"clips_listed": 9, "clips_evaluated": 8}
        rows = {label: {"ap": 0.1 * n, "positives": n + 1} for n, label in enumerate(LABELS)}
        evaluation = {"bundle_digest": digest, "split": "test", "metrics": scores, "per_class": rows, **clips}
        write_json(folder / "evaluation" / f"{name}.json", {**evaluation, "evaluated_on": clips_of})
        (folder / "evaluation" / f"{name}-per-class.csv").write_text("label,ap\n")
