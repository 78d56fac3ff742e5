"""Events of real recordings whose onsets are known, through decoder, front end, windows and a model."""

from __future__ import annotations

from pathlib import Path

import ears
import numpy as np
import pytest

from ast_core.audio.decoder import Decoder, Recording
from ast_core.errors import ClipError, UserError
from ast_core.evaluation.audio_tagger import AudioTagger
from ast_core.evaluation.event_windows import decide_events, detect_events
from ast_core.evaluation.events import EventRule, Windows
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.decisions import Decisions

FRAME_S = 0.025
"""An analysis frame: what the window's last frame has of a sound may be too quiet to be heard."""
TONES: list[ears.Tone] = [
    ("high", 0.0, 0.4), ("low", 1.13, 2.0), ("low", 6.0, 15.3), ("high", 6.71, 6.8), ("high", 11.05, 12.0),
    ("low", 20.47, 22.0), ("high", 27.2, 28.6), ("low", 29.4, 30.0),
]  # fmt: skip
"""At both ends, in the first and the last window, shorter than a hop, two classes at once, close but not too close."""


@pytest.mark.parametrize("hop_s", [0.1, 0.5, 1.0])
def test_onsets_and_offsets_are_within_half_a_hop(tmp_path: Path, hop_s: float) -> None:
    path = ears.save_tones(tmp_path / "tones.flac", 30.0, TONES, rate_hz=22_050)
    recording = Recording(path, ears.RATE_HZ, Decoder())
    found = detect_events(Predictor(ears.make_bundle()), recording, hop_s, EventRule())
    assert sorted(own.label for own in found) == sorted(label for label, *_ in TONES)
    for label in ears.PITCHES_HZ:
        for own, (_, start_s, end_s) in zip(
            (own for own in found if own.label == label), (tone for tone in TONES if tone[0] == label), strict=True
        ):
            short = end_s - start_s < hop_s
            assert abs(own.start_s - start_s) <= hop_s / 2 + FRAME_S
            assert abs(own.end_s - end_s) <= hop_s * (0.6 if short else 0.5) + FRAME_S
            assert own.peak > 0.99


@pytest.mark.parametrize("seconds", [0.03, 0.4, 1.7])
def test_a_recording_shorter_than_a_window_has_its_events(tmp_path: Path, seconds: float) -> None:
    start_s = seconds / 2
    path = ears.save_tones(tmp_path / "short.wav", seconds, [("high", start_s, seconds)])
    (found,) = detect_events(Predictor(ears.make_bundle()), Recording(path, ears.RATE_HZ, Decoder()), 0.25, EventRule())
    assert abs(found.start_s - start_s) <= 0.125 + FRAME_S
    assert found.end_s == pytest.approx(seconds, abs=1e-3)


def test_silence_has_no_events_and_too_short_a_recording_is_refused() -> None:
    predictor = Predictor(ears.make_bundle())
    assert detect_events(predictor, np.zeros(160_000, np.float32), 0.5, EventRule()) == []
    with pytest.raises(ClipError, match="less than one window"):
        detect_events(predictor, np.zeros(100, np.float32), 0.5, EventRule())
    with pytest.raises(UserError, match=r"leaves gaps between windows of 2\.995 s"):
        detect_events(predictor, np.zeros(160_000, np.float32), 3.5, EventRule())


def test_python_finds_the_same_events_in_a_timeline_with_edges(tmp_path: Path) -> None:
    path = ears.save_tones(tmp_path / "tones.wav", 30.0, TONES)
    bundle = ears.make_bundle()
    tagger = AudioTagger(bundle, "cpu")
    expected = detect_events(Predictor(bundle), Recording(path, ears.RATE_HZ, Decoder()), 0.5, EventRule(min_s=0.5))
    timeline = tagger.timeline(path, hop_s=0.5, edges=True)
    assert timeline.starts_s[0] < 0
    assert timeline.ends_s[-1] == 30.0
    assert timeline.events(min_s=0.5) == expected
    # Without windows across its ends, the recording's first and last window say less.
    plain = tagger.timeline(path, hop_s=0.5)
    assert plain.starts_s[0] == 0.0
    assert [own.start_s for own in plain.events()][:2] == [0.0, 0.0]
    with pytest.raises(UserError, match="release of events is 2"):
        plain.events(release=2.0)


def test_thresholds_are_the_users_or_calibrated_or_a_half() -> None:
    windows = Windows(np.arange(20) * 1.0, 2.0, 21.0)
    scores_WC = np.zeros((20, 2), np.float32)
    scores_WC[5:9] = (0.45, 0.55)

    def labels(decisions: Decisions | None, threshold: float | None = None) -> list[str]:
        rule = EventRule(threshold)
        return [own.label for own in decide_events(windows, scores_WC, ("low", "high"), decisions, rule)]

    calibrated = Decisions("d", {}, False, (1.0, 1.0), (0.0, 0.0), (0.4, 0.6))
    assert labels(None) == ["high"]
    assert labels(None, 0.44) == ["high", "low"]
    assert labels(calibrated) == ["low"]
    assert labels(calibrated, 0.5) == ["high"]
    # An offset of 1 raises both calibrated probabilities, 0.45 to 0.69 and 0.55 to 0.77.
    shifted = Decisions("d", {}, False, (1.0, 1.0), (1.0, 1.0), (0.7, 0.7))
    (found,) = decide_events(windows, scores_WC, ("low", "high"), shifted, EventRule())
    assert (found.label, found.peak) == ("high", pytest.approx(0.769, abs=1e-3))
