"""Sound of clips for the report: MP3 inside the page, so that it plays from a file, without a server or a network."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import soundfile

from ast_core.audio.decoder import Decoder
from ast_core.audio.segments import SegmentReader
from ast_core.dataset.clips import Clip
from ast_core.dataset.contents.clip_contents import Content, read_contents, recording_of
from ast_core.errors import ClipError
from ast_core.redaction import without_secrets

LONGEST_S = 30.0
"""Seconds of a clip that a player holds at most."""
MOST_BYTES = 12 << 20
"""Bytes of all players of a section; 10 s of speech at 16 kHz are about 60 kB."""
RATES_HZ = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Sampling rates that MP3 has."""


@dataclass(frozen=True)
class Player:
    """The sound of one clip, or why it has no player."""

    source: str = ""
    """Data URI of an MP3; "" without sound."""
    note: str = ""
    """What the page says below the player, or instead of it."""


def make_players(
    names: Sequence[str],
    clips: Mapping[str, Clip],
    audio_column: str,
    sample_rate_hz: int,
    longest_s: float = LONGEST_S,
    most_bytes: int = MOST_BYTES,
) -> list[Player]:
    """Return a player for each clip: mono, at the sampling rate of the model.

    The recordings are decoded in another process, and encoded again, so no byte of a recording gets into the page.

    Args:
        names: ids of the clips, in the order in which the page shows them.
        clips: clips of the data set by id; a clip that is not there has no player.
        audio_column: column of the recordings in Parquet files.
        sample_rate_hz: sampling rate of the model.
        longest_s: seconds of a clip that the model sees; at most `LONGEST_S` are kept.
        most_bytes: bytes of all players; the clips after that have none.
    """
    limit_s, rate_hz = min(longest_s, LONGEST_S), _choose_rate(sample_rate_hz)
    found: dict[str, Player] = {}
    decoder = Decoder()
    try:
        present = [clips[name] for name in names if name in clips]
        reader, left = SegmentReader(decoder, rate_hz, {}), most_bytes
        for clip, content in read_contents(present, audio_column):
            player = _make_player(reader, clip, content, rate_hz, limit_s)
            if len(player.source) > left:
                player = Player(note=f"No player: the sound of a section has at most {most_bytes >> 20} MiB.")
            left -= len(player.source)
            found[id_of(clip)] = player
    finally:
        decoder.close()
    absent = Player(note="No player: the data set does not list this clip.")
    return [found.get(name, absent) for name in names]


def id_of(clip: Clip) -> str:
    """Return the id of a clip as shards and tables hold it."""
    return clip.clip_id.encode("utf-8", "backslashreplace").decode()


def _make_player(reader: SegmentReader, clip: Clip, content: Content, rate_hz: int, limit_s: float) -> Player:
    if isinstance(content, ClipError | OSError):
        return _refuse(content)
    try:
        # A little more than the limit shows whether the clip goes on.
        wave_N = reader.load(content, clip.start_s, clip.end_s, limit_s + 0.1, recording_of(clip))
    except (ClipError, OSError) as error:
        return _refuse(error)
    kept_N = wave_N[: round(limit_s * rate_hz)]
    note = f"The first {limit_s:g} s." if len(kept_N) < len(wave_N) else ""
    return Player(f"data:audio/mpeg;base64,{base64.b64encode(encode_mp3(kept_N, rate_hz)).decode()}", note)


def _refuse(error: Exception) -> Player:
    return Player(note=f"No player: {without_secrets(str(error))}")


def encode_mp3(wave_N: np.ndarray, rate_hz: int) -> bytes:
    """Return a mono waveform as MP3; one above full scale is made quieter, because it would be cut off."""
    peak = float(np.abs(wave_N).max(initial=0))
    file = io.BytesIO()
    soundfile.write(file, wave_N / max(peak, 1.0), rate_hz, format="MP3", compression_level=0.0)
    return file.getvalue()


def _choose_rate(sample_rate_hz: int) -> int:
    """Return the lowest rate of MP3 that keeps all that the model hears."""
    return next((rate for rate in RATES_HZ if rate >= sample_rate_hz), RATES_HZ[-1])
