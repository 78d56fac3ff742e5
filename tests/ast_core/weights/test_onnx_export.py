"""ONNX graph, run by onnxruntime, and its front end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from ast_core.audio.fbank import Fbank, fit_length
from ast_core.config import FrontEndConfig
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle
from ast_core.weights.onnx_export import LinearFrontEnd, export_onnx


def make_noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)


@pytest.mark.parametrize("window", ["hanning", "hamming"])
def test_the_linear_front_end_equals_fbank(window: str) -> None:
    config = FrontEndConfig(window=window, target_frames=200)  # type: ignore[arg-type]
    for samples in (400, 9_000, 40_000):
        wave_N = torch.from_numpy(make_noise(samples)) + 0.2
        expected_TM = fit_length(Fbank(config)(wave_N), 200)
        torch.testing.assert_close(LinearFrontEnd(config)(wave_N[None])[0], expected_TM, atol=2e-2, rtol=0)


@pytest.mark.long  # tests/pipeline/test_export.py exports an ensemble
@pytest.mark.slow
def test_onnx_predicts_the_same_probabilities_for_any_length_and_batch(trained_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(trained_bundle)
    export_onnx(bundle, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    predictor = Predictor(bundle)
    longest = predictor.bundle.front_end.target_frames * 160
    for samples, clips in ((900, 1), (longest, 3)):
        wave_BN = np.stack([make_noise(samples) * (n + 1) for n in range(clips)])
        (scores_BC,) = session.run(None, {"waveform": wave_BN})
        ours_BC = np.stack([predictor.probabilities(wave_N) for wave_N in wave_BN])
        assert np.abs(scores_BC - ours_BC).max() < 2e-3
