"""A window over samples that arrive has the bits of the timeline, whatever the pieces, in memory that does not grow."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import FRONT_END, write_run
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_core.audio.fbank import Fbank
from ast_core.errors import ClipError, UserError
from ast_core.evaluation.event_windows import score_with_edges
from ast_core.evaluation.live.live_windows import LiveWindow, LiveWindows, score_live
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.window_cuts import cut_windows
from ast_core.weights.bundle import Bundle

RATE_HZ, HOP_S = 16_000, 0.1
FBANK = Fbank(FRONT_END)
HOP = 1600


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """Return noise around a level that is not 0, so that the mean of each window is another one."""
    return (np.random.default_rng(seed).normal(0, 0.1, samples) + np.linspace(-0.2, 0.3, samples)).astype(np.float32)


def slide(wave_N: np.ndarray, sizes: list[int], hop: int = HOP) -> list[LiveWindow]:
    """Return the windows of a stream that arrives in pieces of these sizes, again and again."""
    live, found, done = LiveWindows(FBANK, hop), [], 0
    while done < len(wave_N):
        size = sizes[len(found) % len(sizes)]
        live.add(wave_N[done : done + size])
        done += size
        while some := live.cut(3):
            found += some
    last = live.finish()
    return found + ([last] if last else [])


@given(
    samples=st.integers(FBANK.window_samples, 20_000),
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=5),
    hop_frames=st.integers(1, 32),
)
@settings(deadline=None, max_examples=40)
def test_windows_have_the_bits_of_the_timeline_and_the_stream_is_covered(samples, sizes, hop_frames) -> None:
    wave_N, hop = noise(samples), hop_frames * FBANK.hop_samples
    found = slide(wave_N, [*sizes, 500], hop)
    assert found[0].start_s == 0
    assert found[-1].end_s * RATE_HZ > samples - FBANK.hop_samples
    ends = [round(own.end_s * RATE_HZ) for own in found]
    assert all(0 < after - before <= hop for before, after in pairwise(ends))
    by_start = {round(own.start_s * RATE_HZ): own for own in found if own.window.num_frames == FRONT_END.target_frames}
    for number, expected in enumerate(cut_windows(FBANK, wave_N, hop_frames)):
        if expected.num_frames == FRONT_END.target_frames:
            assert torch.equal(by_start[number * hop].window.fbank_TM, expected.fbank_TM)


def test_probabilities_are_those_of_a_timeline_with_edges(tmp_path: Path) -> None:
    write_run(tmp_path)
    predictor = Predictor(Bundle.load(tmp_path / "bundles" / "ensemble"))
    wave_N = noise(40_000)
    found = slide(wave_N, [700])
    starts_s, expected_WC = score_with_edges(predictor, wave_N, HOP_S)
    ends = [round(start_s * RATE_HZ) + FBANK.clip_samples for start_s in starts_s]
    by_end, scores_WC = dict(zip(ends, expected_WC, strict=True)), score_live(predictor, found)
    pairs = [(by_end.get(round(own.end_s * RATE_HZ)), own_C) for own, own_C in zip(found, scores_WC, strict=True)]
    same = [(one_C, other_C) for one_C, other_C in pairs if one_C is not None]
    assert len(same) >= len(found) - 1  # the last window ends with the stream
    assert np.abs(np.array([one - other for one, other in same])).max() < 1e-6


def test_a_stream_below_a_window_has_the_one_window_of_predict_and_below_a_frame_an_error() -> None:
    wave_N = noise(FBANK.window_samples + 30)
    (found,) = slide(wave_N, [10], HOP * 2)
    (expected,) = cut_windows(FBANK, wave_N, 32)
    assert torch.equal(found.window.fbank_TM, expected.fbank_TM)
    for samples in (0, FBANK.window_samples - 1):
        live = LiveWindows(FBANK, HOP)
        live.add(noise(samples))
        assert not live.cut()
        with pytest.raises(ClipError, match="less than one window"):
            live.finish()


def test_memory_holds_a_window_and_a_piece_after_many_windows() -> None:
    live, block_N = LiveWindows(FBANK, 3 * HOP), noise(10 * HOP)
    for _ in range(100):
        live.add(block_N)
        while live.cut():
            pass
        assert sum(map(len, live._parts)) <= FBANK.clip_samples + len(block_N)
    assert live.samples == 100 * len(block_N)


def test_a_hop_above_a_window_is_refused() -> None:
    with pytest.raises(UserError, match="leaves gaps between windows"):
        LiveWindows(FBANK, FBANK.clip_samples + 1)
