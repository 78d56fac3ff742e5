"""Windows over a recording and across both of its ends, and the events in them.

A window that begins before the recording holds its first part only, and one that ends after it its last part only; both
are padded at their end, as short clips are in training.

Shapes: N samples, W windows, T frames, M mel bins, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, count, islice

import numpy as np
import torch

from ast_core.audio.fbank import Fbank, fit_length
from ast_core.errors import require
from ast_core.evaluation.events import Event, EventRule, Windows, find_events
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.window_cuts import WINDOWS_AT_ONCE, Blocks, MeasuredBlocks
from ast_core.weights.decisions import Decisions
from ast_core.weights.ensemble_mean import mean_probabilities, member_probabilities

DEFAULT_THRESHOLD = 0.5
"""Threshold of every class if neither the bundle nor the user has one."""


def detect_events(predictor: Predictor, recording: Blocks, hop_s: float | None, rule: EventRule) -> list[Event]:
    """Return the events of one recording, the earliest first.

    Args:
        predictor: bundle on a device.
        recording: float32 [N] at the front end's rate, or blocks of it.
        hop_s: seconds from the start of one window to the start of the next; None as `Predictor.measure_hop`.
        rule: thresholds and durations.

    Raises:
        UserError: the members have different front ends, or the hop is below one frame.
        ClipError: the recording is shorter than one analysis window, or cannot be decoded.
    """
    measured = MeasuredBlocks([recording] if isinstance(recording, np.ndarray) else recording)
    starts_s, scores_WC = score_with_edges(predictor, measured, hop_s)
    front_end, bundle = predictor.bundle.front_end, predictor.bundle
    windows = Windows(starts_s, front_end.clip_s, measured.samples / front_end.sample_rate_hz)
    return decide_events(windows, scores_WC, bundle.labels, bundle.decisions, rule)


def decide_events(
    windows: Windows, scores_WC: np.ndarray, labels: tuple[str, ...], decisions: Decisions | None, rule: EventRule
) -> list[Event]:
    """Return events by the thresholds of the rule, else of a calibrated bundle, else `DEFAULT_THRESHOLD`.

    The probabilities of a calibrated bundle are calibrated first.

    Args:
        windows: places of the windows.
        scores_WC: probabilities of the bundle, not calibrated.
        labels: names of the classes.
        decisions: calibration and thresholds of the bundle, if it has them.
        rule: thresholds and durations.
    """
    scores_WC, threshold_C = calibrate_windows(scores_WC, decisions)
    if rule.threshold is not None:
        threshold_C = np.full(len(labels), rule.threshold)
    return find_events(windows, scores_WC, labels, threshold_C, rule)


def calibrate_windows(scores_WC: np.ndarray, decisions: Decisions | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities in which events are found, and the threshold of each class unless a rule has one.

    Args:
        scores_WC: probabilities of the bundle, not calibrated.
        decisions: calibration and thresholds of the bundle, if it has them.

    Returns:
        float32 [W, C], calibrated if the bundle is, and float64 [C].
    """
    if decisions is None:
        return scores_WC, np.full(scores_WC.shape[1], DEFAULT_THRESHOLD)
    return decisions.calibrated(scores_WC), np.array(decisions.threshold_C)


def score_with_edges(predictor: Predictor, recording: Blocks, hop_s: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of windows every `hop_s` seconds, of which some cross an end of the recording.

    Args:
        predictor: bundle on a device.
        recording: float32 [N] at the front end's rate, or blocks of it.
        hop_s: seconds from the start of one window to the start of the next; None as `Predictor.measure_hop`.

    Returns:
        Starts of the windows in seconds, float64 [W], and their probabilities, float32 [W, C].

    Raises:
        UserError: the members have different front ends, the hop is below one frame or longer than a window.
        ClipError: the recording is shorter than one analysis window.
    """
    fbank, hop_samples = predictor.measure_hop(hop_s)
    require(
        hop_samples <= fbank.clip_samples,
        f"A hop of {hop_s} s leaves gaps between windows of {fbank.config.clip_s} s; for events give a shorter one.",
    )
    blocks = [recording] if isinstance(recording, np.ndarray) else recording
    cuts, starts, scores = cut_with_edges(fbank, blocks, hop_samples), [], []
    while some := list(islice(cuts, WINDOWS_AT_ONCE)):
        starts += [start for start, _ in some]
        scores.append(_score(predictor, fbank, [cut_N for _, cut_N in some]))
    return np.array(starts) / fbank.config.sample_rate_hz, np.concatenate(scores)


def _score(predictor: Predictor, fbank: Fbank, cuts: list[np.ndarray]) -> np.ndarray:
    """Return the probabilities of the samples of some windows, float32 [W, C]."""
    frames = fbank.config.target_frames
    logmels = [fit_length(fbank(torch.from_numpy(cut_N)), frames) for cut_N in cuts]
    logmel_WTM = torch.stack(logmels).half().float().to(predictor.device)  # rounded as the shards are
    frames_W = torch.tensor([fbank.num_frames(len(cut_N)) for cut_N in cuts]).to(predictor.device)
    return mean_probabilities(
        [member_probabilities(member, logmel_WTM, frames_W) for member in predictor.bundle.members]
    )


def cut_with_edges(fbank: Fbank, blocks: Iterable[np.ndarray], hop: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the start and the samples of each window; memory holds one window and one block of the recording.

    The windows begin at the multiples of the hop at which they have at least one analysis window of the recording.
    If the first one has more than half a hop of it, a window with half a hop goes before, and the same at the end: so
    the recording's own ends are known to half a hop, too.

    Args:
        fbank: filterbank of the front end.
        blocks: blocks of the recording.
        hop: samples from one window to the next, at most those of a window.

    Yields:
        First sample of the window, which may be negative, and the samples that are in the recording.
    """
    size, least, half = fbank.clip_samples, fbank.window_samples, hop // 2
    front = -((size - least) // hop) * hop
    starts = chain([half - size] if least <= half < size + front else [], count(front, hop))
    held_N, offset, start, last = np.empty(0, np.float32), 0, next(starts), -size
    for block_N in blocks:
        begin = max(0, start - half) - offset  # the window at the end may begin half a hop before the next one
        held_N, offset = np.concatenate([held_N[begin:], block_N]), offset + begin
        while start + size <= offset + len(held_N):
            yield start, held_N[max(0, start) - offset : start + size - offset]
            last, start = start, next(starts)
    length = offset + len(held_N)
    while last == -size or length - max(0, start) >= least:  # too short a recording is refused by the filterbank
        yield start, held_N[max(0, start) - offset :]
        last, start = start, next(starts)
    if least <= half < length - max(0, last):
        yield length - half, held_N[length - half - offset :]
