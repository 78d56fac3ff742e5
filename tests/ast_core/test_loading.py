"""`ast_core.load` opens each kind of source, loads no torch before, and says what to give instead of anything else."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import LABELS, write_run

import ast_core
from ast_core.config import FrontEndConfig, ModelConfig
from ast_core.errors import UserError
from ast_core.evaluation.audio_tagger import choose_device
from ast_core.model.transformer import AST
from ast_core.weights import bundle_sources
from ast_core.weights.huggingface import HuggingFaceModel, write_folder

ROOT = Path(__file__).resolve().parents[2]
NAMING = """
import json, sys, time
start = time.process_time()
import ast_core
ast_core.load
print(json.dumps([time.process_time() - start, [name for name in ("torch", "numpy", "mlflow") if name in sys.modules]]))
"""


def fetch_here(address: str) -> Path:
    """Open an address as an entry point of the group does: the rest of the address is a folder."""
    return Path(address.removeprefix("here:/"))


def register_sources(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Install entry points of the group, by scheme."""
    found = [importlib.metadata.EntryPoint(name, value, bundle_sources.GROUP) for name, value in values.items()]

    def find(group: str) -> importlib.metadata.EntryPoints:
        return importlib.metadata.EntryPoints(found).select(group=group)

    monkeypatch.setattr(bundle_sources, "entry_points", find)


def test_naming_load_takes_no_time_and_imports_no_torch() -> None:
    taken = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", NAMING], cwd=ROOT, capture_output=True, text=True, check=True)
        seconds, heavy = json.loads(done.stdout)
        assert heavy == []
        taken.append(seconds)
    assert min(taken) < 0.1


def test_a_bundle_of_one_member_and_an_ensemble_load(tmp_path: Path) -> None:
    write_run(tmp_path)
    one = ast_core.load(str(tmp_path / "bundles" / "seed-0"), device="cpu")
    both = ast_core.load(tmp_path / "bundles" / "ensemble", device="cpu")
    assert one.labels == both.labels == tuple(LABELS)
    assert (len(one.bundle.members), len(both.bundle.members)) == (1, 2)
    assert (one.sample_rate_hz, one.device, one.single_label) == (16_000, "cpu", False)
    assert one.window_s == pytest.approx(0.335)
    assert repr(both) == "AudioTagger(2 members, 3 classes, 16000 Hz, cpu)"


def test_a_hugging_face_folder_loads_with_its_labels_and_softmax(tmp_path: Path) -> None:
    config = ModelConfig(backbone="ast_micro", freq_stride=16, time_stride=16, init="scratch")
    front_end = FrontEndConfig(num_mel_bins=32, target_frames=32)
    torch.manual_seed(0)
    weights = AST(config, 32, 32, len(LABELS)).state_dict()
    own = HuggingFaceModel(config, front_end, -5.0, 4.0, tuple(LABELS), single_label=True, weights=weights)
    write_folder(tmp_path, own)
    model = ast_core.load(tmp_path, device="cpu")
    assert (model.labels, model.single_label) == (tuple(LABELS), True)
    scores = model.predict(np.zeros(16_000, np.float32), 16_000)
    assert sum(scores.values()) == pytest.approx(1.0, abs=1e-6)


def test_an_address_is_opened_by_the_entry_point_of_its_scheme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, seeds=(0,))
    monkeypatch.setitem(sys.modules, "opened_here", sys.modules[__name__])
    register_sources(monkeypatch, here="opened_here:fetch_here")
    assert ast_core.load(f"here:/{tmp_path}/bundles/seed-0", device="cpu").labels == tuple(LABELS)


def test_an_address_without_its_package_is_refused_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    register_sources(monkeypatch, models="a_package_that_is_missing.part:fetch")
    with pytest.raises(UserError, match="needs the package a_package_that_is_missing, which is not installed"):
        ast_core.load("models:/ast-demo@champion")
    with pytest.raises(UserError, match="no installed package opens addresses that begin with s3:/"):
        ast_core.load("s3://bucket/bundle")


def test_this_project_registers_the_addresses_of_mlflow() -> None:
    found = {own.name: own.value for own in importlib.metadata.entry_points(group=bundle_sources.GROUP)}
    assert found == dict.fromkeys(("models", "runs"), "pipeline.tracking.model_addresses:fetch_model")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "missing does not exist. Give the folder of a bundle"),
        ("", "The path of the model to load is empty"),
        ("run", "is the folder of a run; give one of its bundles: .*seed-0, .*seed-0-last"),
        ("run/bundles/seed-0/bundle.json", "is one file of a model; give its folder"),
        ("run/bundles/seed-0/member-0.safetensors", "its name does not end in .pth"),
        ("empty", "holds no model: it has neither bundle.json nor config.json"),
        ("old", "has config.json and no model.safetensors. Save the model again"),
        ("text.pth", "text.pth was refused"),
    ],
)
def test_what_is_no_model_is_refused_with_what_to_give(tmp_path: Path, name: str, message: str) -> None:
    write_run(tmp_path / "run", seeds=(0,))
    (tmp_path / "empty").mkdir()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text("{}")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=message):
        ast_core.load(str(tmp_path / name) if name else "")


def test_other_types_and_labels_of_a_bundle_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, seeds=(0,))
    with pytest.raises(UserError, match="of type int, not a path"):
        ast_core.load(3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="has labels of its own"):
        ast_core.load(tmp_path / "bundles" / "seed-0", labels=["a", "b", "c"])


def test_a_device_that_is_missing_or_unknown_is_refused_before_weights_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(UserError, match=r"device is cuda:1, but torch .* finds 0 GPUs with CUDA"):
        ast_core.load("missing", device="cuda:1")
    for name in ("mps", "gpu", "cuda:", "", None):
        with pytest.raises(UserError, match="give auto, cpu, cuda, or one GPU such as cuda:0"):
            ast_core.load("missing", device=name)  # type: ignore[arg-type]


def test_auto_is_the_gpu_that_torch_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == "cuda"
    assert choose_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match=r"finds 2 GPUs .* Give cuda:0 to cuda:1"):
        choose_device("cuda:2")


def test_members_of_several_rates_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    bundle = ast_core.Bundle.load(tmp_path / "bundles" / "ensemble")
    other = dataclasses.replace(bundle.members[1].front_end, sample_rate_hz=32_000)
    members = (bundle.members[0], dataclasses.replace(bundle.members[1], front_end=other))
    with pytest.raises(UserError, match="sampling rates of 16000, 32000 Hz"):
        ast_core.AudioTagger(dataclasses.replace(bundle, members=members), "cpu")
