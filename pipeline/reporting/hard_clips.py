"""The test clips with the highest loss, each with its spectrogram, and the classes that the model confuses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ast_core.shards.reader import ShardReader
from ast_core.weights.decisions import NEAREST
from pipeline.reporting.plots import plot_spectrogram

SHOWN, GUESSES, PAIRS = 8, 3, 12
"""Numbers of hard clips, of predicted labels per clip, and of confused pairs of classes in the report."""


@dataclass(frozen=True)
class HardClip:
    """One clip, its labels and what the model predicted."""

    clip_id: str
    labels: tuple[str, ...]
    guesses: tuple[tuple[str, float], ...]
    """The most probable labels and their probabilities."""
    missed: tuple[tuple[str, float], ...]
    """The clip's own labels and the probabilities that the model predicted for them."""
    picture: Path
    """A PNG of the clip's spectrogram."""


@dataclass(frozen=True)
class Confusion:
    """A pair of classes, and how often the first was predicted as the second."""

    true: str
    taken_for: str
    clips: int
    """Number of clips of the class `true` that were predicted as `taken_for`."""
    of: int
    """Number of all clips of the class `true`."""


def clip_losses(scores_NC: np.ndarray, labels_NC: np.ndarray, one_label: bool) -> np.ndarray:
    """Return the loss of each clip, [N]: cross-entropy if it has one label, else the mean binary cross-entropy."""
    kept_NC = np.clip(scores_NC.astype(np.float64), NEAREST, 1 - NEAREST)
    true_NC = -np.log(kept_NC) * labels_NC
    if one_label:
        return true_NC.sum(axis=1)  # type: ignore[no-any-return]
    return (true_NC - np.log1p(-kept_NC) * (1 - labels_NC)).mean(axis=1)  # type: ignore[no-any-return]


def hardest_clips(reader: ShardReader, scores_NC: np.ndarray, folder: Path) -> list[HardClip]:
    """Return the clips with the highest loss, and write pictures of their spectrograms to a folder."""
    losses_N = clip_losses(scores_NC, reader.labels_NC, reader.index.single_label)
    chosen = np.argsort(-losses_N, kind="stable")[:SHOWN]
    shift_ms = float(reader.index.front_end["frame_shift_ms"])
    cards = []
    for number, (index, fbank_TM) in enumerate(zip(chosen, reader.read(chosen), strict=True)):
        frames = int(reader.num_frames_N[index])
        picture = folder / f"hard-{number}.png"
        plot_spectrogram(picture, fbank_TM[:frames].astype(np.float32), frames * shift_ms / 1000)
        cards.append(_card(reader, int(index), scores_NC[index], picture))
    return cards


def _card(reader: ShardReader, index: int, scores_C: np.ndarray, picture: Path) -> HardClip:
    labels, true_K = reader.index.labels, reader.labels.of_clip(index)
    top = np.argsort(-scores_C, kind="stable")[:GUESSES]
    return HardClip(
        reader.clip_ids[index],
        tuple(labels[c] for c in true_K),
        tuple((labels[c], float(scores_C[c])) for c in top),
        tuple((labels[c], float(scores_C[c])) for c in true_K),
        picture,
    )


def confusion_matrix(scores_NC: np.ndarray, labels_NC: np.ndarray) -> np.ndarray:
    """Count single-label clips by their class (rows) and the predicted class (columns), int64 [C, C]."""
    matrix_CC = np.zeros((labels_NC.shape[1],) * 2, np.int64)
    np.add.at(matrix_CC, (labels_NC.argmax(axis=1), scores_NC.argmax(axis=1)), 1)
    return matrix_CC


def most_confused_pairs(matrix_CC: np.ndarray, labels: tuple[str, ...]) -> list[Confusion]:
    """Return the `PAIRS` most frequent confusions of two classes, the most frequent first."""
    wrong_CC = matrix_CC - np.diag(np.diag(matrix_CC))
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(place), len(labels)) for place in order]
    return [
        Confusion(labels[true], labels[other], int(wrong_CC[true, other]), int(matrix_CC[true].sum()))
        for true, other in pairs
        if wrong_CC[true, other]
    ]
