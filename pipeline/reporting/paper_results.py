"""The results of the paper, shown next to ours: Gong, Chung, Glass, Interspeech 2021, tables 1, 7 and 8."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperResult:
    """One number that the paper reports."""

    what: str
    data: str
    metric: str
    value: float


_FULL = "AudioSet, full training set"
_BALANCED = "AudioSet, balanced training set"
PAPER_RESULTS = {
    "audioset": (
        PaperResult("AST, single model, averaged weights", _FULL, "mAP", 0.459),
        PaperResult("AST, Ensemble-S", _FULL, "mAP", 0.475),
        PaperResult("AST, Ensemble-M", _FULL, "mAP", 0.485),
        PaperResult("AST, single model, averaged weights", _BALANCED, "mAP", 0.347),
        PaperResult("AST, Ensemble-S", _BALANCED, "mAP", 0.363),
        PaperResult("AST, Ensemble-M", _BALANCED, "mAP", 0.378),
    ),
    "esc50": (
        PaperResult("AST-S, from ImageNet", "ESC-50, five folds", "accuracy", 0.887),
        PaperResult("AST-P, from AudioSet", "ESC-50, five folds", "accuracy", 0.956),
    ),
    "speech_commands": (
        PaperResult("AST-S, from ImageNet", "Speech Commands V2, 35 words", "accuracy", 0.9811),
        PaperResult("AST-P, from AudioSet", "Speech Commands V2, 35 words", "accuracy", 0.9788),
    ),
}
"""The results of the paper by the layout of the data set."""
