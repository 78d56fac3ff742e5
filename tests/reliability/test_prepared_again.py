"""R10, R11: preparing again does nothing; a changed clip redoes its shard; training refuses changed data by default."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
import torch
from listed_audio import FRONT_END, RATE_HZ, files, prepare_settings, write_clips, write_list, written

from ast_core.config import AugmentConfig, DataConfig, Job, ModelConfig, OptimConfig
from ast_core.errors import UserError
from ast_core.shards.index import ShardIndex
from ast_core.training.trainer import fit, is_finished
from ast_core.weights import checkpoint
from pipeline.cli.stages import PrepareSettings
from pipeline.prepare import prepare

CLIPS, PER_PART, TEST = 64, 6, 4
CPU = torch.device("cpu")


@pytest.fixture
def settings(tmp_path: Path) -> PrepareSettings:
    listing = write_list(tmp_path / "data" / "list.csv", write_clips(tmp_path / "data", CLIPS), TEST)
    return prepare_settings(listing, tmp_path / "shards", PER_PART)


def change(settings: PrepareSettings, number: int, samples: int = RATE_HZ, seed: int = 0) -> None:
    wave_N = np.random.default_rng([1000 + number, seed]).normal(0, 0.1, samples)
    soundfile.write(Path(settings.data.source).with_name(f"good-{number:04d}.wav"), wave_N, RATE_HZ)


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
@pytest.mark.timeout(300)
def test_preparing_again_redoes_only_the_parts_with_changed_clips(
    settings: PrepareSettings,
    many: Callable[[int, int], int],
    fault_seed: int,
    measured: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    index = prepare(settings)
    before, bytes_before = written(settings.shards), files(settings.shards)
    capsys.readouterr()
    assert prepare(settings) == index
    assert "nothing to do" in capsys.readouterr().out
    assert (written(settings.shards), files(settings.shards)) == (before, bytes_before)
    rng, rounds, redone = random.Random(fault_seed), many(3, 30), 0
    for seed in range(rounds):
        chosen = rng.sample(range(CLIPS), rng.randint(1, 3))
        for number in chosen:
            change(settings, number, rng.randrange(3000, 9000), seed)
        changed = prepare(settings)
        after = written(settings.shards)
        own = {
            f"test/part-{n // PER_PART:05d}" if n < TEST else f"train/part-{(n - TEST) // PER_PART:05d}" for n in chosen
        }
        assert {name for name, seen in after.items() if before[name] != seen} == own
        assert changed.data_hash != index.data_hash
        index, before, redone = changed, after, redone + len(own)
    measured("R10", rounds=rounds, parts=len(before), redone=redone)


def training(settings: PrepareSettings, folder: Path) -> Job:
    return Job(
        folder=folder, shards=settings.shards, seed=0, data=DataConfig(), front_end=FRONT_END,
        model=ModelConfig(backbone="ast_micro", freq_stride=16, time_stride=16, init="scratch"),
        augment=AugmentConfig(freq_mask_bins=4, time_mask_frames=8),
        optim=OptimConfig(epochs=1, batch_size=6, loss="cross_entropy", sampler="shuffle", weights="last"),
    )  # fmt: skip


@pytest.mark.usefixtures("without_ray")
@pytest.mark.timeout(120)
def test_training_resumes_on_changed_data_only_with_the_flag(settings: PrepareSettings, tmp_path: Path) -> None:
    first = prepare(settings)
    job = training(settings, tmp_path / "member")
    fit(job, 0, 1, CPU)
    assert is_finished(job)
    change(settings, TEST + 1)
    second = prepare(settings)
    longer = replace(job, optim=replace(job.optim, epochs=2))
    with pytest.raises(UserError, match=r"run.data_hash differ.*--accept-other-data"):
        fit(longer, 0, 1, CPU)
    accepting = replace(longer, accept_other_data=True)
    fit(accepting, 0, 1, CPU)
    newest, _ = checkpoint.newest(job.folder / "checkpoints")
    assert newest is not None
    noted = checkpoint.read_state(newest)["identity"]
    assert noted["run"]["data_hash"] == second.data_hash != first.data_hash
    assert noted["member"]["mean"] == first.statistics(["train"])[0] != second.statistics(["train"])[0]
    assert is_finished(longer)  # it is a run of the new data now
    epochs = checkpoint.epoch_folders(job.folder / "epochs").values()
    assert len({str(checkpoint.read_state(folder)["identity"]) for folder in epochs}) == 1  # they can be averaged
    Path(settings.data.source).with_name(f"good-{TEST + 2:04d}.wav").write_bytes(b"broken")
    prepare(settings)
    assert ShardIndex.load(settings.shards).splits["train"].kept == CLIPS - TEST - 1
    with pytest.raises(UserError, match=r"run.data_hash, run.train_clips differ"):
        fit(replace(accepting, optim=replace(job.optim, epochs=3)), 0, 1, CPU)
