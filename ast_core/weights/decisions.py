"""Decisions from a model's probabilities: calibrated probabilities, and yes or no for each class.

They are stored next to a bundle's description.
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
"""Name of the file in a bundle's folder."""
NEAREST = 1e-6
"""Smallest distance of a probability from 0 and 1, whose logits are infinite."""


@dataclass(frozen=True)
class Decisions:
    """Calibration and thresholds of one bundle, as `ast_core.evaluation.calibration` fits them."""

    bundle_digest: str
    """Digest of the bundle whose probabilities they are for."""
    fitted_on: dict[str, str]
    """Data hash and split of the clips that they were fitted on."""
    one_label: bool
    """Whether a clip has exactly one class, the most probable one; otherwise each class is decided by itself."""
    slope_C: tuple[float, ...]
    """Factor of the logit with several labels; with one label, of the log-probability: one over the temperature."""
    offset_C: tuple[float, ...]
    """Offset that is added after the factor."""
    threshold_C: tuple[float, ...]
    """Lowest calibrated probability at which a clip has the class; not used with one label."""

    def calibrated(self, scores_BC: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities, float32 [B, C]: of clips with probability p, a share p has the class."""
        slope_C, offset_C = np.array(self.slope_C), np.array(self.offset_C)
        return from_evidence(evidence(scores_BC, self.one_label) * slope_C + offset_C, self.one_label)

    def decide(self, scores_BC: np.ndarray) -> np.ndarray:
        """Return whether each clip has each class, bool [B, C], from the bundle's uncalibrated probabilities."""
        if self.one_label:
            top_BC: np.ndarray = np.arange(scores_BC.shape[1]) == scores_BC.argmax(axis=1)[:, None]
            return top_BC
        # Compare float32 with float32: a threshold may equal a clip's own score, and must include that clip.
        decided_BC: np.ndarray = self.calibrated(scores_BC) >= np.array(self.threshold_C, np.float32)
        return decided_BC

    @property
    def digest(self) -> str:
        """SHA-256 of all fields."""
        return sha256_of_json(dataclasses.asdict(self))

    def write(self, bundle: Path) -> None:
        """Commit the decisions to a bundle's folder."""
        write_hashed_json(bundle / FILE, dataclasses.asdict(self))


def load_decisions(bundle: Path, bundle_digest: str, classes: int) -> Decisions | None:
    """Read a bundle's decisions; return None if the bundle was not calibrated.

    Raises:
        DamagedError: the file is not as calibrate wrote it, or belongs to another bundle.
    """
    path = bundle / FILE
    if not path.is_file():
        return None
    values = read_hashed_json(path, "Bundle's decisions")
    try:
        found = from_dict(Decisions, values)
    except UserError as error:
        raise DamagedError(f"{path} is not as calibrate writes it: {error} Run calibrate again.") from None
    if found.bundle_digest != bundle_digest:
        raise DamagedError(f"{path} belongs to another bundle. Run calibrate again.")
    lengths = (len(found.slope_C), len(found.offset_C), len(found.threshold_C))
    if set(lengths) != {classes}:
        raise DamagedError(
            f"{path} has slopes, offsets and thresholds of {lengths} classes, not of {classes}. Run calibrate again."
        )
    return found


def evidence(scores_BC: np.ndarray, one_label: bool) -> np.ndarray:
    """Return the quantity that calibration scales, float64 [B, C]: log-probabilities with one label, else logits."""
    kept_BC = np.clip(scores_BC.astype(np.float64), NEAREST, 1 - NEAREST)
    return np.log(kept_BC) if one_label else np.log(kept_BC) - np.log1p(-kept_BC)


def from_evidence(evidence_BC: np.ndarray, one_label: bool) -> np.ndarray:
    """Convert evidence back to probabilities, float32 [B, C]."""
    if not one_label:
        return (0.5 + 0.5 * np.tanh(evidence_BC / 2)).astype(np.float32)  # the sigmoid, without overflow
    shifted_BC = np.exp(evidence_BC - evidence_BC.max(axis=1, keepdims=True))
    share_BC: np.ndarray = shifted_BC / shifted_BC.sum(axis=1, keepdims=True)
    return share_BC.astype(np.float32)
