"""Onsets and offsets from windows, for two models whose answers are exact, and the rules of events."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ast_core.audio.fbank import Fbank
from ast_core.config import FrontEndConfig
from ast_core.errors import UserError
from ast_core.evaluation.event_windows import cut_with_edges
from ast_core.evaluation.events import Event, EventRule, Windows, find_events

FBANK = Fbank(FrontEndConfig(target_frames=498, num_mel_bins=16))
RATE_HZ = 16_000
WINDOW_S = FBANK.clip_samples / RATE_HZ  # 4.995
LABELS = ("dog", "rain")


def lay_windows(length_s: float, hop_s: float) -> Windows:
    """Return the windows of a recording of silence."""
    wave_N = np.zeros(round(length_s * RATE_HZ), np.float32)
    starts = [start for start, _ in cut_with_edges(FBANK, [wave_N], round(hop_s * RATE_HZ))]
    return Windows(np.array(starts) / RATE_HZ, WINDOW_S, len(wave_N) / RATE_HZ)


def heard_s(windows: Windows, *sounds: tuple[float, float]) -> np.ndarray:
    """Return the seconds of the sounds that are in each window, [W]."""
    starts_W, ends_W = np.maximum(windows.starts_s, 0), windows.ends_s
    inside = [np.minimum(ends_W, end_s) - np.maximum(starts_W, start_s) for start_s, end_s in sounds]
    return np.clip(inside, 0, None).sum(axis=0)


def find(windows: Windows, scores_W: np.ndarray, threshold: float = 0.5, **rule: float) -> list[Event]:
    """Return the events of one class."""
    return find_events(windows, scores_W[:, None], LABELS[:1], np.array([threshold]), EventRule(**rule))


def test_edges_are_within_half_a_hop_for_a_model_that_hears_any_part() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        length_s, hop_s = rng.uniform(0.5, 20), 0.01 * rng.integers(5, 101)
        windows = lay_windows(length_s, hop_s)
        start_s = rng.choice([0.0, rng.uniform(0, windows.length_s - 0.02)])
        end_s = min(windows.length_s, start_s + rng.choice([rng.uniform(0.01, hop_s), rng.uniform(0.1, 12)]))
        found = find(windows, (heard_s(windows, (start_s, end_s)) > 0).astype(np.float32))
        assert len(found) == 1
        assert abs(found[0].start_s - start_s) <= hop_s / 2 + 1e-9
        # A sound within a hop is reported as at least a tenth of a hop.
        assert abs(found[0].end_s - end_s) <= hop_s * (0.5 if end_s - start_s > hop_s else 0.6) + 1e-9
        assert 0 <= found[0].start_s < found[0].end_s <= windows.length_s


def test_edges_are_within_half_a_hop_for_a_probability_that_is_the_share_of_the_window() -> None:
    rng = np.random.default_rng(1)
    for _ in range(400):
        threshold, hop_s = rng.uniform(0.2, 0.7), 0.01 * rng.integers(5, 101)
        shortest_s = 1.02 * threshold * WINDOW_S + hop_s  # a shorter sound need not fill the share of any window
        windows = lay_windows(rng.uniform(shortest_s, 25), hop_s)
        start_s = rng.choice([0.0, rng.uniform(0, windows.length_s - shortest_s)])
        end_s = rng.choice([windows.length_s, rng.uniform(start_s + shortest_s, windows.length_s)])
        scores_W = (heard_s(windows, (start_s, end_s)) / WINDOW_S).astype(np.float32)
        found = find(windows, scores_W, threshold, overlap=threshold, release=rng.uniform(0.4, 1))
        assert len(found) == 1
        assert abs(found[0].start_s - start_s) <= hop_s / 2 + 1e-6
        assert abs(found[0].end_s - end_s) <= hop_s / 2 + 1e-6


def test_a_sound_in_the_first_or_last_window_is_located_only_with_windows_across_the_ends() -> None:
    windows = lay_windows(12.0, 0.5)
    inner = (windows.starts_s >= 0) & (windows.starts_s <= 12 - WINDOW_S / 2) & (windows.starts_s % 0.5 == 0)
    plain = Windows(windows.starts_s[inner], WINDOW_S, 12.0)
    for sound, censored in (((3.1, 4.0), (0.0, 3.75)), ((10.2, 11.1), (9.995 + 0.25, 12.0))):
        (edged,) = find(windows, (heard_s(windows, sound) > 0).astype(np.float32))
        assert np.abs(np.array([edged.start_s, edged.end_s]) - sound).max() <= 0.25
        (found,) = find(plain, (heard_s(plain, sound) > 0).astype(np.float32))
        assert (found.start_s, found.end_s) == pytest.approx(censored)


def test_two_sounds_are_two_events_if_a_window_fits_between_them() -> None:
    windows = lay_windows(40.0, 0.5)
    for gap_s, count in ((4.0, 1), (6.0, 2)):
        sounds = ((8.0, 10.0), (10.0 + gap_s, 15.0 + gap_s))
        scores_W = (heard_s(windows, *sounds) > 0).astype(np.float32)
        found = find(windows, scores_W)
        assert len(found) == count
        assert found[0].start_s == pytest.approx(8.0, abs=0.25)
        assert found[-1].end_s == pytest.approx(15.0 + gap_s, abs=0.25)
        joined = find(windows, scores_W, gap_s=7.0)
        assert [(own.start_s, own.end_s) for own in joined] == [(found[0].start_s, found[-1].end_s)]


def test_hysteresis_begins_at_the_threshold_and_ends_below_the_release() -> None:
    windows = Windows(np.arange(10) * 1.0, 2.0, 11.0)
    scores_W = np.array([0, 0.45, 0.6, 0.9, 0.45, 0.41, 0.39, 0, 0.45, 0], np.float32)
    (found,) = find(windows, scores_W, release=0.8)
    # Windows 2 to 5: the onset is between the ends of 1 and 2, the offset between the starts of 5 and 6.
    assert (found.start_s, found.end_s, found.peak) == (3.5, 5.5, pytest.approx(0.9))
    (found,) = find(windows, scores_W, release=1.0)
    assert (found.start_s, found.end_s) == (3.5, 3.6)  # windows 2 and 3 have a hop in common


def test_events_shorter_than_the_minimum_are_dropped_after_joining() -> None:
    windows = lay_windows(60.0, 0.5)
    sounds = ((10.0, 11.0), (17.0, 18.0), (40.0, 41.0))
    scores_W = (heard_s(windows, *sounds) > 0).astype(np.float32)
    assert len(find(windows, scores_W)) == 3
    assert len(find(windows, scores_W, min_s=2.0)) == 0
    (joined,) = find(windows, scores_W, min_s=2.0, gap_s=6.5)
    assert (joined.start_s, joined.end_s) == pytest.approx((10.0, 18.0), abs=0.25)


def test_a_single_window_is_an_event_of_a_hop_in_its_middle() -> None:
    windows = lay_windows(30.0, 0.5)
    scores_W = np.zeros(len(windows.starts_s), np.float32)
    scores_W[30] = 1
    (found,) = find(windows, scores_W)
    middle_s = windows.starts_s[30] + WINDOW_S / 2
    assert (found.start_s, found.end_s) == pytest.approx((middle_s - 0.25, middle_s + 0.25))
    assert not find(windows, scores_W, min_s=0.6)


def test_windows_with_less_than_half_of_a_window_begin_no_event() -> None:
    windows = lay_windows(30.0, 0.5)
    scores_W = np.zeros(len(windows.starts_s), np.float32)
    scores_W[[0, 1, -1]] = 1
    assert not find(windows, scores_W)


def test_events_of_all_classes_have_their_own_thresholds_and_the_order_of_time() -> None:
    windows = lay_windows(30.0, 0.5)
    rain_W, dog_W = heard_s(windows, (5.0, 9.0)) > 0, heard_s(windows, (12.0, 13.0)) > 0
    scores_WC = np.stack([0.3 * dog_W, 0.9 * rain_W], axis=1).astype(np.float32)
    found = find_events(windows, scores_WC, LABELS, np.array([0.3, 0.9]), EventRule())
    assert [own.label for own in found] == ["rain", "dog"]
    assert [own.peak for own in found] == pytest.approx([0.9, 0.3])
    assert [own.label for own in find_events(windows, scores_WC, LABELS, np.array([0.31, 0.9]), EventRule())] == [
        "rain"
    ]


@pytest.mark.parametrize(
    "rule",
    [{"threshold": 0.0}, {"threshold": 1.5}, {"release": 0.0}, {"min_s": -1.0}, {"gap_s": np.inf}, {"overlap": 1.0},
     {"threshold": np.nan}],
)  # fmt: skip
def test_a_rule_with_a_value_out_of_range_is_refused(rule: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"of events is|event is"):
        EventRule(**rule)


@pytest.mark.parametrize("length_s", [0.025, 0.4, 2.0004, 4.995, 12.2, 21.0])
def test_windows_hold_the_recording_at_their_place_whatever_the_blocks(length_s: float) -> None:
    wave_N = np.arange(round(length_s * RATE_HZ), dtype=np.float32)
    for hop_s, block in itertools.product((0.05, 0.33, 1.0, 4.99), (1_111, 100_000)):
        hop, starts = round(hop_s * RATE_HZ), []
        blocks = [wave_N[first : first + block] for first in range(0, len(wave_N), block)]
        for start, cut_N in cut_with_edges(FBANK, blocks, hop):
            assert np.array_equal(cut_N, wave_N[max(0, start) : start + FBANK.clip_samples])
            starts.append(start)
        assert np.diff(starts).max(initial=0) <= hop
        shortest = max(FBANK.window_samples, hop // 2)  # in the recording, at both of its ends
        assert min(starts) + FBANK.clip_samples <= shortest + (0 if hop // 2 >= FBANK.window_samples else hop)
        assert len(wave_N) - max(starts) <= shortest + (0 if hop // 2 >= FBANK.window_samples else hop)
