"""Exported bundles, opened by the libraries of their formats."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import load_file

from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.errors import UserError
from ast_core.evaluation.predictor import Predictor
from ast_core.model.transformer import AST, BACKBONES
from ast_core.serialization import to_dict
from ast_core.weights.bundle import Bundle, write_bundle
from ast_core.weights.huggingface import find_export_obstacle
from ast_core.weights.onnx_export import OnnxBundle
from pipeline.cli.command_line import load_recipe
from pipeline.cli.recipe_file import RECIPES
from pipeline.cli.stages import ExportSettings
from pipeline.export import export, list_exportable_recipes

FRONT_END = FrontEndConfig(target_frames=64)
LABELS = ["rain", "wind"]
EVERY_RECIPE = sorted(path.stem for path in RECIPES.glob("*.toml"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(backbone="ast_micro", freq_stride=16, time_stride=16, init="scratch")
    model = AST(config, FRONT_END.num_mel_bins, FRONT_END.target_frames, len(LABELS))
    identity = {"model": to_dict(config), "front_end": to_dict(FRONT_END), "labels": LABELS}
    identity |= {"mean": -6.0, "std": 4.0, "loss": "bce"}
    write_bundle(tmp_path / "seed-0", [("seed-0", model.state_dict(), identity)], False)
    return tmp_path / "seed-0"


def write_recipes_bundle(folder: Path, recipe: str, backbone: str) -> Path:
    """Write a bundle as a recipe's training would, its backbone and length apart."""
    torch.manual_seed(0)
    values = load_recipe(recipe)
    config = replace(values.model, backbone=backbone, init="scratch")
    front_end = replace(values.front_end, target_frames=64)
    model = AST(config, front_end.num_mel_bins, front_end.target_frames, len(LABELS))
    identity = {"model": to_dict(config), "front_end": to_dict(front_end), "labels": LABELS}
    identity |= {"mean": -6.0, "std": 4.0, "loss": "bce"}
    write_bundle(folder / "seed-0", [("seed-0", model.state_dict(), identity)], False)
    return folder / "seed-0"


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.1, int(16_000 * seconds)).astype(np.float32)


def test_transformers_opens_the_folder_and_predicts_the_same(bundle: Path, tmp_path: Path) -> None:
    export(ExportSettings(output=tmp_path / "hf", model=str(bundle)))
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path / "hf")
    model = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "hf").eval()
    wave_N = noise(0.5)
    with torch.no_grad():
        logits_BC = model(extractor(wave_N, sampling_rate=16_000, return_tensors="pt")["input_values"]).logits
    ours_C = Predictor(Bundle.load(bundle)).probabilities(wave_N)
    assert np.abs(torch.sigmoid(logits_BC)[0].numpy() - ours_C).max() < 1e-3  # float16 windows, as in shards
    assert list(model.config.id2label.values()) == LABELS
    again = export(ExportSettings(output=tmp_path / "again", model=str(tmp_path / "hf")))
    one, other = load_file(tmp_path / "hf" / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture
def one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the small backbone have one block, because an export takes time for each; the long form exports four."""
    monkeypatch.setitem(BACKBONES, "ast_micro", replace(BACKBONES["ast_micro"], depth=1))


@pytest.mark.slow
def test_onnx_of_an_ensemble_predicts_the_same_for_any_length_and_batch_and_hugging_face_of_one_is_refused(
    one_block: None, bundle: Path, tmp_path: Path
) -> None:
    first = Bundle.load(bundle).members[0]
    weights = {name: value + 0.01 for name, value in first.model.state_dict().items()}
    identity = {"model": to_dict(first.config), "front_end": to_dict(FRONT_END), "labels": LABELS}
    identity |= {"mean": -6.0, "std": 4.0, "loss": "bce"}
    parts = [("seed-0", first.model.state_dict(), identity), ("seed-1", weights, identity)]
    write_bundle(tmp_path / "both", parts, False)
    settings = ExportSettings(tmp_path / "both.onnx", str(tmp_path / "both"), "onnx", embeddings=True)
    export(settings)
    session, predictor = onnxruntime.InferenceSession(tmp_path / "both.onnx"), Predictor(Bundle.load(tmp_path / "both"))
    module = OnnxBundle(predictor.bundle, embeddings=True).eval()
    assert [output.name for output in session.get_outputs()] == [
        "probabilities", "embedding_0", "frame_embeddings_0", "embedding_1", "frame_embeddings_1",
    ]  # fmt: skip
    for seconds, clips in ((0.05, 1), (0.64, 3)):
        wave_BN = np.stack([noise(seconds) * (n + 1) for n in range(clips)])
        scores_BC, *embeddings = session.run(None, {"waveform": wave_BN})
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in module(torch.from_numpy(wave_BN))]
        assert all(np.abs(own - other).max() < 1e-4 for own, other in zip(embeddings, expected[1:], strict=True))
        for own_BE, member in zip(embeddings[::2], ("seed-0", "seed-1"), strict=True):
            clips_BE = np.stack([predictor.embed(wave_N, member=member).clip for wave_N in wave_BN])
            assert np.abs(own_BE - clips_BE).max() < 1e-2  # our windows are rounded to float16, as shards are
        ours_BC = np.stack([predictor.probabilities(wave_N) for wave_N in wave_BN])
        assert np.abs(scores_BC - ours_BC).max() < 1e-3
    with pytest.raises(UserError, match="--embeddings adds outputs to an ONNX graph; give --format onnx"):
        export(replace(settings, format="huggingface"))
    with pytest.raises(UserError, match="this is an ensemble of 2"):
        export(ExportSettings(output=tmp_path / "hf", model=str(tmp_path / "both")))


def test_a_model_of_the_demo_is_refused_with_the_reason_and_what_to_do(tmp_path: Path) -> None:
    demo = write_recipes_bundle(tmp_path, "demo", "ast_micro")
    with pytest.raises(UserError) as error:
        export(ExportSettings(output=tmp_path / "hf", model=str(demo)))
    assert str(error.value) == (
        "Hugging Face's format cannot hold seed-0: its patches are 128 x 8, not square. Export it with --format onnx, "
        "or train one of the recipes whose models the format can hold: audioset_balanced, audioset_full, "
        "audioset_patchout, esc50, esc50_ast_p, own_ast_p, speech_commands, speech_commands_ast_p."
    )
    assert not (tmp_path / "hf").exists()


@pytest.mark.long  # the ensemble above is exported, too
def test_a_model_of_the_demo_is_exported_to_onnx(tmp_path: Path) -> None:
    demo = write_recipes_bundle(tmp_path, "demo", "ast_micro")
    export(ExportSettings(output=tmp_path / "demo.onnx", model=str(demo), format="onnx"))
    assert (tmp_path / "demo.onnx").is_file()


@pytest.mark.parametrize("recipe", EVERY_RECIPE)
def test_a_recipe_is_listed_if_and_only_if_its_model_exports(recipe: str, tmp_path: Path) -> None:
    own = write_recipes_bundle(tmp_path, recipe, "ast_micro")
    settings = ExportSettings(output=tmp_path / "hf", model=str(own))
    if recipe in list_exportable_recipes():
        transformers.ASTForAudioClassification.from_pretrained(export(settings))
    else:
        with pytest.raises(UserError, match="cannot hold seed-0"):
            export(settings)


def test_every_setting_that_the_format_lacks_is_named() -> None:
    model = ModelConfig(backbone="vit_base_patch16_384", patch_time=8, mask_padding=True)
    front_end = FrontEndConfig(window="hamming", frame_shift_ms=5.0)
    assert find_export_obstacle(model, front_end) == (
        "its patches are 16 x 8, not square, and its backbone vit_base_patch16_384 has one prefix token, not two, and "
        "it keeps padding out of attention (model.mask-padding), and its window is hamming, not hanning, and "
        "its windows are 25 ms every 5 ms, not 25 ms every 10 ms"
    )


def test_without_the_extra_the_error_says_what_to_install(bundle: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'ast-pipeline\[onnx\]'"):
        export(ExportSettings(output=tmp_path / "m.onnx", model=str(bundle), format="onnx"))
    assert not (tmp_path / "m.onnx").exists()


def test_a_folder_without_a_model_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.rmtree(bundle)
    with pytest.raises(UserError):
        export(ExportSettings(output=tmp_path / "hf", model=str(bundle)))
