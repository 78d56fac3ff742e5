"""Training of one member: resume, epochs of steps, evaluation, checkpoints. One process a rank; knows no Ray.

What a run is, is an integer: the step. Order, augmentation and rate follow from (seed, epoch, step), so a resumed run
ends with the bits of an uninterrupted one on as many ranks.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from ast_core import checkpoint, metrics, order
from ast_core.batches import batches
from ast_core.config import Job, require
from ast_core.identity import member_identity, normalisation, run_identity
from ast_core.loss import probabilities
from ast_core.schedule import learning_rate
from ast_core.shards import ShardReader
from ast_core.state import State, finish_epoch, fresh, require_same_run, resume, save
from ast_core.step import step
from ast_core.targets import soft_targets


def fit(job: Job, rank: int, world: int, device: torch.device) -> None:
    """Train to the last epoch, from the newest verified checkpoint if there is one.

    Args:
        job: what to train.
        rank: of this process.
        world: processes; `torch.distributed` is set up if there is more than one.
        device: of this process.

    Raises:
        UserError: the run folder holds another run, the data does not fit, or the loss is not finite.
    """
    require(
        job.optim.batch_size % world == 0,
        f"optim.batch-size {job.optim.batch_size} cannot be shared by {world} workers; choose a multiple of {world}.",
    )
    train = ShardReader(job.shards, job.data.train_splits)
    held_out = ShardReader(job.shards, [job.data.validation_split or job.data.test_split])
    train.targets_NC = soft_targets(job, train)
    mean, std = normalisation(job, train)
    state = fresh(job, train, device, world)
    identity = _identity(job, train)
    resume(state, job, identity, rank, world)
    steps = order.steps_per_epoch(len(train), job.optim.batch_size)
    while state.progress.step < steps * job.optim.epochs:
        epoch = state.progress.step // steps + 1
        started, first = time.monotonic(), state.progress.step
        for batch in batches(job, train, epoch, rank, world, state.progress.step % steps):
            step(state, job, batch, train, epoch, mean, std)
            done = state.progress.step
            if rank == 0 and done % job.optim.checkpoint_every_steps == 0 and done % steps:
                save(state, job, identity)
        seconds = time.monotonic() - started
        row = _epoch_row(state, job, held_out, epoch, steps, mean, std, rank, world)
        row |= {"seconds": seconds, "clips_per_s": (state.progress.step - first) * job.optim.batch_size / seconds}
        finish_epoch(state, job, identity, row, epoch, rank)
    if world > 1:
        distributed.barrier()


def is_finished(job: Job) -> bool:
    """Whether a member is trained: its newest checkpoint is the last step's, and epochs and curve are there.

    Raises:
        UserError: the run folder holds another run, or the data does not fit.
    """
    newest, _ = checkpoint.newest(job.folder / "checkpoints")
    if newest is None or not (job.folder / "metrics.jsonl").is_file():
        return False
    train = ShardReader(job.shards, job.data.train_splits)
    stored = checkpoint.read_state(newest)
    require_same_run(stored["identity"], _identity(job, train), job)
    last = order.steps_per_epoch(len(train), job.optim.batch_size) * job.optim.epochs
    epochs = checkpoint.epochs_of(job.folder / "epochs")
    return bool(stored["progress"]["step"] >= last) and set(range(1, job.optim.epochs + 1)) <= set(epochs)


def _identity(job: Job, train: ShardReader) -> dict[str, Any]:
    return {"member": member_identity(job, train, *normalisation(job, train)), "run": run_identity(job, train)}


def score(model: nn.Module, job: Job, reader: ShardReader, indices: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Probabilities of clips, float32 [len(indices), C], by the model's own device."""
    device = next(model.parameters()).device
    model.eval()
    rows = [np.zeros((0, len(reader.index.labels)), np.float32)]
    with torch.inference_mode():
        for first in range(0, len(indices), 32):
            chosen = indices[first : first + 32]
            fbank_BTM = torch.from_numpy(reader.read(chosen)).to(device).float()
            num_frames_B = torch.from_numpy(reader.num_frames_N[chosen]).to(device)
            logits_BC = model((fbank_BTM - mean) / (2 * std), num_frames_B)
            rows.append(probabilities(job.optim.loss, logits_BC).cpu().numpy())
    model.train()
    return np.concatenate(rows)


def _epoch_row(
    state: State,
    job: Job,
    held_out: ShardReader,
    epoch: int,
    steps: int,
    mean: float,
    std: float,
    rank: int,
    world: int,
) -> dict[str, float]:
    """The epoch's metrics: losses and rate, and scores on the held-out split, each of its clips seen once."""
    share = order.evaluation_share(len(held_out), rank, world)
    scores = score(state.model, job, held_out, share, mean, std)
    gathered: list[Any] = [(share, scores, state.progress.loss_sum)]
    if world > 1:
        gathered = [None] * world
        distributed.all_gather_object(gathered, (share, scores, state.progress.loss_sum))
    all_NC = np.zeros((len(held_out), scores.shape[1]), np.float32)
    for indices, values, _ in gathered:
        all_NC[indices] = values
    name = "validation" if job.data.validation_split else "test"
    result = metrics.evaluate_scores(all_NC, held_out.labels_NC, held_out.index.single_label)
    row = {
        "epoch": epoch,
        "step": state.progress.step,
        "learning_rate": learning_rate(job.optim, epoch, state.progress.step - 1),
        "train_loss": sum(loss for _, _, loss in gathered) / world / steps,
    }
    return row | {f"{name}_{key}": value for key, value in result.items() if not key.startswith("chance")}
