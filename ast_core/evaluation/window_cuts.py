"""Windows of recordings: parts as long as a training clip, cut while a recording is read.

Shapes: N samples, T frames, M mel bins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ast_core.audio.fbank import Fbank, fit_length

WINDOWS_AT_ONCE = 16
"""Windows that a model scores in one batch."""
Blocks = np.ndarray | Iterable[np.ndarray]
"""Recording at the front end's rate: float32 [N], or an iterable of blocks that can be iterated more than once."""


@dataclass(frozen=True)
class Window:
    """A part of a recording that is as long as a training clip, ready for a model."""

    fbank_TM: torch.Tensor
    """Log-mel, float32 [T, M], padded if the recording ends before the window."""
    num_frames: int
    """Frames that are not padding."""


class MeasuredBlocks:
    """The blocks of a recording; it counts their samples while they are read.

    Args:
        blocks: blocks of the waveform, which can be iterated more than once.
    """

    def __init__(self, blocks: Iterable[np.ndarray]) -> None:
        self._blocks = blocks
        self.samples = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the blocks from the first one."""
        self.samples = 0
        for block_N in self._blocks:
            self.samples += len(block_N)
            yield block_N


def cut_windows(fbank: Fbank, recording: Blocks, hop_frames: int, keep_rest: bool = False) -> Iterator[Window]:
    """Yield the windows of a recording, one every `hop_frames`; a last one below half a window only if it is alone.

    Values are rounded to float16, as those of the shards that the model was trained on.

    Args:
        fbank: filterbank of the model's front end.
        recording: recording at the front end's rate.
        hop_frames: frames from the start of one window to the start of the next.
        keep_rest: whether to yield a last window below half a window, too, if it has at least one frame.

    Raises:
        ClipError: the recording is shorter than one analysis window.
    """
    frames = fbank.config.target_frames
    blocks = [recording] if isinstance(recording, np.ndarray) else recording
    for cut_N in _cut_samples(fbank, blocks, hop_frames, 1 if keep_rest else frames // 2):
        fbank_TM = fit_length(fbank(torch.from_numpy(cut_N)), frames).half().float()
        yield Window(fbank_TM, fbank.num_frames(len(cut_N)))


def _cut_samples(
    fbank: Fbank, blocks: Iterable[np.ndarray], hop_frames: int, least_frames: int
) -> Iterator[np.ndarray]:
    """Yield the samples of each window; memory holds no more of the recording than one window and one block."""
    frames, hop = fbank.config.target_frames, hop_frames * fbank.hop_samples
    size = (frames - 1) * fbank.hop_samples + fbank.window_samples
    # The next window starts at index `start` of `held_N`, which may lie past its end.
    held_N, start, count = np.empty(0, np.float32), 0, 0
    for block_N in blocks:
        held_N, start = np.concatenate([held_N[start:], block_N]), max(0, start - len(held_N))
        while len(held_N) - start >= size:
            yield held_N[start : start + size]
            start, count = start + hop, count + 1
    rest_N = held_N[start:]
    # A rest below half a window would distort a mean: it is used only if the recording has no other window.
    while not count or fbank.num_frames(len(rest_N)) >= least_frames:
        yield rest_N
        rest_N, count = rest_N[hop:], count + 1
