"""The bytes of a recording are decoded to the samples of its file, one recording after the other."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ast_core.audio import decoder as decoding
from ast_core.audio.decoder import Decoder
from ast_core.errors import ClipError


def test_contents_of_any_order_and_size_are_decoded_like_their_files(
    tmp_path: Path, save_tone: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_HELD_BYTES", 20_000)
    paths = [save_tone(tmp_path / f"{n}.wav", seconds, seed=n) for n, seconds in enumerate((1.0, 0.2, 2.0, 0.1))]
    decoder = Decoder()
    for path in [*paths, *paths[::-1]]:
        content = path.read_bytes()
        assert np.array_equal(decoder.load(content, 16_000), decoder.load(path, 16_000))
        assert decoder._content is not None
        assert os.fstat(decoder._content.fileno()).st_size == (len(content) if len(content) <= 20_000 else 0)
    decoder.close()


def test_a_broken_content_leaves_the_decoder_usable(tmp_path: Path, save_tone: Callable[..., Path]) -> None:
    decoder, good = Decoder(), save_tone(tmp_path / "good.wav").read_bytes()
    for broken in (b"", b"this is no audio", good[:60]):
        with pytest.raises(ClipError):
            decoder.load(broken, 16_000)
        assert len(decoder.load(good, 16_000))
    decoder.close()
