"""Players hold the sound of a clip as MP3, or the page says why it has no player."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from audio_files import RATE_HZ, tone

from ast_core.dataset.clips import Clip
from pipeline.reviewing.clip_players import Player, encode_mp3, make_players


def decode(player: Player) -> tuple[np.ndarray, int]:
    kind, _, content = player.source.partition(",")
    assert kind == "data:audio/mpeg;base64"
    return soundfile.read(io.BytesIO(base64.b64decode(content, validate=True)))


def write_clip(path: Path, seconds: float, seed: int = 0) -> Clip:
    soundfile.write(path, tone(round(seconds * RATE_HZ), seed), RATE_HZ)
    return Clip(path.name, str(path), (0,), "test")


def test_a_player_sounds_like_its_clip_in_the_order_of_the_page(tmp_path: Path) -> None:
    clips = {f"{n}.wav": write_clip(tmp_path / f"{n}.wav", 1.0, n) for n in range(3)}
    names = ["2.wav", "0.wav", "1.wav"]
    for name, player in zip(names, make_players(names, clips, "", RATE_HZ), strict=True):
        wave_N, rate_hz = decode(player)
        wanted_N = tone(RATE_HZ, int(name[0]))
        assert (rate_hz, player.note) == (RATE_HZ, "")
        assert abs(len(wave_N) - len(wanted_N)) < RATE_HZ / 10
        assert np.corrcoef(wave_N[: len(wanted_N)], wanted_N[: len(wave_N)])[0, 1] > 0.95


def test_a_segment_is_only_its_part_and_a_long_clip_only_its_beginning(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.wav", 3.0)
    part = Clip("part", clip.path, (0,), "test", 1.0, 1.5)
    players = make_players(["part", "a.wav"], {"part": part, "a.wav": clip}, "", RATE_HZ, longest_s=2.0)
    assert len(decode(players[0])[0]) == pytest.approx(RATE_HZ / 2, abs=RATE_HZ / 10)
    assert len(decode(players[1])[0]) == pytest.approx(2 * RATE_HZ, abs=RATE_HZ / 10)
    assert [player.note for player in players] == ["", "The first 2 s."]


def test_clips_without_sound_say_why(tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF<script>alert(1)</script>")
    broken = Clip("broken.wav", str(tmp_path / "broken.wav"), (0,), "test")
    gone = Clip("gone.wav", str(tmp_path / "gone.wav"), (0,), "test")
    clips = {"broken.wav": broken, "gone.wav": gone, "no file": Clip("no file", "", (0,), "test")}
    players = make_players([*clips, "unknown"], clips, "", RATE_HZ)
    assert not any(player.source for player in players)
    assert all(player.note.startswith("No player: ") for player in players)
    assert "No such file" in players[1].note
    assert "there is no file" in players[2].note
    assert "does not list" in players[3].note


def test_the_sound_of_a_section_is_bounded(tmp_path: Path) -> None:
    clips = {f"{n}.wav": write_clip(tmp_path / f"{n}.wav", 1.0, n) for n in range(3)}
    one = len(make_players(["0.wav"], clips, "", RATE_HZ)[0].source)
    players = make_players(list(clips), clips, "", RATE_HZ, most_bytes=2 * one + one // 2)
    assert [bool(player.source) for player in players] == [True, True, False]
    assert players[2].note.startswith("No player: the sound of a section has at most")


def test_samples_above_full_scale_are_made_quieter_and_every_rate_of_a_model_is_taken() -> None:
    wave_N, _ = soundfile.read(io.BytesIO(encode_mp3(8 * tone(RATE_HZ), RATE_HZ)))
    assert np.corrcoef(wave_N[:RATE_HZ], tone(RATE_HZ)[: len(wave_N)])[0, 1] > 0.95
    assert not encode_mp3(np.zeros(0, np.float32), RATE_HZ).startswith(b"RIFF")


def test_a_model_of_an_unusual_rate_has_players_of_the_next_rate_of_mp3(tmp_path: Path) -> None:
    clips = {"a.wav": write_clip(tmp_path / "a.wav", 0.5)}
    rates = [decode(make_players(["a.wav"], clips, "", rate_hz)[0])[1] for rate_hz in (4_000, 20_000, 96_000)]
    assert rates == [8_000, 22_050, 48_000]
