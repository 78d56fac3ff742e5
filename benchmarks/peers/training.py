"""Training steps to time: ours, which reads shards, and those of the peers, on one batch that stays in memory.

Shapes: B clips, T frames, M mel bins, C classes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ast_core.config import AugmentConfig, DataConfig, FrontEndConfig, Job, ModelConfig, OptimConfig, Precision
from ast_core.model.transformer import BACKBONES
from ast_core.shards.reader import ShardReader
from ast_core.training.batches import Batch, iterate_batches
from ast_core.training.optimizer_step import AUTOCAST, QueuedStep, finish_step, queue_step
from ast_core.training.state import State, initial_state
from ast_core.training.trainer import STEPS_AHEAD

from .made_data import CLASSES
from .published_loader import MEAN, STD
from .published_model import PublishedAST

BETAS, WEIGHT_DECAY = (0.95, 0.999), 5e-7


def job_on(
    folder: Path,
    *,
    batch: int,
    backbone: str = "deit_base_distilled_patch16_384",
    stride: int = 10,
    frames: int = 1024,
    precision: Precision = "fp32",
    patchout: tuple[int, int] = (0, 0),
    compiled: bool = False,
    epochs: int = 1,
) -> Job:
    """Return AudioSet's recipe on shards below a folder, from scratch, with the settings that a benchmark varies."""
    return Job(
        folder=folder / "member",
        shards=folder / "shards",
        seed=0,
        data=DataConfig(train_splits=("train",), test_split="test", mean=MEAN, std=STD),
        front_end=FrontEndConfig(target_frames=frames),
        model=ModelConfig(backbone=backbone, freq_stride=stride, time_stride=stride, init="scratch"),
        augment=AugmentConfig(patchout_freq=patchout[0], patchout_time=patchout[1]),
        optim=OptimConfig(
            batch_size=batch, sampler="shuffle", precision=precision, compile=compiled, epochs=epochs, warmup_steps=0
        ),
    )


class OurStep:
    """Step of the trainer: the next batch from the shards, augmentation, forward, backward, Adam."""

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job = job
        self.reader = ShardReader(job.shards, job.data.train_splits)
        self.state: State = initial_state(job, self.reader, device, 1)
        self.coming = self._batches()
        self._queued: list[QueuedStep] = []

    def _batches(self) -> Iterator[Batch]:
        epoch = 1
        while True:
            yield from iterate_batches(self.job, self.reader, epoch, 0, 1, 0, self.state.device)
            epoch += 1

    def __call__(self) -> None:
        """Queue one step, and finish those that the trainer would finish."""
        self._queued.append(queue_step(self.state, self.job, next(self.coming), 1, MEAN, STD))
        while len(self._queued) > STEPS_AHEAD[self.state.device.type]:
            finish_step(self.state, self.job, self._queued.pop(0), self.reader)


@dataclass
class PeerStep:
    """Step of any model on one batch: forward, backward, optimizer."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    input_BTM: torch.Tensor
    labels_BC: torch.Tensor
    precision: Precision = "fp32"

    def __call__(self) -> None:
        """Do one step."""
        device, dtype = self.input_BTM.device.type, AUTOCAST[self.precision]
        with torch.autocast(device, dtype, enabled=self.precision != "fp32"):
            output = self.model(self.input_BTM)
            logits_BC = output if isinstance(output, torch.Tensor) else output.logits
        self.optimizer.zero_grad(set_to_none=True)
        nn.functional.binary_cross_entropy_with_logits(logits_BC.float(), self.labels_BC).backward()
        self.optimizer.step()


def peer_step(model: nn.Module, job: Job, device: torch.device, fused: bool) -> PeerStep:
    """Return a model's step on noise of the job's shape; `fused` chooses Adam's fused kernel over torch's default."""
    model = model.to(device).train()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=1e-5, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True if fused else None
    )
    clips, frames, bins = job.optim.batch_size, job.front_end.target_frames, job.front_end.num_mel_bins
    input_BTM = torch.randn(clips, frames, bins, device=device) / 2
    labels_BC = (torch.rand(clips, CLASSES, device=device) < 0.005).float()
    return PeerStep(model, optimizer, input_BTM, labels_BC, job.optim.precision)


def published_step(job: Job, device: torch.device) -> PeerStep:
    """Return the published model's step with torch's default Adam, as published."""
    size = BACKBONES[job.model.backbone]
    front = job.front_end
    model = PublishedAST(
        size.embed_dim, size.depth, size.heads, job.model.time_stride, front.num_mel_bins, front.target_frames, CLASSES
    )
    return peer_step(model, job, device, fused=False)


def transformers_step(job: Job, device: torch.device, attention: str) -> PeerStep:
    """Return the step of transformers' AST with fused Adam, the default of transformers' trainer.

    Args:
        job: sizes of model and batch.
        device: device to run on.
        attention: `eager` or `sdpa`.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import ASTConfig, ASTForAudioClassification  # noqa: PLC0415, an optional peer

    size = BACKBONES[job.model.backbone]
    config = ASTConfig(
        hidden_size=size.embed_dim, num_hidden_layers=size.depth, num_attention_heads=size.heads,
        intermediate_size=4 * size.embed_dim, frequency_stride=job.model.freq_stride,
        time_stride=job.model.time_stride, max_length=job.front_end.target_frames,
        num_mel_bins=job.front_end.num_mel_bins, num_labels=CLASSES, attn_implementation=attention,
    )  # fmt: skip
    return peer_step(ASTForAudioClassification(config), job, device, fused=True)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return the clock for a device: CPU time, or on a GPU wall time."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def finishing(step_once: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return a function that does a step and waits until the device has finished it."""

    def run() -> None:
        step_once()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run


def saved_mib(call: Callable[[], object], model: nn.Module, device: torch.device) -> float:
    """Return the memory of a step on top of the state between steps, in MiB.

    On a GPU it is the peak; on a CPU the size of all storages saved for the backward pass, without the parameters.
    """
    if device.type == "cuda":
        call()  # compiles the model and allocates the optimizer's state, which are no activations
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # keep a reference, so that the address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in kept.values()) / 2**20


@contextlib.contextmanager
def print_profile(device: torch.device) -> Iterator[None]:
    """Profile the body of the `with` statement, and print torch's table of its most expensive operators."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds, acc_events=True) as profile:
        yield
        if device.type == "cuda":
            torch.cuda.synchronize()
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=key, row_limit=25, max_name_column_width=60))
