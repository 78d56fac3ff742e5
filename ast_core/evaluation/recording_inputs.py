"""Recordings as `AudioTagger` takes them, files and arrays, checked before the first one is predicted.

Shapes: N samples.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from ast_core.audio.decoder import Decoder, Recording
from ast_core.audio.waveform import MAX_RATE_HZ, MIN_RATE_HZ, convert_samples, find_full_scale
from ast_core.errors import ClipError, UserError, require
from ast_core.evaluation.window_cuts import Blocks

Audio: TypeAlias = str | os.PathLike[str] | npt.NDArray[Any] | torch.Tensor
"""One recording: the path of a file, or an array of samples."""
MOST_CHANNELS = 64
"""Largest number of channels of an array; a second axis that is longer is a batch or the samples."""
_ADVICE = {
    "read": "Check the path and its permissions.",
    "decode": "Convert it to WAV or FLAC from a source that plays to its end.",
    "resample": "Give a longer recording.",
    "fbank": "Give a longer recording.",
}
"""Ways out by the stage of a `ClipError` for a file."""


@dataclass(frozen=True)
class FileInput:
    """A recording in a file."""

    path: Path

    @property
    def name(self) -> str:
        """Name for errors."""
        return str(self.path)

    def to_blocks(self, sample_rate_hz: int, decoder: Decoder) -> Blocks:
        """Return the waveform in blocks, which are decoded while they are iterated."""
        return Recording(self.path, sample_rate_hz, decoder)

    def advise(self, error: ClipError) -> str:
        """Return what to do about an error."""
        return _ADVICE.get(error.stage, "Give another file.")


@dataclass(frozen=True)
class ArrayInput:
    """A recording in memory."""

    name: str
    """Name for errors, such as `Recording 3`, counted from 0."""
    samples: npt.NDArray[Any]
    """Samples, [N] or [N, channels], of any real type."""
    rate_hz: int
    """Sampling rate."""

    def to_blocks(self, sample_rate_hz: int, _decoder: Decoder) -> Blocks:
        """Return the waveform as one block; ClipError if it is no audio."""
        with np.errstate(over="ignore"):  # a float64 above float32's range becomes infinite, and is refused as such
            samples = self.samples.astype(np.float32)
        full_scale = find_full_scale(self.samples.dtype, samples)
        if full_scale is None:
            raise ClipError("decode", "its samples are integers above 1, whose full scale is unknown")
        return [convert_samples(samples / np.float32(full_scale), self.rate_hz, sample_rate_hz)]

    def advise(self, error: ClipError) -> str:
        """Return what to do about an error."""
        if error.stage in {"resample", "fbank"}:
            return "Give a longer recording."
        return "Give finite samples in [-1, 1] (divide 16-bit samples by 32768), and their sample_rate_hz."


def read_inputs(audio: Audio | Iterable[Audio], sample_rate_hz: float | None) -> list[FileInput | ArrayInput]:
    """Return the recordings of a call, after checking that each file exists and each array can be audio.

    Args:
        audio: one recording or several.
        sample_rate_hz: sampling rate of the arrays.

    Raises:
        UserError: something is not a recording; the text names it.
    """
    if is_single(audio):
        require(
            sample_rate_hz is None or not isinstance(audio, str | os.PathLike),
            f"sample_rate_hz is {sample_rate_hz}, but {audio} is a file, which has its own rate; leave it out.",
        )
        return [_read_input(audio, "The recording", sample_rate_hz)]
    if not isinstance(audio, Iterable) or isinstance(audio, bytes | bytearray | dict):
        raise UserError(f"The recording is of type {type(audio).__name__}; give a path, an array, or a list of them.")
    return [_read_input(own, f"Recording {place}", sample_rate_hz) for place, own in enumerate(audio)]


def is_single(audio: Audio | Iterable[Audio]) -> bool:
    """Return whether this is one recording, and not several."""
    return isinstance(audio, str | os.PathLike) or hasattr(audio, "__array__")


@contextlib.contextmanager
def name_errors(own: FileInput | ArrayInput) -> Iterator[None]:
    """Turn an error in a recording into a `UserError` that names it and says what to do."""
    try:
        yield
    except ClipError as error:
        raise UserError(f"{own.name} cannot be used ({error.stage}): {error.reason}. {own.advise(error)}") from error
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{own.name} could not be read: {reason}. Check its disk or mount, and try again.") from error


def _read_input(audio: Any, name: str, sample_rate_hz: float | None) -> FileInput | ArrayInput:
    if hasattr(audio, "__array__"):
        return ArrayInput(name, _read_array(audio, name), _read_rate(sample_rate_hz, name))
    if not isinstance(audio, str | os.PathLike) or isinstance(os.fspath(audio), bytes):
        kind = type(audio).__name__
        raise UserError(f"{name} is of type {kind}; give a path, or an array with sample_rate_hz.")
    path = Path(audio)
    try:
        found, is_folder = path.exists(), path.is_dir()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{str(path)[:200]} cannot be opened: {reason}. Check the path and its permissions.") from error
    require(found, f"{path} does not exist; give the path of a recording.")
    require(
        not is_folder,
        f"{path} is a folder; give its recordings, such as sorted(pathlib.Path({str(path)!r}).rglob('*.wav')).",
    )
    return FileInput(path)


def _read_array(audio: Any, name: str) -> npt.NDArray[Any]:
    """Return the samples of an array as numpy's, [N] or [N, channels], after checking type and shape."""
    try:
        samples = np.asarray(audio)
    except (TypeError, RuntimeError, ValueError) as error:  # a tensor on a GPU, or one that needs a gradient
        raise UserError(f"{name} is no array on the CPU: {error}") from error
    shape = tuple(samples.shape)
    require(
        samples.dtype.kind in "fiu",
        f"{name} has the type {samples.dtype}; give floating-point samples in [-1, 1].",
    )
    require(samples.size > 0, f"{name} has no samples: its shape is {shape}.")
    require(
        samples.ndim in {1, 2},
        f"{name} has the shape {shape}; give [samples] or [samples, channels], and a list for several recordings.",
    )
    require(
        samples.ndim == 1 or shape[1] <= min(MOST_CHANNELS, shape[0]),
        f"{name} has the shape {shape}, which would be {shape[0]} samples of {shape[-1]} channels. "
        "If the first axis is the channels, give `audio.T`; if it is a batch, give `list(audio)`.",
    )
    return samples


def _read_rate(given: float | None, name: str) -> int:
    require(given is not None, f"{name} is an array, and sample_rate_hz is missing; give its rate, such as 16000.")
    whole = isinstance(given, int | float | np.integer | np.floating) and not isinstance(given, bool)
    require(
        whole and MIN_RATE_HZ <= given <= MAX_RATE_HZ and given == int(given),  # type: ignore[operator, arg-type]
        f"sample_rate_hz is {given!r}; give a whole number from {MIN_RATE_HZ} to {MAX_RATE_HZ}.",
    )
    return int(given)  # type: ignore[arg-type]
