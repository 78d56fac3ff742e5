"""A study's picture: score against patches, score against cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.reporting.plots import save_figure

Point = tuple[str, int, float, Sequence[float]]
"""Variant, patches, GMAC a clip, scores."""


def plot_study(path: Path, title: str, metric: str, points: Sequence[Point]) -> None:
    """Draw each variant's seeds, and their mean, over its patches and over its cost.

    Args:
        path: PNG to write.
        title: of the picture.
        metric: name of the scores.
        points: of the variants.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    by_patches, by_cost = figure.subplots(1, 2, sharey=True)
    for name, patches, gmacs, scores in points:
        for axes, x in ((by_patches, float(patches)), (by_cost, gmacs)):
            drawn = axes.scatter([x] * len(scores), scores, alpha=0.45, s=18)
            mean = statistics.fmean(scores)
            axes.plot([x], [mean], marker="D", color=drawn.get_facecolor()[0][:3])
            axes.annotate(name, (x, mean), xytext=(6, 4), textcoords="offset points", fontsize=8)
    by_patches.set(xlabel="patches", ylabel=metric)
    by_cost.set(xlabel="GMAC a clip, forward")
    for axes in (by_patches, by_cost):
        axes.grid(alpha=0.3)
        axes.margins(x=0.2)
    figure.suptitle(title.replace("$", r"\$"), fontsize=10)
    save_figure(figure, path)
