"""Embeddings of recordings: one vector a recording, one row a patch in time, from any block and member."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bundles import FRONT_END, LABELS, MODEL

from ast_core.audio.fbank import Fbank
from ast_core.config import ModelConfig
from ast_core.errors import ClipError, UserError
from ast_core.evaluation.predictor import Predictor
from ast_core.evaluation.window_cuts import cut_windows
from ast_core.model.transformer import AST
from ast_core.weights.bundle import Bundle
from ast_core.weights.bundle_description import BundleFacts
from ast_core.weights.ensemble_mean import Member

RATE_HZ, WINDOW = 16_000, 31 * 160 + 400
PATCHES = replace(MODEL, patch_freq=8, patch_time=4, freq_stride=4, time_stride=4)


def make_bundle(config: ModelConfig = PATCHES, seeds: tuple[int, ...] = (0,)) -> Bundle:
    members = []
    for seed in seeds:
        torch.manual_seed(seed)
        model = AST(config, FRONT_END.num_mel_bins, FRONT_END.target_frames, len(LABELS)).eval()
        members.append(Member(f"seed-{seed}", model, FRONT_END, -5.0, 4.0, "bce", config))
    return Bundle(tuple(LABELS), False, tuple(members), "digest", BundleFacts())


def make_noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)


def normalise(recording: np.ndarray) -> torch.Tensor:
    """Return the windows of a recording as `predict` cuts them, [W, T, M], normalised."""
    windows = list(cut_windows(Fbank(FRONT_END), recording, FRONT_END.target_frames))
    return (torch.stack([window.fbank_TM for window in windows]) + 5.0) / 8.0


def test_the_head_takes_the_clip_embedding_of_the_last_block() -> None:
    bundle, recording = make_bundle(), make_noise(WINDOW)
    model = bundle.members[0].model
    clip_E = torch.from_numpy(Predictor(bundle).embed(recording).clip)
    with torch.no_grad():
        torch.testing.assert_close(model.head(model.head_norm(clip_E))[None], model(normalise(recording)))


def test_the_clip_embedding_of_a_long_recording_is_the_mean_over_the_windows_of_predict() -> None:
    bundle, recording = make_bundle(), make_noise(3 * WINDOW + 1500)  # a rest of less than half a window
    windows_WTM = normalise(recording)
    assert len(windows_WTM) == 3
    with torch.no_grad():
        expected_WE = bundle.members[0].model.embed(windows_WTM).clip_BE
    found = Predictor(bundle).embed(recording)
    torch.testing.assert_close(torch.from_numpy(found.clip), expected_WE.mean(dim=0))
    blocks = [recording[:5000], recording[5000:5001], recording[5001:]]
    assert np.array_equal(Predictor(bundle).embed(blocks).clip, found.clip)


def test_frames_are_the_patches_averaged_over_frequency_with_their_times() -> None:
    bundle, recording = make_bundle(), make_noise(WINDOW)
    model = bundle.members[0].model
    with torch.no_grad():
        tokens_BPE, _ = model.tokens(normalise(recording), None, None)
        for block in model.blocks:
            tokens_BPE = block(tokens_BPE)
        rows_FKE = model.norm(tokens_BPE)[0, 2:].reshape(*model.grid, -1)
    found = Predictor(bundle).embed(recording)
    torch.testing.assert_close(torch.from_numpy(found.frames), rows_FKE.mean(dim=0))
    assert found.frames.dtype == np.float32
    assert found.starts_s == pytest.approx(np.arange(8) * 0.04)
    assert found.ends_s == pytest.approx(found.starts_s + 3 * 0.01 + 0.025)
    assert repr(found) == "Embedding(96 values, 8 frames)"


@pytest.mark.parametrize(("rest", "rows"), [(0, 8), (400, 9), (1200, 10), (4000, 14), (5360, 16), (200, 8)])
def test_frames_cover_the_recording_to_its_end_and_padding_has_none(rest: int, rows: int) -> None:
    length = 32 * 160 + rest if rest else WINDOW
    found = Predictor(make_bundle()).embed(make_noise(length))
    assert len(found.frames) == len(found.starts_s) == len(found.ends_s) == rows
    assert found.starts_s == pytest.approx(np.arange(rows) * 0.04)
    assert found.ends_s.max() <= length / RATE_HZ + 1e-9


@pytest.mark.parametrize("masked", [False, True])
def test_a_recording_shorter_than_half_a_window_has_embeddings(masked: bool) -> None:
    found = Predictor(make_bundle(replace(PATCHES, mask_padding=masked))).embed(make_noise(900))
    assert np.isfinite(found.clip).all()
    assert len(found.frames) == 1
    assert found.ends_s.tolist() == [0.055]
    with pytest.raises(ClipError, match="less than one window of 400"):
        Predictor(make_bundle()).embed(make_noise(100))


def test_layers_count_the_blocks_from_one_and_the_final_norm_is_applied() -> None:
    bundle, recording = make_bundle(), make_noise(WINDOW)
    model, predictor = bundle.members[0].model, Predictor(bundle)
    with torch.no_grad():
        tokens_BPE, _ = model.tokens(normalise(recording), None, None)
        for layer, block in enumerate(model.blocks, 1):
            tokens_BPE = block(tokens_BPE)
            expected_E = model.norm(tokens_BPE)[0, :2].mean(dim=0)
            torch.testing.assert_close(torch.from_numpy(predictor.embed(recording, layer).clip), expected_E)
    assert np.array_equal(predictor.embed(recording, 4).clip, predictor.embed(recording).clip)
    for layer in (0, -1, 5, 1.0, True, "2"):
        with pytest.raises(UserError, match="this model has 4 blocks; give a number from 1 to 4"):
            predictor.embed(recording, layer)  # type: ignore[arg-type]


def test_each_member_of_an_ensemble_has_its_own_embeddings() -> None:
    recording, both = make_noise(WINDOW), Predictor(make_bundle(seeds=(0, 1)))
    for seed in (0, 1):
        alone = Predictor(make_bundle(seeds=(seed,))).embed(recording)
        assert np.array_equal(both.embed(recording, member=f"seed-{seed}").clip, alone.clip)
    with pytest.raises(UserError, match=r"has 2 members, and each has embeddings of its own; .* one of seed-0, seed-1"):
        both.embed(recording)
    with pytest.raises(UserError, match="has no member 'seed-7'; give one of seed-0, seed-1"):
        both.embed(recording, member="seed-7")
