"""Read the requests of a served model: rows of audio files or of samples.

MLflow checks no types, because the signature says `any` for each input: with types, its parser decodes base64 only in
`dataframe_records`, refuses rows of both kinds together, and refuses integers without a word on how to scale them.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from ast_core.audio.waveform import MAX_AMPLITUDE, MAX_RATE_HZ, MIN_RATE_HZ, find_full_scale
from ast_core.dataset.problems import shorten
from ast_core.errors import ClipError

AUDIO = "audio"
"""Input column with the bytes of a recording, in any format that the decoder reads; base64 text in a JSON request."""
WAVEFORM, RATE = "waveform", "sample_rate_hz"
"""Input columns with mono samples, nominally in [-1, 1], and their rate; the default is the rate of the model."""
WHAT_TO_SEND = (
    f"Send {AUDIO} (the bytes of an audio file, base64 in JSON), or {WAVEFORM} (a list of mono samples in [-1, 1]) "
    f'with {RATE}, for example {{"dataframe_records": [{{"{AUDIO}": "UklGR..."}}]}}.'
)


class RequestError(MlflowException):
    """A request that is not a table of recordings; MLflow's server answers it with HTTP 400 and the message."""

    def __init__(self, message: str) -> None:
        super().__init__(message, error_code=INVALID_PARAMETER_VALUE)
        self._own = message

    def serialize_as_json(self) -> str:
        """Return the body of the answer; MLflow would put the complete request, megabytes of base64, in it."""
        return json.dumps({"error_code": self.error_code, "message": self._own})


@dataclass(frozen=True)
class Row:
    """One recording of a request: the content of a file, or samples."""

    content: bytes = b""
    waveform_N: np.ndarray | None = None
    """Mono samples, float32; None for a file."""
    rate_hz: int | None = None
    """Rate of the samples; None for the rate of the model."""


def read_request(table: pd.DataFrame) -> list[Row]:
    """Convert a request to its recordings.

    Raises:
        RequestError: a row is not a recording; the message names the row, counted from 0, and says what to send.
    """
    if not len(table) or not {AUDIO, WAVEFORM} & set(table.columns):
        raise RequestError(f"The request has neither {AUDIO} nor {WAVEFORM}. {WHAT_TO_SEND}")
    if AUDIO in table:
        table = table.explode(AUDIO)  # MLflow reads {"inputs": {"audio": [recording, recording]}} as one row
    elif pd.api.types.is_numeric_dtype(table[WAVEFORM]) and table[WAVEFORM].notna().any():
        # MLflow reads {"inputs": {"waveform": [0.1, 0.2]}} as one row per sample.
        rate = table[RATE].iloc[0] if RATE in table else None
        return [_read_waveform(0, table[WAVEFORM].to_numpy(), rate)]
    return [_read_row(number, row) for number, row in enumerate(table.to_dict("records"))]


def require_loudness(waveform_N: np.ndarray) -> None:
    """Raise ClipError if a recording has no samples, or samples that the model cannot use."""
    if not len(waveform_N):
        raise ClipError("read", f"{WAVEFORM} has no samples")
    if not np.abs(waveform_N).max() <= MAX_AMPLITUDE:
        raise ClipError(
            "read", f"{WAVEFORM} has samples that are not finite or above {MAX_AMPLITUDE:g}; scale them to [-1, 1]"
        )


def _read_row(number: int, row: dict[Any, Any]) -> Row:
    audio, samples = row.get(AUDIO), row.get(WAVEFORM)
    has_audio, has_samples = not _is_missing(audio), not _is_missing(samples)
    if has_audio == has_samples:
        has = f"both {AUDIO} and {WAVEFORM}" if has_audio else f"neither {AUDIO} nor {WAVEFORM}"
        raise RequestError(f"Row {number} has {has}; give each row one of them. {WHAT_TO_SEND}")
    return Row(_read_audio(number, audio)) if has_audio else _read_waveform(number, samples, row.get(RATE))


def _read_audio(number: int, audio: Any) -> bytes:
    """Return the content of a file that was sent as bytes or as base64."""
    if isinstance(audio, bytes | bytearray | memoryview):
        return bytes(audio)
    if not isinstance(audio, str):
        kind = type(audio).__name__
        raise RequestError(f"{AUDIO} of row {number} is of type {kind}; send base64 text, or bytes from Python.")
    try:
        return base64.b64decode("".join(audio.split()), validate=True)  # encoders may break lines
    except ValueError as error:
        raise RequestError(
            f"{AUDIO} of row {number} is not base64 ({error}): {shorten(audio, 40)}. Send the bytes of the file in "
            "standard base64, with + and /, padding, and no data: prefix."
        ) from None


def _read_waveform(number: int, samples: Any, rate: Any) -> Row:
    """Return the samples of a row as float32; integers are scaled if their type says their full scale."""
    try:
        given_N = np.asarray(samples)
        waveform_N = given_N.astype(np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise RequestError(
            f"{WAVEFORM} of row {number} is not a list of numbers ({shorten(str(error))}). {WHAT_TO_SEND}"
        ) from None
    if waveform_N.ndim != 1:
        raise RequestError(
            f"{WAVEFORM} of row {number} has the shape {waveform_N.shape}; send one list of mono samples per row."
        )
    full_scale = find_full_scale(given_N.dtype, waveform_N)
    if full_scale is None:
        raise RequestError(
            f"{WAVEFORM} of row {number} has integer samples, whose full scale is unknown; send numbers in [-1, 1]: "
            "divide 16-bit samples by 32768."
        )
    return Row(waveform_N=waveform_N / np.float32(full_scale), rate_hz=_read_rate(number, rate))


def _read_rate(number: int, given: Any) -> int | None:
    if _is_missing(given):
        return None
    try:
        rate_hz = float(given)
    except (ValueError, TypeError, OverflowError):
        rate_hz = math.nan
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise RequestError(
            f"{RATE} of row {number} is {shorten(str(given))}; send a number from {MIN_RATE_HZ} to {MAX_RATE_HZ}."
        )
    return int(rate_hz)


def _is_missing(value: Any) -> bool:
    """Return whether a cell is empty: pandas stores NaN where a row has no value."""
    return value is None or value is pd.NA or (isinstance(value, float | np.floating) and math.isnan(value))
