"""Segments are cut from the complete recording's waveform, with one decoding, and refused beyond its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ast_core.audio.decoder import Decoder
from ast_core.audio.segments import SegmentReader
from ast_core.audio.waveform import Waveform, load_waveform
from ast_core.errors import ClipError

RATE = 16_000


class CountingDecoder(Decoder):
    """A decoder that counts the recordings that it decodes."""

    decoded = 0

    def blocks(self, path: Path | str, sample_rate_hz: int, max_seconds: float | None = None) -> Iterator[Waveform]:
        """Decode as usual."""
        self.decoded += 1
        return super().blocks(path, sample_rate_hz, max_seconds)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 60 s of noise at 44.1 kHz, which is several blocks."""
    path = tmp_path_factory.mktemp("long") / "noise.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 60 * 44_100), 44_100)
    return path


@pytest.fixture
def decoder() -> Iterator[CountingDecoder]:
    """Return a decoder that is closed at the end."""
    found = CountingDecoder()
    yield found
    found.close()


def test_segments_have_the_samples_of_the_complete_waveform(recording: Path, decoder: CountingDecoder) -> None:
    whole_N = load_waveform(recording, RATE)
    segments = [(0.0, 1.0), (0.5, 2.25), (0.5, 30.0), (11.8, 12.1), (12.0, None), (40.123, 45.5), (59.0, 60.0)]
    reader = SegmentReader(decoder, RATE, {str(recording): 60.0})
    for start_s, end_s in segments:
        found_N = reader.load(str(recording), start_s, end_s, 5.0)
        first, last = round(start_s * RATE), min(round((start_s + 5.0) * RATE), len(whole_N))
        last = last if end_s is None else min(last, round(end_s * RATE))
        np.testing.assert_array_equal(found_N, whole_N[first:last])
    # The third segment is longer than what is kept of it: its end is looked for, and the next segment starts before.
    assert decoder.decoded == 2


def test_a_segment_before_the_last_one_decodes_again(recording: Path, decoder: CountingDecoder) -> None:
    whole_N = load_waveform(recording, RATE)
    reader = SegmentReader(decoder, RATE, {str(recording): 21.0})
    for start in (20, 10, 10, 20):
        found_N = reader.load(str(recording), start, start + 1, 5.0)
        np.testing.assert_array_equal(found_N, whole_N[start * RATE : (start + 1) * RATE])
    assert decoder.decoded == 2


@pytest.mark.parametrize(
    ("start_s", "end_s", "number"), [(58, 61, "61 s"), (70, None, "70 s"), (61, 62, "62 s"), (0, 3600, "3600 s")]
)
def test_a_segment_beyond_the_end_is_refused_with_both_numbers(
    recording: Path, decoder: CountingDecoder, start_s: float, end_s: float | None, number: str
) -> None:
    reader = SegmentReader(decoder, RATE, {str(recording): max(start_s + 5.0, end_s or 0.0)})
    with pytest.raises(ClipError) as caught:
        reader.load(str(recording), start_s, end_s, 5.0)
    assert caught.value.stage == "segment"
    assert number in caught.value.reason
    assert "60 s" in caught.value.reason
    assert len(reader.load(str(recording), 1, 2, 5.0)) == RATE


def test_a_segment_that_ends_a_rounding_after_the_end_is_kept(recording: Path, decoder: CountingDecoder) -> None:
    reader = SegmentReader(decoder, RATE, {str(recording): 60.05})
    assert len(reader.load(str(recording), 59.0, 60.05, 5.0)) == RATE


def test_broken_and_absent_files_are_clip_errors_and_the_next_segment_is_read(
    recording: Path, decoder: CountingDecoder, tmp_path: Path
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    reader = SegmentReader(decoder, RATE, {})
    for name in ("broken.wav", "absent.wav"):
        for _ in range(2):
            with pytest.raises(ClipError):
                reader.load(str(tmp_path / name), 0.0, 1.0, 5.0)
    assert len(reader.load(str(recording), 1.0, 2.0, 5.0)) == RATE
