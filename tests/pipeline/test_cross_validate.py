"""Cross-validation: which epoch each way of choosing takes, and one over real files and workers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import SaveTone

from ast_core.config import DataConfig
from ast_core.errors import UserError
from ast_core.serialization import to_dict
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import CrossValidateSettings
from pipeline.cross_validate import choose, cross_validate

FOLDS = ("fold1", "fold2", "fold3")


def test_published_flatters_nested_does_not_see_its_own_fold_and_last_chooses_nothing() -> None:
    curves = {"fold1": [0.1, 0.9, 0.2], "fold2": [0.5, 0.6, 0.7], "fold3": [0.5, 0.6, 0.8]}
    ways = choose(curves)
    assert ways["published"].epochs == dict.fromkeys(FOLDS, 2)
    assert ways["nested"].epochs == {"fold1": 3, "fold2": 2, "fold3": 2}
    assert ways["nested"].scores == {"fold1": 0.2, "fold2": 0.6, "fold3": 0.6}
    assert ways["last"].scores == {"fold1": 0.2, "fold2": 0.7, "fold3": 0.8}
    assert ways["published"].mean == pytest.approx(0.7)
    assert ways["published"].mean >= ways["nested"].mean


def test_the_earliest_of_equal_epochs_is_chosen_within_the_shortest_curve() -> None:
    ways = choose({"fold1": [0.5, 0.5], "fold2": [0.5, 0.5, 0.9], "fold3": [0.4, 0.4]})
    assert ways["published"].epochs == dict.fromkeys(FOLDS, 1)
    assert ways["last"].epochs == dict.fromkeys(FOLDS, 2)


def settings_of(folder: Path) -> CrossValidateSettings:
    text = f"""
    --recipe esc50_small --data.source {folder / "esc"} --run-dir {folder / "run"} --workers 1
    --tracking sqlite:///{folder / "mlflow.db"} --front-end.target-frames 48 --front-end.num-mel-bins 32
    --model.patch-freq 32 --model.freq-stride 32 --augment.mixup-rate 0 --augment.time-mask-frames 4
    --optim.epochs 2 --optim.batch-size 4 --optim.average-first-epoch 1 --optim.warmup-steps 0
    """
    return parse_settings(CrossValidateSettings, "", text.split())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_fold_is_held_out_once_and_a_rerun_trains_nothing(
    tmp_path: Path, save_tone: SaveTone, without_ray
) -> None:
    """Check the folds' members and scores; that members share their workers is tested in `test_worker_group`."""
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in (1, 2, 3):
        for take in range(4):
            name = f"{fold}-{take}-A-{take % 2}.wav"
            pitch = (300.0, 2500.0)[take % 2]
            save_tone(tmp_path / "esc" / "audio" / name, pitch_hz=pitch + 10 * fold, seed=10 * fold + take)
            lines.append(f"{name},{fold},{take % 2},{('low', 'high')[take % 2]},True,{take},A")
    (tmp_path / "esc" / "meta").mkdir()
    (tmp_path / "esc" / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    settings = settings_of(tmp_path)
    result = cross_validate(settings)
    assert list(result.curves) == list(FOLDS)
    assert all(len(curve) == 2 for curve in result.curves.values())
    assert json.loads((tmp_path / "run" / "folds-result" / "seed-0" / "folds.json").read_text())["nested"] == to_dict(
        result.nested
    )
    weights = sorted((tmp_path / "run" / "folds").rglob("epoch-0002/model.safetensors"))
    assert len(weights) == 3
    before = [path.stat().st_mtime_ns for path in weights]
    assert cross_validate(settings).curves == result.curves
    assert [path.stat().st_mtime_ns for path in weights] == before


def test_splits_that_are_not_folds_are_refused(tmp_path: Path, save_tone: SaveTone) -> None:
    for split in ("train", "validation", "test"):
        save_tone(tmp_path / "own" / split / "dog" / "a.wav")
    with pytest.raises(UserError, match="Cross-validation needs three folds or more"):
        cross_validate(dataclasses.replace(settings_of(tmp_path), data=DataConfig(source=str(tmp_path / "own"))))


def test_early_stopping_is_refused_because_no_split_may_choose_the_epoch(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    optim = dataclasses.replace(settings.optim, early_stopping_epochs=2)
    with pytest.raises(UserError, match="early-stopping-epochs is 2, and cross-validation has no validation split"):
        cross_validate(dataclasses.replace(settings, optim=optim))
