"""Pictures of an evaluation as PNG files.

Shape suffixes: N clips, C classes, W windows, T frames, M mel bins.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ast_core.storage.atomic_files import atomic_write
from pipeline.reporting.history import EpochRow, headline_key

MOST_BARS = 60
"""Number of classes above which only the best and the worst are drawn."""
BAR_INCHES = 0.22
"""Height of the figure per bar."""
MOST_ROWS = 12
"""Highest number of labels in a timeline."""


def plot_per_class(path: Path, title: str, precision: Mapping[str, float], chance: float) -> None:
    """Draw each class's average precision as a bar, best first.

    Args:
        path: PNG to write.
        title: title of the picture.
        precision: average precision by label; NaN for a label without positive clips, which is not drawn.
        chance: average precision of chance, the mean share of positives; drawn as a line.
    """
    known = sorted(((value, label) for label, value in precision.items() if not math.isnan(value)), reverse=True)
    shown = known
    if len(known) > MOST_BARS:
        half = MOST_BARS // 2
        shown = known[:half] + known[-half:]
        title += f"\nthe {half} best and the {half} worst of {len(known)} classes"
    figure = Figure(figsize=(8, 1.5 + BAR_INCHES * max(4, len(shown))), layout="constrained")
    axes = figure.subplots()
    places = range(len(shown))
    axes.barh(places, [value for value, _ in shown], color="#3b6ea5", height=0.75)
    # Matplotlib would read a dollar sign in a label as the start of a formula.
    axes.set_yticks(places, [label[:40].replace("$", r"\$") for _, label in shown], fontsize=8)
    axes.axvline(chance, color="#c44e52", linestyle="--", label=f"chance {chance:.3f}")
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.4, -0.6), xlabel="average precision", title=title)
    axes.legend(loc="lower right")
    save_figure(figure, path)


def plot_curves(path: Path, histories: Mapping[str, Sequence[EpochRow]]) -> None:
    """Draw each member's training loss and held-out score over epochs.

    Args:
        path: PNG to write.
        histories: the rows of `metrics.jsonl` by member.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss_axes, score_axes = figure.subplots(1, 2)
    rows = [row for history in histories.values() for row in history]
    key = _find_score_key(rows)
    for member, history in histories.items():
        epochs = [row["epoch"] for row in history]
        loss_axes.plot(epochs, [row["train_loss"] for row in history], marker=".", label=member)
        score_axes.plot(epochs, [row.get(key, math.nan) for row in history], marker=".", label=member)
    loss_axes.set(xlabel="epoch", ylabel="training loss", title="training loss")
    score_axes.set(xlabel="epoch", ylabel=key.replace("_", " "), title=key.replace("_", " "))
    for axes in (loss_axes, score_axes):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if histories:
            axes.legend(fontsize=8)
    save_figure(figure, path)


def plot_timeline(path: Path, title: str, times_s: np.ndarray, scores_WC: np.ndarray, labels: Sequence[str]) -> None:
    """Draw the most probable labels of a recording over time.

    Args:
        path: PNG to write.
        title: title of the picture.
        times_s: start of each window in seconds, [W].
        scores_WC: probabilities.
        labels: names of the C classes.
    """
    shown = np.argsort(-scores_WC.max(axis=0), kind="stable")[:MOST_ROWS]
    figure = Figure(figsize=(11, 1.6 + 0.28 * len(shown)), layout="constrained")
    axes = figure.subplots()
    step = times_s[1] - times_s[0] if len(times_s) > 1 else 1.0
    edges = np.append(times_s, times_s[-1] + step)
    mesh = axes.pcolormesh(edges, np.arange(len(shown) + 1), scores_WC[:, shown].T, vmin=0, vmax=1, cmap="magma")
    axes.set_yticks(np.arange(len(shown)) + 0.5, [labels[c][:40].replace("$", r"\$") for c in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="start of the window, s", title=title.replace("$", r"\$"))
    figure.colorbar(mesh, ax=axes, label="probability")
    save_figure(figure, path)


def plot_attention(path: Path, title: str, fbank_TM: np.ndarray, share_TM: np.ndarray, seconds: float) -> None:
    """Draw a spectrogram, and below it the same spectrogram with the attention of the model over it.

    Args:
        path: PNG to write.
        title: title of the picture.
        fbank_TM: log-mel, not normalised.
        share_TM: attention of each point, 0 to 1.
        seconds: duration of the T frames.
    """
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    place: dict[str, Any] = {"origin": "lower", "aspect": "auto", "extent": (0, seconds, 0, fbank_TM.shape[1])}
    above.imshow(fbank_TM.T, cmap="magma", **place)
    below.imshow(fbank_TM.T, cmap="gray", **place)
    drawn = below.imshow(share_TM.T, cmap="viridis", alpha=0.6, vmin=0, vmax=1, **place)
    above.set(ylabel="mel bin", title=title.replace("$", r"\$"))
    below.set(ylabel="mel bin", xlabel="s", title="attention rollout, largest = 1")
    figure.colorbar(drawn, ax=below)
    save_figure(figure, path)


def plot_spectrogram(path: Path, fbank_TM: np.ndarray, seconds: float) -> None:
    """Draw the log-mel spectrogram of a clip as a small picture.

    Args:
        path: PNG to write.
        fbank_TM: log-mel, not normalised.
        seconds: duration of the T frames.
    """
    figure = Figure(figsize=(4.2, 1.9), layout="constrained")
    axes = figure.subplots()
    axes.imshow(fbank_TM.T, cmap="magma", origin="lower", aspect="auto", extent=(0, seconds, 0, fbank_TM.shape[1]))
    axes.set_xlabel("s", fontsize=8)
    axes.set_ylabel("mel bin", fontsize=8)
    axes.tick_params(labelsize=7)
    save_figure(figure, path)


def plot_confusion(path: Path, matrix_CC: np.ndarray, labels: Sequence[str]) -> None:
    """Draw a confusion matrix, one row per true class, coloured by the share of the class.

    Args:
        path: PNG to write.
        matrix_CC: numbers of clips by true class (rows) and predicted class (columns).
        labels: names of the C classes.
    """
    share_CC = matrix_CC / np.maximum(matrix_CC.sum(axis=1, keepdims=True), 1)
    side = 2.5 + 0.26 * len(labels)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(share_CC, cmap="Blues", vmin=0, vmax=1)
    names = [label[:24].replace("$", r"\$") for label in labels]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    for row, column in zip(*np.nonzero(matrix_CC), strict=True):
        light = share_CC[row, column] > 0.5
        count = str(matrix_CC[row, column])
        axes.text(column, row, count, ha="center", va="center", fontsize=7, color="white" if light else "black")
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(drawn, ax=axes, label="share of the class")
    save_figure(figure, path)


def _find_score_key(rows: Sequence[EpochRow]) -> str:
    """Return the headline metric's name in the rows; "score" if they have none."""
    return headline_key(sorted({key for row in rows for key in row})) or "score"


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))  # type: ignore[no-untyped-call]
