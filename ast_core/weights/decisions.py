"""What a model's probabilities are made into: calibrated ones, and yes or no for a class. Stored beside a bundle.

Shapes: B clips, C classes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ast_core.errors import DamagedError, UserError
from ast_core.serialization import from_dict
from ast_core.storage.json_files import read_hashed_json, sha256_of_json, write_hashed_json

FILE = "decisions.json"
NEAREST = 1e-6
"""Probabilities are kept this far from 0 and 1, whose logits are infinite."""


@dataclass(frozen=True)
class Decisions:
    """Calibration and thresholds of one bundle, as `ast_core.evaluation.calibration` fits them."""

    bundle_digest: str
    """Whose probabilities they are for."""
    fitted_on: dict[str, str]
    """The clips: data hash and split."""
    one_label: bool
    """A clip has exactly one class: the most probable. Else each class is decided by itself."""
    slope_C: tuple[float, ...]
    """Of the logit (several labels) or of the log-probability (one label, where it is one over the temperature)."""
    offset_C: tuple[float, ...]
    threshold_C: tuple[float, ...]
    """A clip has a class if its calibrated probability is at least this. Not used with one label."""

    def calibrated(self, scores_BC: np.ndarray) -> np.ndarray:
        """Probabilities that are right as often as they say, float32 [B, C]."""
        slope_C, offset_C = np.array(self.slope_C), np.array(self.offset_C)
        return from_evidence(evidence(scores_BC, self.one_label) * slope_C + offset_C, self.one_label)

    def decide(self, scores_BC: np.ndarray) -> np.ndarray:
        """Whether a clip has a class, bool [B, C], from a bundle's own probabilities."""
        if self.one_label:
            top_BC: np.ndarray = np.arange(scores_BC.shape[1]) == scores_BC.argmax(axis=1)[:, None]
            return top_BC
        # As float32 on both sides: thresholds are scores that were seen, and must take the clip they were seen on.
        decided_BC: np.ndarray = self.calibrated(scores_BC) >= np.array(self.threshold_C, np.float32)
        return decided_BC

    @property
    def digest(self) -> str:
        """SHA-256 of all that it says."""
        return sha256_of_json(dataclasses.asdict(self))

    def write(self, bundle: Path) -> None:
        """Commit it to a bundle's folder."""
        write_hashed_json(bundle / FILE, dataclasses.asdict(self))


def load_decisions(bundle: Path, bundle_digest: str, classes: int) -> Decisions | None:
    """A bundle's decisions; None if it was not calibrated.

    Raises:
        DamagedError: the file is not what calibrate wrote, or is of another bundle.
    """
    path = bundle / FILE
    if not path.is_file():
        return None
    values = read_hashed_json(path, "Bundle's decisions")
    try:
        found = from_dict(Decisions, values)
    except UserError as error:
        raise DamagedError(f"{path} is not what calibrate writes: {error} Run calibrate again.") from None
    if found.bundle_digest != bundle_digest:
        raise DamagedError(f"{path} is of another bundle. Run calibrate again.")
    if {len(found.slope_C), len(found.offset_C), len(found.threshold_C)} != {classes}:
        raise DamagedError(f"{path} is not of {classes} classes. Run calibrate again.")
    return found


def evidence(scores_BC: np.ndarray, one_label: bool) -> np.ndarray:
    """What calibration is linear in, float64 [B, C]: log-probabilities of one label, logits of several."""
    kept_BC = np.clip(scores_BC.astype(np.float64), NEAREST, 1 - NEAREST)
    return np.log(kept_BC) if one_label else np.log(kept_BC) - np.log1p(-kept_BC)


def from_evidence(evidence_BC: np.ndarray, one_label: bool) -> np.ndarray:
    """Back to probabilities, float32 [B, C]."""
    if not one_label:
        return (0.5 + 0.5 * np.tanh(evidence_BC / 2)).astype(np.float32)  # the sigmoid, without overflow
    shifted_BC = np.exp(evidence_BC - evidence_BC.max(axis=1, keepdims=True))
    share_BC: np.ndarray = shifted_BC / shifted_BC.sum(axis=1, keepdims=True)
    return share_BC.astype(np.float32)
