"""Decode with FFmpeg what libsndfile does not know: m4a, aac, wma, webm and the like. Needs the extra `ffmpeg`.

The extra is PyAV. Its wheels contain FFmpeg's libraries, so the decoder's process and its limits apply, and no program
named `ffmpeg` has to be found, trusted and started for each file.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ast_core.audio.byte_view import ByteView
from ast_core.audio.container_boxes import check_container
from ast_core.errors import ClipError

_INSTALL = "pip install 'ast-pipeline[ffmpeg]'"

_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,dtshd,eac3,flac,flv,loas,matroska,mov,mp3,mpc,mpc8,mpeg,"
    "mpegts,nistsphere,ogg,qcp,rm,tak,truehd,tta,voc,w64,wav,wv,xwma"
)
"""Containers that may be opened. Playlists are not among them: they name other files and addresses to read."""
_CONTAINER = "the container is damaged, or of a kind that is not read"
"""What "Invalid argument" means, FFmpeg's reason for a container that may not be opened."""
_STREAMS = {"aac", "ac3", "amr", "amrnb", "amrwb", "dts", "eac3", "loas", "mpeg", "mpegts", "truehd"}
"""Containers without a length: a recorder that stopped within a frame leaves a cut one, which breaks no promise."""
_BLOCK_SAMPLES = 1 << 16
_WITH_LENGTH = {"ape", "dsf", "mp4", "mpc", "mpc8", "ogg", "tak", "tta", "wv"}
"""Containers whose headers say the audio's length. For others FFmpeg estimates it, or means the longest stream."""
_TOLERANCE_S = 0.5
"""Longest difference between a track's length by its header and its samples: encoders' delays are up to 0.2 s."""
_GAP_S = 0.5
"""Longest time without a packet in a stream: encoders of Opus send one every 0.4 s in silence."""
_LOGGED = {"matroska", "webm"}
"""Containers without a length whose damaged parts FFmpeg skips and only logs."""
_OPUS = {"opus", "libopus"}
"""FFmpeg's decoders of Opus."""
_LOSSLESS = {"alac", "ape", "flac", "tak", "tta", "wavpack"}
"""Codecs without such a delay."""


def decode_with_ffmpeg(
    descriptor: int, view: ByteView, seconds: float | None, reason: str
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield the sampling rate and the samples, float32 [N, channels], of each block of the best audio stream.

    Args:
        descriptor: the file.
        view: what to decode of it: all, or one of several recordings that are joined.
        seconds: length to decode at most; None decodes the complete stream.
        reason: why libsndfile cannot decode the file.

    Raises:
        ClipError: stage `decode`, if the extra is not installed, or the file is of no known format, has no audio, is
            encrypted, damaged, or shorter than its header says.
    """
    try:
        import av  # noqa: PLC0415 most files do not need it, and it takes 0.1 s and 100 MB of address space
    except ImportError:
        text = f"{reason}; FFmpeg reads more formats (m4a, aac, wma, webm, ...): {_INSTALL}"
        raise ClipError("decode", text) from None
    check_container(descriptor, os.fstat(descriptor).st_size)
    view.seek(0)
    try:
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
        with (
            _watch_log() as damage,
            av.open(view, options=options, metadata_errors="replace") as container,  # titles in other encodings
        ):
            yield from _decode_stream(container, seconds, damage)
    except (av.error.FFmpegError, ValueError) as error:
        cause = _CONTAINER if getattr(error, "errno", None) == errno.EINVAL else _explain(error)
        raise ClipError("decode", f"{reason}; FFmpeg: {cause}") from error
    finally:
        if view.error is not None:
            raise view.error


def decode_opus_stream(source: Any, form: str) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield the sampling rate and the samples, float32 [N, channels], of each packet of an Opus stream as it arrives.

    FFmpeg skips damaged parts and only logs them, so its log is read.

    Args:
        source: object whose `read` returns what has arrived, and waits only if nothing has.
        form: FFmpeg's name of the container.

    Raises:
        ClipError: stage `decode`, if the stream is of another container or codec, is damaged, or lacks a part.
    """
    import av  # noqa: PLC0415

    options = {"protocol_whitelist": "none", "probesize": "32", "analyzeduration": "1"}
    try:
        with (
            _watch_log() as damage,
            av.open(
                _Undamaged(source, damage), format=form, options=options, metadata_errors="replace", buffer_size=4096
            ) as container,
        ):
            stream: Any = container.streams.best("audio")
            codec = "" if stream is None or stream.codec_context is None else stream.codec_context.name
            if codec not in _OPUS:
                raise ClipError("decode", f"the stream holds {codec or 'no audio'}, and not Opus")
            stream.codec_context.thread_count = 1
            yield from _to_float(_require_unbroken(_frames(container, stream), damage))
    except (av.error.FFmpegError, ValueError) as error:
        cause = _CONTAINER if getattr(error, "errno", None) == errno.EINVAL else _explain(error)
        raise ClipError("decode", f"FFmpeg: {cause}") from error


@contextlib.contextmanager
def _watch_log() -> Iterator[list[tuple[int, str, str]]]:
    """Yield what FFmpeg logs as an error in this thread: level, name and message."""
    import av  # noqa: PLC0415

    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as logged:
            yield logged
    finally:
        av.logging.set_level(before)


class _Undamaged:
    """A stream that ends for FFmpeg at its first damage, so that it does not search all that follows.

    Args:
        source: the stream.
        damage: what FFmpeg logs while it reads, as level, name and message.
    """

    def __init__(self, source: Any, damage: list[tuple[int, str, str]]) -> None:
        self._source, self._damage = source, damage

    def read(self, count: int) -> bytes:
        """Return the next bytes of the stream."""
        content: bytes = b"" if self._damage else self._source.read(count)
        return content


def _require_unbroken(frames: Iterable[Any], damage: list[tuple[int, str, str]]) -> Iterator[Any]:
    """Yield the frames of a stream up to the first damage, or the first missing part; then raise ClipError."""
    end_s = None
    for frame in frames:
        _require_no_damage(damage)
        if end_s is not None and frame.time is not None and frame.time - end_s > _GAP_S:
            raise ClipError("decode", f"{frame.time - end_s:.2f} s of the stream are missing")
        end_s = None if frame.time is None else frame.time + frame.samples / frame.sample_rate
        yield frame
    _require_no_damage(damage)


def _require_no_damage(damage: list[tuple[int, str, str]]) -> None:
    if damage:
        raise ClipError("decode", f"FFmpeg: {damage[0][2].strip().rstrip('.!')}")


def _decode_stream(
    container: Any, seconds: float | None, logged: list[tuple[int, str, str]]
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield rate and blocks of the best audio stream; ClipError if it is missing, encrypted, damaged or too short."""
    stream = container.streams.best("audio")
    if stream is None:
        kinds = ", ".join(sorted({other.type for other in container.streams})) or "none"
        if any(other.type == "audio" for other in container.streams):
            raise ClipError("decode", "the header of the audio stream has no usable channels, sampling rate or codec")
        raise ClipError("decode", f"the file has no audio stream; its streams: {kinds}")
    if stream.codec_context is None:
        raise ClipError("decode", "FFmpeg has no decoder for the audio stream")
    _refuse_encrypted(stream)
    stream.codec_context.thread_count = 1
    parts: list[npt.NDArray[np.float32]] = []
    rate_hz, waiting, done_s = 0, 0, 0.0
    for frame_rate_hz, block in _to_float(_frames(container, stream)):
        changed = frame_rate_hz != rate_hz or (parts and block.shape[1] != parts[0].shape[1])
        if parts and (changed or waiting >= _BLOCK_SAMPLES):
            yield rate_hz, np.concatenate(parts)
            parts, waiting = [], 0
        rate_hz = frame_rate_hz
        parts.append(block)
        waiting += len(block)
        done_s += len(block) / rate_hz
        if seconds is not None and done_s >= seconds:
            break
    if _LOGGED & set(container.format.name.split(",")):
        _require_no_damage(logged)
    if parts:
        yield rate_hz, np.concatenate(parts)
    promised_s = _length_s(container, stream)
    tolerance_s = 0.5 / rate_hz if stream.codec_context.name in _LOSSLESS and rate_hz else _TOLERANCE_S
    if seconds is None and promised_s is not None and done_s < promised_s - tolerance_s:
        raise ClipError("decode", f"truncated: {done_s:.2f} of {promised_s:.2f} seconds")


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the stream's decoded frames. Only a stream without a length may begin or end within a frame."""
    import av  # noqa: PLC0415

    tolerant = bool(_STREAMS & set(container.format.name.split(",")))
    failure: Exception | None = None
    decoded = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            failure = error
            if not tolerant:
                break
            continue
        if frames and failure and decoded:
            break
        if frames:
            failure, decoded = None, True
        yield from frames
    else:
        if decoded and tolerant:
            return
    if failure:
        codec = stream.codec_context.name
        raise ClipError("decode", f"FFmpeg cannot decode a part of the {codec} stream: {_explain(failure)}")


def _to_float(frames: Iterable[Any]) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """Yield the sampling rate and the samples of each frame, float32 [N, channels], full scale 1."""
    import av  # noqa: PLC0415

    converter, converted = None, None
    for frame in frames:
        channels = frame.layout.nb_channels
        if channels < 1 or frame.sample_rate < 1:
            raise ClipError("decode", f"{channels} channels at {frame.sample_rate} Hz are no audio")
        kind = frame.layout.name, frame.sample_rate, frame.format.name
        if kind != converted:
            # To interleaved samples: PyAV 18 reads wild memory for separate planes of more than eight channels.
            converter, converted = av.AudioResampler(format="flt"), kind
        for part in converter.resample(frame) if converter is not None else ():
            yield frame.sample_rate, part.to_ndarray().reshape(-1, channels).astype(np.float32, copy=False)


def _refuse_encrypted(stream: Any) -> None:
    """Raise ClipError for a stream of an MP4 file whose packets cannot be decoded without a key."""
    try:
        tag = stream.codec_context.codec_tag
    except UnicodeDecodeError:  # a number, not a name
        return
    if tag in {"enca", "drms"}:
        raise ClipError("decode", f"the audio stream is encrypted ({tag})")


def _length_s(container: Any, stream: Any) -> float | None:
    """Return the length of the audio by its container's header; None if the container does not say it for a track."""
    if not _WITH_LENGTH & set(container.format.name.split(",")) or not stream.duration:
        return None
    return float(stream.duration * stream.time_base)


def _explain(error: Exception) -> str:
    """Return what went wrong, without FFmpeg's number for it."""
    return getattr(error, "strerror", None) or str(error)
