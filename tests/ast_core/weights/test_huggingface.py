"""Hugging Face's format against transformers: same features, same logits, folders read and written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from ast_core.audio.fbank import Fbank, fit_length
from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.errors import UserError
from ast_core.evaluation.predictor import Predictor
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.weights.bundle import Bundle, write_bundle
from ast_core.weights.huggingface import HuggingFaceModel, from_names, to_names, write_folder
from ast_core.weights.pretrained import initialise

FRONT_END = FrontEndConfig(target_frames=128)
MODEL = ModelConfig(backbone="deit_tiny_distilled_patch16_224", init="scratch")
LABELS = ("dog", "rain", "bell")
MEAN, STD = -6.8, 5.5


def make_model(config: ModelConfig = MODEL, frames: int = 128) -> AST:
    torch.manual_seed(0)
    model = AST(config, 128, frames, len(LABELS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def to_huggingface(trained: AST, **changes: object) -> HuggingFaceModel:
    plain = HuggingFaceModel(MODEL, FRONT_END, MEAN, STD, LABELS, False, trained.state_dict())
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def make_recording(seconds: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    times_N = np.arange(int(16_000 * seconds)) / 16_000
    return (0.2 * np.sin(2 * np.pi * 600 * times_N) + rng.normal(0, 0.02, len(times_N))).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.5, 1.28, 3.0])
def test_features_equal_those_of_the_feature_extractor(seconds: float) -> None:
    extractor = transformers.ASTFeatureExtractor(max_length=128, mean=MEAN, std=STD)
    wave_N = make_recording(seconds)
    theirs_TM = extractor(wave_N, sampling_rate=16_000, return_tensors="pt")["input_values"][0]
    ours_TM = (fit_length(Fbank(FRONT_END)(torch.from_numpy(wave_N)), 128) - MEAN) / (2 * STD)
    difference_TM = (ours_TM - theirs_TM).abs()
    assert difference_TM.max() < 2e-2 / (2 * STD)
    assert difference_TM.mean() < 1e-5


def test_transformers_opens_our_folder_and_predicts_the_same(tmp_path: Path) -> None:
    model = make_model()
    write_folder(tmp_path, to_huggingface(model))
    theirs, report = transformers.ASTForAudioClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert theirs.config.id2label == dict(enumerate(LABELS))
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path)
    wave_N = make_recording(1.1)
    inputs_BTM = extractor(wave_N, sampling_rate=16_000, return_tensors="pt")["input_values"]
    with torch.no_grad():
        logits_BC = theirs.eval()(inputs_BTM).logits
        torch.testing.assert_close(model(inputs_BTM), logits_BC, atol=1e-4, rtol=0)
        scores_C = torch.sigmoid(logits_BC[0]).numpy()
    own_C = Predictor(Bundle.load(tmp_path)).probabilities(wave_N)
    assert np.abs(own_C - scores_C).max() < 1e-3  # our windows are rounded to float16, as shards are


def test_embeddings_of_an_exported_folder_equal_the_hidden_states_of_transformers(tmp_path: Path) -> None:
    write_folder(tmp_path, to_huggingface(make_model()))
    theirs = transformers.ASTModel.from_pretrained(tmp_path).eval()
    ours = Bundle.load(tmp_path).members[0].model
    inputs_BTM = torch.randn(2, 128, 128)
    with torch.no_grad():
        found = theirs(inputs_BTM, output_hidden_states=True)
        for layer in range(1, 13):
            normed_BPE = theirs.layernorm(found.hidden_states[layer])
            embeddings = ours.embed(inputs_BTM, layer=layer)
            frames_BKE = normed_BPE[:, 2:].unflatten(1, ours.grid).mean(dim=1)
            torch.testing.assert_close(embeddings.clip_BE, normed_BPE[:, :2].mean(dim=1), atol=1e-4, rtol=0)
            torch.testing.assert_close(embeddings.frames_BKE, frames_BKE, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.embed(inputs_BTM).clip_BE, found.pooler_output, atol=1e-4, rtol=0)


def test_folder_written_by_transformers_predicts_the_same_and_starts_another_model(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = transformers.ASTConfig(
        hidden_size=192, num_attention_heads=3, intermediate_size=768, max_length=128, id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )  # fmt: skip
    theirs = transformers.ASTForAudioClassification(config).eval()
    with torch.no_grad():  # as large as trained ones: near 0 the two eps of LayerNorm, 1e-12 and 1e-6, would show
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    bundle = Bundle.load(tmp_path)
    assert bundle.labels == LABELS
    inputs_BTM = torch.randn(2, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(
            bundle.members[0].model(inputs_BTM), theirs(inputs_BTM).logits, atol=1e-4, rtol=0
        )  # fmt: skip
    other = AST(dataclasses.replace(MODEL, freq_stride=16, time_stride=16), 128, 512, 7)
    initialise(other, dataclasses.replace(MODEL, init=str(tmp_path)))
    assert torch.equal(other.blocks[2].norm1.weight, bundle.members[0].model.blocks[2].norm1.weight)


def test_renaming_there_and_back_returns_the_same_weights() -> None:
    weights = make_model().state_dict()
    again = from_names(to_names(weights))
    assert weights.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in weights.items())


def test_setting_that_the_format_cannot_describe_is_refused_by_name(tmp_path: Path) -> None:
    model = make_model()
    columns = dataclasses.replace(MODEL, patch_freq=128)
    with pytest.raises(UserError, match="its patches are 128 x 16, not square"):
        write_folder(tmp_path, to_huggingface(model, model=columns))
    with pytest.raises(UserError, match="its window is hamming, not hanning"):
        write_folder(tmp_path, to_huggingface(model, front_end=dataclasses.replace(FRONT_END, window="hamming")))
    assert not list(tmp_path.iterdir())


def test_bundle_of_another_stride_and_length_starts_a_model(tmp_path: Path) -> None:
    ten = make_model(frames=512)
    identity = {
        "model": to_dict(MODEL),
        "front_end": to_dict(FrontEndConfig(target_frames=512)),
        "labels": list(LABELS),
    }
    identity |= {"mean": MEAN, "std": STD, "loss": "bce"}
    write_bundle(tmp_path / "seed-0", [("seed-0", ten.state_dict(), identity)], False)
    wide = dataclasses.replace(MODEL, freq_stride=16, time_stride=16, init=str(tmp_path / "seed-0"))
    model = AST(wide, 128, 1024, len(LABELS))
    initialise(model, wide, LABELS)
    grid = ten.pos_embed[:, 2:].reshape(1, 12, 50, -1).permute(0, 3, 1, 2)
    stretched = torch.nn.functional.interpolate(grid, (12, 64), mode="bilinear")[:, :, 2:10]
    torch.testing.assert_close(model.pos_embed[:, 2:], stretched.flatten(2).transpose(1, 2))
    assert torch.equal(model.head.weight, ten.head.weight)
    renamed = AST(wide, 128, 1024, len(LABELS))
    initialise(renamed, wide, ("cat", "rain", "bell"))
    assert not torch.equal(renamed.head.weight, ten.head.weight)
    alone = dataclasses.replace(wide, init=str(tmp_path / "seed-0" / "member-0.safetensors"))
    with pytest.raises(UserError, match="give its folder"):
        initialise(model, alone, LABELS)
