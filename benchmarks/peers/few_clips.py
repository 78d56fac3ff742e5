"""Ways to learn classes from a few clips: trainings of the trainer, and probes on the embeddings of a pretrained model.

Shapes: N clips, T frames, M mel bins, C classes, E embedding.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ast_core.audio.fbank import Fbank, fit_length
from ast_core.audio.waveform import load_waveform
from ast_core.config import AugmentConfig, DataConfig, FrontEndConfig, Job, ModelConfig, OptimConfig
from ast_core.dataset.manifest import load_manifest
from ast_core.evaluation.predictor import Predictor
from ast_core.model.transformer import AST
from ast_core.probing.linear_probe import ProbeData, fit_linear_probes
from ast_core.probing.nearest_neighbours import find_neighbours
from ast_core.probing.probe_choice import (
    DEFAULT_NEIGHBOURS,
    DEFAULT_STRENGTH,
    choose_value,
    try_neighbours,
    try_strengths,
)
from ast_core.probing.probe_folds import partition_clips
from ast_core.probing.probe_head import compute_head_input
from ast_core.serialization import to_dict
from ast_core.shards.index import INDEX
from ast_core.shards.sparse_labels import SparseLabels
from ast_core.shards.writer import Row, write_part
from ast_core.storage.json_files import write_hashed_json
from ast_core.training.trainer import fit
from ast_core.weights import checkpoint
from ast_core.weights.adapted_member import adapt_member
from ast_core.weights.average import average_weights
from ast_core.weights.bundle import Bundle, write_bundle
from ast_core.weights.ensemble_mean import Member

BATCH = 16
"""Clips of a step."""
AVERAGED = 3
"""Last epochs whose mean weights are tested."""
TRAININGS: dict[str, dict[str, Any]] = {
    "scratch": {"init": "scratch", "learning_rate": 1e-3},
    "fine-tuning": {
        "learning_rate": 5e-4, "head_learning_rate": 2e-3, "layer_decay": 0.75, "freeze_backbone_epochs": 1,
    },
    "frozen backbone": {"learning_rate": 5e-4, "head_learning_rate": 5e-3, "freeze_backbone_epochs": -1},
    "LoRA": {"learning_rate": 2e-3, "head_learning_rate": 5e-3, "lora_rank": 8, "lora_alpha": 16.0},
}  # fmt: skip
"""Values of recipe keys by training; the others are in `make_job`."""
PROBES = ("linear probe", "k-NN")


@dataclass(frozen=True, eq=False)
class Clips:
    """All clips of a data set in memory."""

    fbank_NTM: np.ndarray
    """Raw log-mel, float16, at the longest length that is used."""
    num_frames_N: np.ndarray
    """Decoded frames of each clip."""
    label_N: np.ndarray
    """Class of each clip."""
    fold_N: np.ndarray
    """Name of each clip's fold."""
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    """Source recording of each clip, whose clips are held out together."""
    labels: tuple[str, ...]
    """Names of the classes."""

    def draw(self, folds: Sequence[str], count: int | None, seed: int) -> np.ndarray:
        """Return the indices of `count` clips of each class from some folds, or of all; fewer clips are a subset."""
        own_N = np.flatnonzero(np.isin(self.fold_N, folds))
        shuffled_N = np.random.default_rng(seed).permutation(own_N)
        drawn = [shuffled_N[self.label_N[shuffled_N] == label][:count] for label in range(len(self.labels))]
        return np.sort(np.concatenate(drawn))


def read_clips(folder: Path, front_end: FrontEndConfig) -> Clips:
    """Read a folder in ESC-50's layout and compute its filterbanks, in one pass."""
    manifest = load_manifest(folder, "esc50")
    fbank, size = Fbank(front_end), (front_end.target_frames, front_end.num_mel_bins)
    fbank_NTM = np.zeros((len(manifest.clips), *size), np.float16)
    frames = []
    for row_TM, clip in zip(fbank_NTM, manifest.clips, strict=True):
        found_TM = fbank(torch.from_numpy(load_waveform(clip.path, front_end.sample_rate_hz)))
        frames.append(len(found_TM))
        row_TM[:] = fit_length(found_TM, front_end.target_frames).numpy()
    clips = manifest.clips
    return Clips(
        fbank_NTM, np.array(frames), np.array([clip.labels[0] for clip in clips]),
        np.array([clip.split for clip in clips]), tuple(clip.clip_id for clip in clips),
        tuple(clip.group or clip.clip_id for clip in clips), tuple(manifest.labels),
    )  # fmt: skip


def make_clips(front_end: FrontEndConfig, count: int = 8) -> Clips:
    """Return noise with one loud band a class, `count` clips of each class in each of three folds."""
    rng, classes, folds = np.random.default_rng(0), 4, ("fold1", "fold2", "fold3")
    total = classes * count * len(folds)
    fbank_NTM = rng.normal(-8, 2, (total, front_end.target_frames, front_end.num_mel_bins)).astype(np.float16)
    label_N = np.arange(total) % classes
    width = front_end.num_mel_bins // classes
    for row_TM, label in zip(fbank_NTM, label_N, strict=True):
        row_TM[:, label * width : (label + 1) * width] += 3
    names = tuple(f"clip-{n}" for n in range(total))
    fold_N = np.repeat(np.array(folds), total // len(folds))
    labels = tuple(f"band {n}" for n in range(classes))
    return Clips(fbank_NTM, np.full(total, front_end.target_frames), label_N, fold_N, names, names, labels)


def make_bundle(folder: Path, front_end: FrontEndConfig, model: ModelConfig) -> Path:
    """Write a bundle of one member with random weights."""
    torch.manual_seed(0)
    weights = AST(model, front_end.num_mel_bins, front_end.target_frames, 5).state_dict()
    identity = {"labels": list("abcde"), "model": to_dict(model), "front_end": to_dict(front_end)}
    rest = {"mean": -7.0, "std": 3.0, "loss": "bce"}
    write_bundle(folder, [("random", weights, identity | rest)], single_label=False)
    return folder


def make_job(folder: Path, pretrained: Path, member: Member, frames: int, keys: dict[str, Any], epochs: int) -> Job:
    """Return a training on the shards in `folder`.

    Args:
        folder: folder of the shards and of the member.
        pretrained: folder of the pretrained bundle.
        member: its member.
        frames: frames of a training clip.
        keys: changed keys of the sections model and optim.
        epochs: number of epochs.
    """
    front_end = dataclasses.replace(member.front_end, target_frames=frames)
    model_keys = {key: value for key, value in keys.items() if hasattr(member.config, key)}
    model = dataclasses.replace(member.config, **{"init": str(pretrained.absolute())} | model_keys)
    optim_keys = {key: value for key, value in keys.items() if key not in model_keys}
    optim = OptimConfig(
        epochs=epochs, batch_size=BATCH, warmup_steps=20, decay_first_epoch=max(1, epochs // 2), decay_factor=0.6,
        loss="cross_entropy", sampler="shuffle", average_first_epoch=max(1, epochs - AVERAGED + 1),
        checkpoint_every_steps=1_000_000, **optim_keys,
    )  # fmt: skip
    bins = front_end.num_mel_bins
    augment = AugmentConfig(mixup_rate=0.0, freq_mask_bins=bins * 24 // 128, time_mask_frames=frames * 96 // 512)
    return Job(
        folder=folder / "member", shards=folder / "shards", seed=0,
        data=DataConfig(validation_split="validation"), front_end=front_end, model=model, augment=augment, optim=optim,
    )  # fmt: skip


def train(job: Job, clips: Clips, drawn_N: np.ndarray, test_N: np.ndarray, seed: int, epoch_clips: int) -> np.ndarray:
    """Train on the drawn clips from the beginning, and return the scores of the test clips, [N, C].

    If the drawn clips are fewer than `epoch_clips`, they are repeated, so that all sets have the same number of steps.
    """
    job = dataclasses.replace(job, seed=seed)
    shutil.rmtree(job.folder, ignore_errors=True)
    _write_shards(job, clips, drawn_N, epoch_clips)
    fit(job, 0, 1, torch.device("cpu"))
    epochs = checkpoint.epoch_folders(job.folder / "epochs")
    chosen = [epochs[epoch] for epoch in range(job.optim.average_first_epoch, job.optim.epochs + 1)]
    identity = checkpoint.read_state(chosen[0])["identity"]
    bundle = job.folder / "bundle"
    write_bundle(bundle, [("member", average_weights(chosen), identity)], single_label=True)
    fbank_NTM = clips.fbank_NTM[test_N, : job.front_end.target_frames].astype(np.float32)
    frames_N = np.minimum(clips.num_frames_N[test_N], job.front_end.target_frames)
    scores_NC = Predictor(Bundle.load(bundle)).from_fbank(fbank_NTM, frames_N)
    shutil.rmtree(job.folder)
    return scores_NC


def _write_shards(job: Job, clips: Clips, drawn_N: np.ndarray, epoch_clips: int) -> None:
    """Write the training clips, repeated to fill an epoch, and one clip a class as the split that each epoch scores.

    The trainer scores a split after every epoch; nothing is chosen by it here, so it is as small as it can be.
    """
    frames, bins = job.front_end.target_frames, job.front_end.num_mel_bins
    copies = -(-epoch_clips // len(drawn_N))
    first_C = [drawn_N[clips.label_N[drawn_N] == label][0] for label in range(len(clips.labels))]
    wanted = {"train": [(n, copy) for copy in range(copies) for n in drawn_N], "validation": [(n, 0) for n in first_C]}
    splits = {}
    for split, rows in wanted.items():
        made = [
            Row(
                f"{clips.ids[n]} {copy}",
                (int(clips.label_N[n]),),
                int(min(clips.num_frames_N[n], frames)),
                clips.fbank_NTM[n, :frames].astype("<f2"),
            )
            for n, copy in rows[: max(epoch_clips, len(drawn_N))]
        ]
        part = write_part(job.shards / split / "part-00000.parquet", made, {}, frames, bins)
        counts = {"listed": part.rows, "kept": part.rows, "rejected": 0, "missing": 0}
        sums = {"sum": part.sum, "sum_sq": part.sum_sq, "count": part.count}
        own = {"name": "part-00000.parquet", "rows": part.rows, "sha256": part.sha256}
        splits[split] = counts | sums | {"parts": [own]}
    meaning = {"front_end": to_dict(job.front_end), "labels": list(clips.labels), "single_label": True}
    rest = {"layout": "esc50", "data_hash": "few", "splits": splits}
    write_hashed_json(job.shards / INDEX, meaning | rest)


def embed(member: Member, clips: Clips, frames: int) -> np.ndarray:
    """Return the clip embeddings of all clips, [N, E], by the pretrained model at a length of `frames`.

    At another length than its own, its positions are adapted as `--target-frames` of the stage `probe` adapts them.
    """
    model, found = adapt_member(member, frames).model, []
    with torch.inference_mode():
        for first in range(0, len(clips.ids), 32):
            part = slice(first, first + 32)
            fbank_BTM = torch.from_numpy(clips.fbank_NTM[part, :frames].astype(np.float32))
            frames_B = torch.from_numpy(np.minimum(clips.num_frames_N[part], frames))
            found.append(model.embed((fbank_BTM - member.mean) / (2 * member.std), frames_B).clip_BE.numpy())
    return np.concatenate(found)


def probe(
    method: str, member: Member, embeddings_NE: np.ndarray, clips: Clips, drawn_N: np.ndarray, test_N: np.ndarray
) -> np.ndarray:
    """Fit a probe on the drawn clips as the stage `probe` does, and return the scores of the test clips, [N, C]."""
    labels = SparseLabels.from_dense(np.eye(len(clips.labels), dtype=np.uint8)[clips.label_N])
    feature_NE = compute_head_input(member.model, embeddings_NE)
    read: Callable[[np.ndarray], np.ndarray] = lambda rows_B: feature_NE[rows_B]  # noqa: E731
    data = ProbeData(read, labels, clips.labels, True, "cross_entropy")
    splits, groups = clips.fold_N[drawn_N].tolist(), [clips.groups[n] for n in drawn_N]
    partitions = partition_clips(drawn_N, labels, splits, groups)
    if method == "k-NN":
        near: Callable[[np.ndarray], np.ndarray] = lambda rows_B: embeddings_NE[rows_B]  # noqa: E731
        count = int(choose_value(try_neighbours(data, near, partitions), DEFAULT_NEIGHBOURS))
        return find_neighbours(near, drawn_N, test_N, count).scores(labels, count)
    strength = choose_value(try_strengths(data, partitions, True), DEFAULT_STRENGTH)
    (fitted,) = fit_linear_probes(data, drawn_N, [strength], True)
    return fitted.probabilities(feature_NE[test_N])
