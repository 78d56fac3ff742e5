"""Training in one process: it learns, repeats bitwise, resumes bitwise, and stops when it must."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from prepared import FRONT_END, write_shards
from safetensors.torch import load_file

from ast_core.config import AugmentConfig, DataConfig, Job, ModelConfig, OptimConfig, Precision
from ast_core.errors import Preempted, UserError
from ast_core.model.transformer import BACKBONES
from ast_core.shards.reader import ShardReader
from ast_core.shards.sparse_labels import SparseLabels
from ast_core.storage.atomic_files import sha256_of
from ast_core.training.batches import iterate_batches
from ast_core.training.callback import StepResult, TrainerCallback
from ast_core.training.optimizer_step import _accumulate_gradient, optimizer_step
from ast_core.training.order import clip_weights
from ast_core.training.state import initial_state
from ast_core.training.trainer import _require_labels, fit, is_finished
from ast_core.weights import checkpoint

EPOCHS = 3
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("data") / "shards", {"train": 42, "test": 21})


@pytest.fixture
def job(tmp_path: Path, shards: Path) -> Job:
    return make_job(tmp_path / "member", shards)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> Path:
    """Return the folder of a member that was trained at once, with every checkpoint; tests only read it."""
    own = make_job(tmp_path_factory.mktemp("uninterrupted") / "member", shards)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ast_core.training.state.KEPT_CHECKPOINTS", 100)
        fit(own, 0, 1, CPU)
    return own.folder


def make_job(folder: Path, shards: Path) -> Job:
    model = ModelConfig(
        backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch"
    )
    optim = OptimConfig(
        epochs=EPOCHS, batch_size=6, learning_rate=1e-3, warmup_steps=3, loss="cross_entropy", sampler="shuffle",
        checkpoint_every_steps=2, weights="last",
    )  # fmt: skip
    return Job(
        folder=folder, shards=shards, seed=0, data=DataConfig(mean=None, std=None),
        front_end=FRONT_END, model=model, augment=AugmentConfig(freq_mask_bins=4, time_mask_frames=8), optim=optim,
    )  # fmt: skip


def weights_of(folder: Path, epoch: int = EPOCHS) -> dict[str, torch.Tensor]:
    return load_file(folder / "epochs" / f"epoch-{epoch:04d}" / "model.safetensors")


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_training_learns_separable_classes_and_writes_its_metrics(uninterrupted: Path) -> None:
    rows = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [7, 14, 21]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["test_accuracy"] > 0.9  # a third by chance
    assert sorted(checkpoint.epoch_folders(uninterrupted / "epochs")) == [1, 2, 3]


@pytest.mark.slow
def test_same_seed_returns_same_bits_and_another_seed_other_weights(job: Job, uninterrupted: Path) -> None:
    fit(job, 0, 1, CPU)
    other = dataclasses.replace(job, folder=job.folder.with_name("other"), seed=1)
    fit(other, 0, 1, CPU)
    assert_same_bits(weights_of(job.folder), weights_of(uninterrupted))
    assert not torch.equal(weights_of(job.folder)["head.weight"], weights_of(other.folder)["head.weight"])


class _StopAtQuestion(TrainerCallback):
    """Callback that answers the nth `should_stop` with yes, and records the steps and the stop."""

    def __init__(self, nth: int) -> None:
        self.steps: list[int] = []
        self.stopped_at = -1
        self._nth = nth

    def on_step_end(self, done: StepResult) -> None:
        self.steps.append(done.step)

    def should_stop(self) -> bool:
        self._nth -= 1
        return self._nth == 0

    def on_stopped(self, step: int) -> None:
        self.stopped_at = step


@pytest.mark.parametrize("nth", [1, 4, 8])  # an epoch asks before each of its 7 steps, and during its evaluation
def test_training_that_is_asked_to_stop_loses_no_step_and_no_bit(job: Job, uninterrupted: Path, nth: int) -> None:
    before, after = _StopAtQuestion(nth), _StopAtQuestion(0)
    with pytest.raises(Preempted):
        fit(job, 0, 1, CPU, before)
    newest, _ = checkpoint.newest(job.folder / "checkpoints")
    assert newest is not None
    assert newest.name == f"step-{before.stopped_at:08d}"
    assert before.stopped_at == len(before.steps)
    fit(job, 0, 1, CPU, after)
    assert before.steps + after.steps == list(range(1, 7 * EPOCHS + 1))
    assert_same_bits(weights_of(uninterrupted), weights_of(job.folder))
    curves = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (uninterrupted, job.folder)]
    kept = [[{key: json.loads(row)[key] for key in ("epoch", "step", "train_loss")} for row in rows] for rows in curves]
    assert kept[0] == kept[1]


def test_more_epochs_continue_a_run_whose_newest_checkpoint_each_start_hashes_once(
    job: Job, uninterrupted: Path, monkeypatch
) -> None:
    fit(dataclasses.replace(job, optim=dataclasses.replace(job.optim, epochs=1)), 0, 1, CPU)
    hashed: list[str] = []

    def hash_file(folder: Path, name: str) -> str:
        hashed.append(f"{folder.name}/{name}")
        return sha256_of(folder / name)

    monkeypatch.setattr(checkpoint, "_hash_file_in", hash_file)
    fit(job, 0, 1, CPU)
    assert_same_bits(weights_of(uninterrupted), weights_of(job.folder))
    once = ["step-00000007/model.safetensors", "step-00000007/optimizer.safetensors"]
    assert sorted(hashed) == once
    hashed.clear()
    assert is_finished(job)
    assert sorted(hashed) == [name.replace("07/", "21/") for name in once]


def test_step_neither_draws_from_nor_depends_on_the_global_random_state(job: Job) -> None:
    augment = dataclasses.replace(job.augment, noise=True, patchout_time=1)
    own = dataclasses.replace(job, augment=augment, optim=dataclasses.replace(job.optim, activation_checkpointing=True))
    train, results = ShardReader(job.shards, ["train"]), []
    for seed in (1, 2):
        state = initial_state(own, train, CPU, 1)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        optimizer_step(state, own, next(iterate_batches(own, train, 1, 0, 1, 0)), train, 1, -6.0, 4.0)
        assert torch.equal(torch.get_rng_state(), before)
        results.append(state.model.state_dict())
    assert_same_bits(*results)


def test_other_settings_in_the_same_folder_are_refused_by_name(job: Job, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, job.folder)
    changed = dataclasses.replace(job, optim=dataclasses.replace(job.optim, learning_rate=2e-3))
    with pytest.raises(UserError, match=r"run\.optim differ"):
        fit(changed, 0, 1, CPU)
    with pytest.raises(UserError, match=r"run\.seed differ"):
        fit(dataclasses.replace(job, seed=5), 0, 1, CPU)


def test_shards_of_another_front_end_are_refused(job: Job) -> None:
    other = dataclasses.replace(job.front_end, window="hamming")
    with pytest.raises(UserError, match="window hanning, not hamming"):
        fit(dataclasses.replace(job, front_end=other), 0, 1, CPU)


def test_batch_size_that_is_no_multiple_of_the_workers_is_refused(job: Job) -> None:
    with pytest.raises(UserError, match="cannot be split over 4 workers"):
        fit(job, 0, 4, CPU)


def test_clips_without_a_label_are_drawn_with_bce_and_refused_with_cross_entropy(job: Job, monkeypatch) -> None:
    train = ShardReader(job.shards, ["train"])
    before_N, labels_NC = clip_weights(train.labels), train.labels_NC
    labels_NC[[3, 4]] = 0
    monkeypatch.setattr(ShardReader, "labels", SparseLabels.from_dense(labels_NC))
    with pytest.raises(UserError, match=r"2 training clips have no label, for example train-3\..*bce"):
        _require_labels(job, train)
    _require_labels(dataclasses.replace(job, optim=dataclasses.replace(job.optim, loss="bce")), train)
    weight_N = clip_weights(train.labels)
    assert weight_N[3] == weight_N[4] == 1000 / 2.01  # as a class of two clips
    assert before_N[3] == 1000 / 14.01


def compute_first_gradient(job: Job) -> tuple[float, dict[str, torch.Tensor]]:
    """Return loss and gradient of the first step, before any update."""
    train = ShardReader(job.shards, ["train"])
    state = initial_state(job, train, CPU, 1)
    batch = next(iterate_batches(job, train, 1, 0, 1, 0))
    loss = _accumulate_gradient(state, job, batch, batch.fbank_BTM.float() / 8)
    return float(loss), {name: value.grad for name, value in state.model.named_parameters() if value.grad is not None}


@pytest.mark.slow
def test_accumulation_and_activation_checkpointing_do_not_change_the_gradient(job: Job) -> None:
    optim = dataclasses.replace(job.optim, accumulate=4, activation_checkpointing=True)  # parts of 2, 2 and 2 clips
    loss, whole = compute_first_gradient(job)
    loss_in_parts, parts = compute_first_gradient(dataclasses.replace(job, optim=optim))
    assert loss_in_parts == pytest.approx(loss, rel=1e-5)
    for name, value in parts.items():
        torch.testing.assert_close(value, whole[name], atol=1e-6, rtol=1e-4)
    fit(dataclasses.replace(job, optim=optim), 0, 1, CPU)
    rows = [json.loads(line) for line in (job.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_accuracy"] > 0.9


@pytest.mark.slow
def test_resume_with_patchout_clipping_moving_average_and_bf16_keeps_every_bit(job: Job, monkeypatch) -> None:
    monkeypatch.setattr("ast_core.training.state.KEPT_CHECKPOINTS", 100)
    optim = dataclasses.replace(job.optim, clip_norm=0.5, ema_decay=0.9, weights="ema", precision="bf16")
    augment = dataclasses.replace(job.augment, patchout_time=1, patchout_any=1)
    own = dataclasses.replace(job, optim=optim, augment=augment)
    fit(own, 0, 1, CPU)
    average = load_file(own.folder / "epochs" / f"epoch-{EPOCHS:04d}" / "ema.safetensors")
    whole = weights_of(own.folder)
    assert not torch.equal(average["head.weight"], whole["head.weight"])
    for folder in (own.folder / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > 9:
            (folder / checkpoint.MARKER).unlink()
    fit(own, 0, 1, CPU)
    assert_same_bits(whole, weights_of(own.folder))
    assert_same_bits(average, load_file(own.folder / "epochs" / f"epoch-{EPOCHS:04d}" / "ema.safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_and_stores_float32_weights(job: Job, precision: Precision) -> None:
    half = dataclasses.replace(job, optim=dataclasses.replace(job.optim, precision=precision))
    fit(half, 0, 1, CPU)
    rows = [json.loads(line) for line in (half.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_accuracy"] > 0.9
    assert all(value.dtype == torch.float32 for value in weights_of(half.folder).values())


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.long,
                pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile builds C++ on a CPU: needs g++"),
            ],
        ),
    ],
)
def test_compiled_blocks_return_the_same_gradient_under_the_same_names(job: Job, monkeypatch, backend: str) -> None:
    """Check the graphs that are taken of the blocks; in the long form also the code that is built from them."""
    monkeypatch.setitem(BACKBONES, "ast_micro", dataclasses.replace(BACKBONES["ast_micro"], depth=2))
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # else it starts processes that import torch
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend=backend))
    _, whole = compute_first_gradient(job)
    _, compiled = compute_first_gradient(dataclasses.replace(job, optim=dataclasses.replace(job.optim, compile=True)))
    assert whole.keys() == compiled.keys()
    for name, value in compiled.items():
        torch.testing.assert_close(value, whole[name], atol=1e-5, rtol=1e-3)
