"""The test clips that a model is most wrong about, each as a card with its spectrogram; and what it takes for what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ast_core.shards.reader import ShardReader
from ast_core.weights.decisions import NEAREST
from pipeline.reporting.plots import plot_spectrogram

SHOWN, GUESSES, PAIRS = 8, 3, 12


@dataclass(frozen=True)
class HardClip:
    """One clip, and what was said of it."""

    clip_id: str
    labels: tuple[str, ...]
    guesses: tuple[tuple[str, float], ...]
    """Most probable labels."""
    missed: tuple[tuple[str, float], ...]
    """What the model gave the true ones."""
    picture: Path


@dataclass(frozen=True)
class Confusion:
    """How often a class was taken for another one."""

    true: str
    taken_for: str
    clips: int
    of: int


def clip_losses(scores_NC: np.ndarray, labels_NC: np.ndarray, one_label: bool) -> np.ndarray:
    """Each clip's loss, [N]: cross-entropy of one label, mean binary cross-entropy of several."""
    kept_NC = np.clip(scores_NC.astype(np.float64), NEAREST, 1 - NEAREST)
    true_NC = -np.log(kept_NC) * labels_NC
    if one_label:
        return true_NC.sum(axis=1)  # type: ignore[no-any-return]
    return (true_NC - np.log1p(-kept_NC) * (1 - labels_NC)).mean(axis=1)  # type: ignore[no-any-return]


def hardest_clips(reader: ShardReader, scores_NC: np.ndarray, folder: Path) -> list[HardClip]:
    """The clips of the highest loss, with pictures of what the model was given, written to a folder."""
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
    labels, true_K = reader.index.labels, np.flatnonzero(reader.labels_NC[index])
    top = np.argsort(-scores_C, kind="stable")[:GUESSES]
    return HardClip(
        reader.clip_ids[index],
        tuple(labels[c] for c in true_K),
        tuple((labels[c], float(scores_C[c])) for c in top),
        tuple((labels[c], float(scores_C[c])) for c in true_K),
        picture,
    )


def confusion_matrix(scores_NC: np.ndarray, labels_NC: np.ndarray) -> np.ndarray:
    """Clips of each class (rows) by the class they were taken for (columns), int64 [C, C]; of single-label clips."""
    matrix_CC = np.zeros((labels_NC.shape[1],) * 2, np.int64)
    np.add.at(matrix_CC, (labels_NC.argmax(axis=1), scores_NC.argmax(axis=1)), 1)
    return matrix_CC


def most_confused_pairs(matrix_CC: np.ndarray, labels: tuple[str, ...]) -> list[Confusion]:
    """The commonest mistakes."""
    wrong_CC = matrix_CC - np.diag(np.diag(matrix_CC))
    order = np.argsort(-wrong_CC, axis=None, kind="stable")[:PAIRS]
    pairs = [divmod(int(place), len(labels)) for place in order]
    return [
        Confusion(labels[true], labels[other], int(wrong_CC[true, other]), int(matrix_CC[true].sum()))
        for true, other in pairs
        if wrong_CC[true, other]
    ]
