"""Parts of `gpu.py`: each measures one subject on one device and yields its figures as soon as it has them.

Shapes: B clips, N samples, T frames, M mel bins, C classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchaudio.compliance import kaldi

from ast_core.audio.fbank import Fbank
from ast_core.config import FrontEndConfig, Job, ModelConfig, Precision
from ast_core.errors import UserError
from ast_core.evaluation.predictor import Predictor
from ast_core.model.cost import model_cost
from ast_core.model.transformer import AST
from ast_core.training.optimizer_step import finish_step, queue_step
from ast_core.weights.bundle import Bundle
from ast_core.weights.bundle_description import BundleFacts
from ast_core.weights.ensemble_mean import Member

from .made_data import CLASSES, sound, write_shards
from .published_loader import MEAN, STD
from .training import OurStep, PeerStep, job_on, published_step, transformers_step

CPU = torch.device("cpu")
RATE_HZ, CLIP_S = 16_000, 10
PATCHOUT = (4, 40)
"""Rows and columns of patches that PaSST-S drops at stride 10."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts: large enough for a GPU, or small for a CPU."""

    device: torch.device
    precision: Precision
    frames: int
    clips: int
    """Clips of a batch that the front end and prediction get."""
    steps: int
    """Timed training steps of each variant."""
    base: str
    tiny: str
    batches: dict[str, int]
    """Clips of a training step by backbone; halved until they fit the memory."""
    matrix: int
    """Rows of the matrices that measure the peak."""
    audio_s: float
    """Length of the recording that is predicted."""


LARGE = Sizes(
    torch.device("cuda"), "bf16", 1024, 64, 20, "deit_base_distilled_patch16_384", "deit_tiny_distilled_patch16_224",
    {"deit_base_distilled_patch16_384": 96, "deit_tiny_distilled_patch16_224": 256}, 8192, 60.0,
)  # fmt: skip
SMALL = Sizes(CPU, "fp32", 48, 1, 1, "ast_mini", "ast_micro", {"ast_mini": 1, "ast_micro": 1}, 128, 1.0)


@dataclass(frozen=True)
class Figure:
    """One measured value."""

    name: str
    value: float
    unit: str
    goal: str = ""
    reached: bool = True
    """Whether the goal is reached; a figure without a goal counts as reached."""


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def time_calls(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the median wall time of a call in seconds, the device's work included; one call warms up."""
    call()
    seconds = []
    for _ in range(rounds):
        wait_for(device)
        started = time.perf_counter()
        call()
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def measure_peak(sizes: Sizes) -> Iterator[Figure]:
    """Measure the speed of one large matrix product, which the shares of the peak refer to."""
    yield Figure("matrix product", peak_tflops(sizes), "TFLOP/s")


def peak_tflops(sizes: Sizes) -> float:
    """Return the speed of a square matrix product in the training's number format, in TFLOP/s."""
    dtype = torch.bfloat16 if sizes.precision == "bf16" else torch.float32
    square = torch.randn(sizes.matrix, sizes.matrix, device=sizes.device, dtype=dtype)
    return 2 * sizes.matrix**3 / time_calls(lambda: square @ square, sizes.device, 10) / 1e12


def compare_with_cpu(sizes: Sizes) -> Iterator[Figure]:
    """Compare front end, augmentation, logits, gradients and a training step with the CPU's, in fp32 without TF32."""
    noise_BN = 0.1 * torch.randn(2, RATE_HZ * 2, generator=torch.Generator().manual_seed(0))
    front = [Fbank(FrontEndConfig(), device)(noise_BN).cpu() for device in (CPU, sizes.device)]
    yield _difference("log-mel", *front, goal=2e-2)
    with tempfile.TemporaryDirectory() as name:
        job = _make_job(Path(name), sizes, sizes.tiny, 16, clips=4, precision="fp32")
        job = dataclasses.replace(job, augment=dataclasses.replace(job.augment, noise=True))
        steps = [OurStep(job, device) for device in (CPU, sizes.device)]
        states = [step.state for step in steps]
        queued = [
            queue_step(step.state, job, next(step.coming), 1, MEAN, STD) for step in steps
        ]  # both start from the same seed
        yield _difference("augmented input", *(own.input_BTM.cpu() for own in queued), goal=1e-4)
        losses = [finish_step(step.state, job, own, step.reader) for step, own in zip(steps, queued, strict=True)]
        yield _difference("loss of a step", *(torch.tensor([loss]) for loss in losses), goal=1e-4)
        gradients = [torch.cat([value.grad.flatten().cpu() for value in state.model.parameters()]) for state in states]  # type: ignore[union-attr]
        yield _difference("gradient", *gradients, goal=1e-4)
        weights = [
            torch.cat([value.detach().flatten().cpu() for value in state.model.parameters()]) for state in states
        ]
        yield _difference(
            "weights after a step", *weights, goal=2.1 * job.optim.learning_rate
        )  # Adam: 1 rate, any sign
        yield from _check_blocked_update(steps[1], job)


def _difference(what: str, own: torch.Tensor, other: torch.Tensor, goal: float) -> Figure:
    largest = float((own.double() - other.double()).abs().max())
    return Figure(f"largest difference: {what}", largest, "", f"at most {goal:g}", largest <= goal)


def _check_blocked_update(step: OurStep, job: Job) -> Iterator[Figure]:
    """Count host synchronisations of a queued step, and weights that a step with NaN changes; both must be 0."""
    device, state = step.state.device, step.state
    batch = next(step.coming)
    wait_for(device)
    synchronisations = 0
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        queued = queue_step(state, job, batch, 1, MEAN, STD)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        synchronisations = 1
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    yield Figure(
        "steps that wait for the device while they are queued", synchronisations, "", "0", not synchronisations
    )
    if not synchronisations:
        finish_step(state, job, queued, step.reader)
    batch.fbank_BTM[0] = torch.nan
    before = [value.detach().clone() for value in state.model.parameters()]
    queued = queue_step(state, job, batch, 1, MEAN, STD)
    queue_step(state, job, next(step.coming), 1, MEAN, STD)
    changed = sum(not torch.equal(*pair) for pair in zip(before, state.model.parameters(), strict=True))
    yield Figure("tensors that a step with NaN and the next one change", changed, "", "0", not changed)
    try:
        finish_step(state, job, queued, step.reader)
        named = False
    except UserError as error:
        named = f"Step {queued.step} of" in str(error)
    yield Figure("errors that name the step with NaN", float(named), "", "1", named)


def measure_front_end(sizes: Sizes) -> Iterator[Figure]:
    """Measure the front end on a batch of 10 s clips, against torchaudio clip by clip on the same device."""
    config, device = FrontEndConfig(), sizes.device
    noise_BN = 0.1 * torch.randn(sizes.clips, RATE_HZ * CLIP_S, device=device)
    fbank = Fbank(config, device)
    ours = sizes.clips / time_calls(lambda: fbank(noise_BN), device, 5)
    theirs = 1 / time_calls(lambda: kaldi.fbank(noise_BN[:1], num_mel_bins=128, window_type="hanning"), device, 5)
    yield Figure("front end", ours, "clips/s")
    yield Figure("front end, torchaudio", theirs, "clips/s")


def measure_prediction(sizes: Sizes) -> Iterator[Figure]:
    """Measure prediction from stored filterbanks and from a recording, in fp32."""
    for backbone in (sizes.tiny, sizes.base):
        predictor = _make_predictor(sizes, backbone)
        fbank_BTM = np.random.default_rng(0).normal(-5, 4, (sizes.clips, sizes.frames, 128)).astype(np.float16)
        score = functools.partial(predictor.from_fbank, fbank_BTM, np.full(sizes.clips, sizes.frames))
        seconds = time_calls(score, sizes.device, 5)
        yield Figure(f"prediction from filterbanks, {backbone}", sizes.clips / seconds, "windows/s")
        predict = functools.partial(predictor.probabilities, sound(0, RATE_HZ, sizes.audio_s)[:, 0])
        seconds = time_calls(predict, sizes.device, 3)
        yield Figure(f"prediction from a recording, {backbone}", sizes.audio_s / seconds, "s of audio/s")


def _make_predictor(sizes: Sizes, backbone: str) -> Predictor:
    config, front = ModelConfig(backbone=backbone, init="scratch"), FrontEndConfig(target_frames=sizes.frames)
    model = AST(config, front.num_mel_bins, front.target_frames, CLASSES).eval()
    member = Member("made", model, front, MEAN, STD, "bce", config)
    labels = tuple(f"label {number}" for number in range(CLASSES))
    return Predictor(Bundle(labels, False, (member,), "made", BundleFacts()), str(sizes.device))


def _make_job(
    folder: Path, sizes: Sizes, backbone: str, stride: int, clips: int, *, precision: Precision | None = None,
    patchout: tuple[int, int] = (0, 0), compiled: bool = False,
) -> Job:  # fmt: skip
    job = job_on(
        folder, batch=clips, backbone=backbone, stride=stride, frames=sizes.frames,
        precision=precision or sizes.precision, patchout=patchout, compiled=compiled,
    )  # fmt: skip
    if not job.shards.exists():
        write_shards(job.shards, {"train": max(16, 4 * clips)}, job.front_end)
    return job


def measure_training(sizes: Sizes, backbone: str, stride: int, variant: str) -> Iterator[Figure]:
    """Measure a variant of the training step: `ours`, with `compile` or `patchout` or both, or a peer's name.

    The batch is halved until it fits the memory.
    """
    words = variant.split()
    patchout = (0, 0) if "patchout" not in words else PATCHOUT if sizes.frames >= 1024 else (2, 2)
    torch.compiler.reset()  # the sizes of all parts together would exceed torch's limit of compilations
    for clips in _halve(sizes.batches[backbone]):
        with tempfile.TemporaryDirectory() as name, contextlib.suppress(torch.OutOfMemoryError):
            job = _make_job(Path(name), sizes, backbone, stride, clips, patchout=patchout, compiled="compile" in words)
            seconds, mib = _time_training(_make_step(variant, job, sizes.device), sizes)
            break
        free_memory()
    else:
        raise MemoryError("the step of one clip does not fit the memory")
    name = f"{variant}, {backbone}, stride {stride}"
    cost = model_cost(job.model, job.front_end, CLASSES, job.augment)
    yield Figure(f"training, {name}", clips / seconds, "clips/s")
    yield Figure(f"share of the peak, {name}", 6e-12 * cost.macs * clips / seconds / peak_tflops(sizes), "")
    if sizes.device.type == "cuda":
        yield Figure(f"memory at {clips} clips, {name}", mib, "MiB")


def _halve(clips: int) -> Iterator[int]:
    """Yield a number of clips, its half, and so on down to 1."""
    while clips:
        yield clips
        clips //= 2


def _make_step(variant: str, job: Job, device: torch.device) -> OurStep | PeerStep:
    if variant.startswith("transformers"):
        return transformers_step(job, device, variant.split()[1])
    return published_step(job, device) if variant == "published" else OurStep(job, device)


def _time_training(step: OurStep | PeerStep, sizes: Sizes) -> tuple[float, float]:
    """Return seconds of a step, in a row of steps without a wait between them, and the peak of memory in MiB."""
    for _ in range(3):  # compiles the model, allocates the optimizer's state and fills the queue
        step()
    wait_for(sizes.device)
    if sizes.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    for _ in range(sizes.steps):
        step()
    wait_for(sizes.device)
    seconds = (time.perf_counter() - started) / sizes.steps
    return seconds, torch.cuda.max_memory_allocated() / 2**20 if sizes.device.type == "cuda" else 0.0


def free_memory() -> None:
    """Return the memory of deleted tensors to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
