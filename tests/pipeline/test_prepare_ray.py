"""Shards that Ray's workers make hold Kaldi's filterbanks; the other tests of `prepare` make them in their process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from listed_audio import BINS, FRAMES, prepare_settings, require_balance, write_clips, write_list
from torchaudio.compliance import kaldi

from ast_core.audio.waveform import load_waveform
from ast_core.errors import UserError
from ast_core.shards.reader import ShardReader
from pipeline.prepare import prepare

CLIPS, TEST, PER_PART = 10, 3, 3


@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(180)
def test_shards_hold_the_filterbanks_of_kaldi(tmp_path: Path) -> None:
    names = write_clips(tmp_path / "data", CLIPS)
    listing = write_list(tmp_path / "data" / "list.csv", names, TEST)
    settings = prepare_settings(listing, tmp_path / "shards", PER_PART)
    index = prepare(settings)
    require_balance(index, settings.shards, CLIPS)
    assert [part.rows for part in index.splits["train"].parts] == [3, 3, 1]
    reader = ShardReader(settings.shards, ["test", "train"])
    assert reader.clip_ids == names
    assert index.labels == ("even", "odd")
    assert reader.labels_NC.tolist() == [[1 - number % 2, number % 2] for number in range(CLIPS)]
    assert index.splits["train"].classes == tuple(reader.labels_NC[TEST:].sum(0))
    for name, fbank_TM in zip(names, reader.read(np.arange(CLIPS)), strict=True):
        wave = torch.from_numpy(load_waveform(tmp_path / "data" / name, 16_000))
        expected_TM = kaldi.fbank(
            (wave - wave.mean())[None], htk_compat=True, window_type="hanning", num_mel_bins=BINS, dither=0.0
        )
        kept = min(len(expected_TM), FRAMES)
        np.testing.assert_allclose(fbank_TM[:kept], expected_TM[:kept], atol=0.03)
        assert not fbank_TM[kept:].any()
    (settings.shards / "index.json").unlink()
    (settings.shards / "train" / "part-00000.json").unlink()
    (settings.shards / "train" / "part-00000.parquet").unlink()
    (settings.shards / "train" / "part-00000.parquet").mkdir()
    with pytest.raises(UserError, match=r"train.* could not be .*run again"):  # a worker's error reaches the user
        prepare(settings)
