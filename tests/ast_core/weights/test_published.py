"""Published checkpoints, made here with their names and shapes, load with the settings of their training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ast_core
from ast_core.config import ModelConfig
from ast_core.errors import UserError
from ast_core.model.transformer import AST
from ast_core.weights.published import TRAININGS, load_published

TINY = ModelConfig(backbone="deit_tiny_distilled_patch16_224", init="scratch")


def write_checkpoint(path: Path, classes: int, frames: int, stride: int = 10, **changes: torch.Tensor | None) -> AST:
    """Write a model under the names of the published code, as DataParallel saves it; None leaves a tensor out."""
    torch.manual_seed(classes)
    model = AST(replace(TINY, freq_stride=stride, time_stride=stride), 128, frames, classes).eval()
    theirs: dict[str, torch.Tensor] = {"module.v.head.weight": torch.zeros(1000, 192)}
    for name, value in model.state_dict().items():
        module, _, rest = name.partition(".")
        own = {"head_norm": "mlp_head.0", "head": "mlp_head.1", "patch_proj": "v.patch_embed.proj"}
        theirs[f"module.{own[module]}.{rest}" if module in own else f"module.v.{name}"] = value
    for name, value in changes.items():
        key = f"module.{name}"
        theirs = {own: tensor for own, tensor in theirs.items() if own != key} | ({} if value is None else {key: value})
    torch.save(theirs, path)
    return model


@pytest.mark.parametrize(
    ("classes", "frames", "stride"),
    [(527, 1024, 10), (527, 1024, 12), (527, 1024, 14), (527, 1024, 16), (50, 512, 10), (35, 128, 10)],
)
def test_a_checkpoint_loads_with_the_settings_of_its_training(
    tmp_path: Path, classes: int, frames: int, stride: int
) -> None:
    own = write_checkpoint(tmp_path / "a model.pth", classes, frames, stride)
    bundle = load_published(tmp_path / "a model.pth")
    (member,) = bundle.members
    training = TRAININGS[classes]
    assert (member.config.freq_stride, member.config.time_stride) == (stride, stride)
    assert (member.front_end.target_frames, member.front_end.num_mel_bins) == (frames, 128)
    assert (member.mean, member.std, member.loss) == (training.mean, training.std, training.loss)
    assert bundle.single_label == (classes != 527)
    assert bundle.labels == tuple(map(str, range(classes)))
    assert all(torch.equal(value, own.state_dict()[key]) for key, value in member.model.state_dict().items())


def test_its_probabilities_are_those_of_the_model_under_the_names_of_a_list(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ast.pth", 35, 128)
    (tmp_path / "labels.csv").write_text(
        "index,mid,display_name\n" + "".join(f'{n},/m/{n},"word {n}, said"\n' for n in reversed(range(35)))
    )
    wave_N = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    numbered = ast_core.load(tmp_path / "ast.pth", device="cpu").predict(wave_N, 16_000)
    names = [f"word {n}, said" for n in range(35)]
    for labels in (names, tmp_path / "labels.csv", str(tmp_path / "labels.csv")):
        named = ast_core.load(tmp_path / "ast.pth", device="cpu", labels=labels).predict(wave_N, 16_000)
        assert named == {names[int(number)]: score for number, score in numbered.items()}


def test_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "ast.pth"
    write_checkpoint(path, 35, 128)
    names = [f"word {n}" for n in range(35)]
    with pytest.raises(UserError, match="`labels` has 34 names for 35 classes; give one for each"):
        load_published(path, names[1:])
    with pytest.raises(UserError, match="appear more than once"):
        load_published(path, ["word 1", *names[1:]])
    with pytest.raises(UserError, match=r"missing\.csv"):
        load_published(path, tmp_path / "missing.csv")
    (tmp_path / "gap.csv").write_text("index,mid,display_name\n1,/m/1,one\n2,/m/2,two\n")
    with pytest.raises(UserError, match=r"has no index .*'0'.*; number the classes from 0 to 1"):
        load_published(path, tmp_path / "gap.csv")
    (tmp_path / "twice.csv").write_text("index,mid,display_name\n1,/m/1,one\n1,/m/2,two\n")
    with pytest.raises(UserError, match="row 3: the index '1' is listed twice"):
        load_published(path, tmp_path / "twice.csv")


@pytest.mark.parametrize(
    ("classes", "frames", "changes", "message"),
    [
        (10, 1024, {}, "has 10 classes. Published checkpoints have 527 .AudioSet., 50 .ESC-50., 35"),
        (527, 512, {}, "it has 12 x 50 patches, and a published checkpoint of its data set has 1024 frames"),
        (35, 128, {"mlp_head.1.weight": None}, "has no head, so it cannot predict"),
        (35, 128, {"v.patch_embed.proj.weight": torch.zeros(192, 1, 8, 16)}, "no patches of 16 x 16"),
        (35, 128, {"v.blocks.12.norm1.weight": torch.zeros(192)}, "its width of 192 and depth of 13"),
        (35, 128, {"v.blocks.3.norm1.weight": torch.full((192,), torch.nan)}, "not finite: blocks.3.norm1.weight"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    tmp_path: Path, classes: int, frames: int, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    write_checkpoint(tmp_path / "ast.pth", classes, frames, **changes)
    with pytest.raises(UserError, match=message):
        load_published(tmp_path / "ast.pth")


def test_a_file_of_other_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth is no checkpoint of AST's published code"):
        load_published(tmp_path / "other.pth")
