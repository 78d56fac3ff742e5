"""Embeddings of recordings of any length by one member of a bundle.

Shapes: W windows, T frames, M mel bins, K patches in time, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from ast_core.audio.fbank import Fbank
from ast_core.errors import require
from ast_core.evaluation.window_cuts import WINDOWS_AT_ONCE, Blocks, MeasuredBlocks, Window, cut_windows
from ast_core.weights.bundle import Bundle
from ast_core.weights.ensemble_mean import Member


@dataclass(frozen=True, eq=False, repr=False)
class Embedding:
    """Embeddings of one recording."""

    clip: npt.NDArray[np.float32]
    """Mean over the windows of `predict`, float32 [E]. In each it is the mean of the prefix tokens."""
    frames: npt.NDArray[np.float32]
    """One row for each patch in time, the mean of its patches over frequency, float32 [K, E]."""
    starts_s: npt.NDArray[np.float64]
    """Start of each row of `frames` in seconds, float64 [K]."""
    ends_s: npt.NDArray[np.float64]
    """End of each row of `frames` in seconds, float64 [K]. Rows overlap if the patches do."""
    length_s: float
    """Length of the recording in seconds."""

    def __repr__(self) -> str:
        """Return a line that describes the embeddings, which have hundreds of values."""
        return f"Embedding({len(self.clip)} values, {len(self.frames)} frames)"


@dataclass(frozen=True)
class WindowEmbedding:
    """Embeddings of one window."""

    clip_E: np.ndarray
    frames_KE: np.ndarray
    """Rows of the patches that have sound; no rows if frames are not wanted."""
    counts: bool
    """Whether the window is one of those of `predict`, over which the clip embedding is the mean."""


class Embedder:
    """One model on its device, ready to embed; a `WindowModel` for many recordings.

    Args:
        member: model whose embeddings are wanted, on its device.
        fbank: filterbank of the member's front end.
        layer: block whose output is used, counted from 1; None for the last one.
        frames: whether frame embeddings are wanted.

    Raises:
        UserError: the model has no such block.
    """

    def __init__(self, member: Member, fbank: Fbank, layer: int | None = None, frames: bool = True) -> None:
        self.layer = member.model.find_layer(layer)
        self._member, self._fbank, self._frames = member, fbank, frames

    def embed(self, recording: Blocks) -> Embedding:
        """Return the embeddings of a recording.

        Args:
            recording: float32 [N] at the front end's rate, or blocks of it.

        Raises:
            ClipError: the recording is shorter than one analysis window.
        """
        blocks = MeasuredBlocks([recording] if isinstance(recording, np.ndarray) else recording)
        windows, parts = self.cut(self._fbank, blocks), []
        while some := list(islice(windows, WINDOWS_AT_ONCE)):
            parts += self.run_windows(self._fbank, some)
        return self.join(parts, blocks.samples / self._fbank.config.sample_rate_hz)

    @property
    def size(self) -> int:
        """Number of values of an embedding."""
        return self._member.model.pos_embed.shape[2]

    @property
    def filterbanks(self) -> tuple[Fbank, ...]:
        """The filterbank of the member's front end."""
        return (self._fbank,)

    def cut(self, fbank: Fbank, blocks: Blocks) -> Iterator[Window]:
        """Yield the windows of a recording: those of `predict`, and its rest if frames are wanted."""
        return cut_windows(fbank, blocks, fbank.config.target_frames, keep_rest=self._frames)

    def run_windows(self, fbank: Fbank, windows: Sequence[Window]) -> list[WindowEmbedding]:
        """Return the embeddings of windows, of one recording or of many, in one batch."""
        model, half = self._member.model, fbank.config.target_frames // 2
        device = model.pos_embed.device
        fbank_WTM = torch.stack([window.fbank_TM for window in windows]).to(device).float()
        frames_W = torch.tensor([window.num_frames for window in windows])
        with torch.inference_mode():
            normalised_WTM = (fbank_WTM - self._member.mean) / (2 * self._member.std)
            found = model.embed(normalised_WTM, frames_W.to(device), self.layer)
        clip_WE = found.clip_BE.cpu().numpy()
        frames_WKE = (found.frames_BKE if self._frames else found.frames_BKE[:, :0]).cpu().numpy()
        kept_W = (frames_W + model.time_stride - 1).div(model.time_stride, rounding_mode="floor").tolist()
        rows = zip(windows, clip_WE, frames_WKE, kept_W, strict=True)
        return [WindowEmbedding(clip_E, own_KE[:kept], own.num_frames >= half) for own, clip_E, own_KE, kept in rows]

    def join(self, parts: Sequence[WindowEmbedding], length_s: float) -> Embedding:
        """Return the embeddings of a recording from those of its windows, in their order.

        Args:
            parts: embeddings of each window.
            length_s: length of the recording in seconds, at which the last frame ends.
        """
        clips = [own.clip_E for own in parts if own.counts] or [parts[0].clip_E]
        config, hop = self._fbank.config, self._fbank.hop_samples
        patch = (self._member.config.patch_time - 1) * hop + self._fbank.window_samples
        stride = self._member.config.time_stride
        places = [n * config.target_frames + np.arange(len(own.frames_KE)) * stride for n, own in enumerate(parts)]
        starts_K = np.concatenate(places) * hop
        ends_s = np.minimum((starts_K + patch) / config.sample_rate_hz, length_s)
        frames_KE = np.concatenate([own.frames_KE for own in parts])
        with np.errstate(invalid="ignore", over="ignore"):  # the caller refuses values that are not finite
            clip_E: npt.NDArray[np.float32] = np.mean(clips, axis=0, dtype=np.float32)
        return Embedding(clip_E, frames_KE, starts_K / config.sample_rate_hz, ends_s, length_s)


def find_member(bundle: Bundle, name: str | None) -> int:
    """Return the number of a member; None for the only one.

    Raises:
        UserError: the bundle has several members and `name` is None, or no member has that name.
    """
    names = [member.name for member in bundle.members]
    if name is None:
        require(
            len(names) == 1,
            f"This model has {len(names)} members, and each has embeddings of its own; give member (--member): one of "
            f"{', '.join(names)}.",
        )
        return 0
    require(name in names, f"This model has no member {str(name)[:80]!r}; give one of {', '.join(names)}.")
    return names.index(name)
