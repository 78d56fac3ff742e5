"""Draw one recording: its spectrogram, the model's attention, and the most probable labels. Made for the README.

.venv/bin/python docs/images/draw_recording.py ESC-50/audio/4-199261-A-0.wav --model work/esc50_small/bundles/ensemble
"""
# ruff: noqa: INP001

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ast_core.audio.decoder import Decoder, Recording
from ast_core.audio.fbank import Fbank, fit_length
from ast_core.evaluation.attention_rollout import attention_rollout
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle
from pipeline.reporting.plots import save_figure

SHOWN = 5
"""Number of labels that are drawn."""
INK, BAR, FAINT = "#222222", "#3b6ea5", "#9a9a9a"


def draw_recording(path: Path, model: Path, out: Path, credit: str) -> None:
    """Write the picture of the first window of a recording.

    Args:
        path: recording.
        model: bundle whose members have one front end.
        out: PNG to write.
        credit: author and licence of the recording, drawn below it.
    """
    predictor = Predictor(Bundle.load(model))
    front_end = predictor.bundle.front_end
    shift_s = front_end.frame_shift_ms / 1000
    recording = Recording(path, front_end.sample_rate_hz, Decoder())
    wave_N = torch.from_numpy(recording.read_beginning(front_end.target_frames * shift_s))
    fbank_TM = Fbank(front_end)(wave_N)[: front_end.target_frames]
    frames = len(fbank_TM)
    padded_TM = fit_length(fbank_TM, front_end.target_frames)
    shares = [attention_rollout(member, padded_TM) for member in predictor.bundle.members]
    share_T = torch.stack(shares).mean(dim=(0, 2))[:frames].numpy()
    scores_C = predictor.probabilities(wave_N.numpy())

    figure = Figure(figsize=(10, 3.6), dpi=125, layout="constrained", facecolor="white")
    grid = figure.add_gridspec(2, 2, width_ratios=(3.4, 1), height_ratios=(3.2, 1))
    above, below, right = (figure.add_subplot(place) for place in (grid[0, 0], grid[1, 0], grid[:, 1]))
    end_s = frames * shift_s
    place = (0, end_s, 0, fbank_TM.shape[1])
    above.imshow(
        fbank_TM.T.numpy(), cmap="magma", interpolation="bilinear", origin="lower", aspect="auto", extent=place
    )
    above.set(ylabel="mel bin", xticks=[], xlim=(0, end_s))
    above.set_title("Spectrogram: log-mel, as the model sees it", fontsize=10, loc="left", color=INK)
    times_s = (np.arange(frames) + 0.5) * shift_s
    below.fill_between(times_s, share_T, step="mid", color=BAR, alpha=0.85, linewidth=0)
    below.set(xlabel="seconds", xlim=(0, end_s), ylim=(0, None), yticks=[])
    below.set_title("Attention over time, mean of the members", fontsize=10, loc="left", color=INK)
    _draw_labels(right, scores_C, predictor.bundle.labels)
    for axes in (above, below, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9, colors=INK)
    figure.supxlabel(credit.replace("$", r"\$"), x=0.008, ha="left", fontsize=8, color=FAINT)
    figure.get_layout_engine().set(wspace=0.05)
    save_figure(figure, out)


def _draw_labels(axes: Axes, scores_C: np.ndarray, labels: Sequence[str]) -> None:
    """Draw the most probable labels as bars, the most probable one above."""
    shown = np.argsort(-scores_C, kind="stable")[:SHOWN]
    places = np.arange(len(shown))
    axes.barh(places, scores_C[shown], color=[BAR, *[FAINT] * (len(shown) - 1)], height=0.3)
    for place, number in zip(places, shown, strict=True):
        name = labels[number].replace("_", " ").replace("$", r"\$")
        axes.text(0, place - 0.27, f"{name}  {scores_C[number]:.2f}", fontsize=11, color=INK)
    axes.set(xlim=(0, 1), ylim=(len(shown) - 0.5, -0.7), xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title("Tags", fontsize=10, loc="left", color=INK)


def main() -> None:
    """Draw the recording that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, help="audio file")
    parser.add_argument("--model", type=Path, required=True, help="bundle folder, such as work/demo/bundles/ensemble")
    parser.add_argument("--credit", default="", help="author and licence of the recording, drawn below it")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("recording.png"), help="PNG to write")
    arguments = parser.parse_args()
    draw_recording(arguments.recording, arguments.model, arguments.out, arguments.credit)


if __name__ == "__main__":
    main()
