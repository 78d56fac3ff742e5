"""Recordings of a request: multipart files, raw bytes, or JSON with base64. All of it is untrusted input."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from pipeline.serving.refusals import RefusedError, overload
from pipeline.serving.serve_options import MIB

MOST_RECORDINGS = 1000
"""Recordings of one request at most."""
LONGEST_NAME = 255
"""Characters of a recording's name that the answer repeats."""
BODY_S = 120.0
"""Longest wait for the body of a request."""
BODIES_AT_ONCE = 8
"""Bodies of the largest size that a replica holds at the same time."""
HOW_TO_SEND = (
    "Send recordings as multipart/form-data in fields named file, the bytes of one recording, or JSON such as "
    '{"audio": "UklGR..."} with base64.'
)


@dataclass(frozen=True)
class Upload:
    """One recording of a request."""

    name: str
    """Name that the client gave, or `recording` with its number."""
    content: bytes
    """Content of the file."""


class BodyReader:
    """Reads the bodies of requests, and limits their size and how much of them is in memory.

    Args:
        max_bytes: largest body.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._room = BODIES_AT_ONCE * max_bytes

    async def read(self, request: Request) -> HeldBody:
        """Return the body of a request, which keeps its room until it is released.

        Raises:
            RefusedError: the body is too large or comes too slowly, or too many bodies are in memory.
        """
        if (length := request.headers.get("content-length", "")).isdecimal() and int(length) > self._max_bytes:
            raise self._too_large()
        held = HeldBody(self)
        try:
            async with asyncio.timeout(BODY_S):
                async for chunk in request.stream():
                    self._take(len(chunk), held)
                    held.content += chunk
        except TimeoutError:
            held.release()
            sentence = f"The request's body was not complete after {BODY_S:g} s. Send it faster, or a smaller one."
            raise RefusedError(HTTPStatus.REQUEST_TIMEOUT, sentence) from None
        except BaseException:
            held.release()
            raise
        return held

    def free(self, count: int) -> None:
        """Add the room of a body that is not needed any more."""
        self._room += count

    def _take(self, count: int, held: HeldBody) -> None:
        if held.size + count > self._max_bytes:
            raise self._too_large()
        if count > self._room:
            raise overload("The server holds too many large requests now; try again.")
        self._room -= count
        held.size += count

    def _too_large(self) -> RefusedError:
        return RefusedError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The request is larger than {self._max_bytes / MIB:g} MiB, the most that this server takes. Send fewer or "
            "compressed recordings.",
        )


class HeldBody:
    """The body of a request in memory."""

    def __init__(self, reader: BodyReader) -> None:
        self.content = bytearray()
        self.size = 0
        self._reader = reader

    def release(self) -> None:
        """Drop the content."""
        self._reader.free(self.size)
        self.content, self.size = bytearray(), 0


async def parse_uploads(headers: Mapping[str, str], body: bytes) -> list[Upload]:
    """Return the recordings of a body; there is at least one.

    Args:
        headers: headers of the request, by names in small letters.
        body: complete body.

    Raises:
        RefusedError: the body is not one of the three kinds; the sentence says what is wrong.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _parse_multipart(headers, body)
    if kind == "application/json":
        return await asyncio.to_thread(_parse_json, body) if len(body) > MIB else _parse_json(body)
    if not body:
        raise _bad(f"The request has no recording. {HOW_TO_SEND}")
    return [Upload("recording", body)]


async def _parse_multipart(headers: Mapping[str, str], body: bytes) -> list[Upload]:
    async def stream() -> AsyncIterator[bytes]:  # the parser takes no other iterator
        yield body

    parser = MultiPartParser(headers, stream(), max_files=MOST_RECORDINGS, max_fields=MOST_RECORDINGS)  # type: ignore[arg-type]
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError, ValueError) as error:
        raise _bad(f"The multipart form cannot be read ({_shorten(str(error))}). {HOW_TO_SEND}") from None
    try:
        files = [own for own in form.getlist("file") if isinstance(own, UploadFile)]
        if not files:
            raise _bad(f"The form has no file in a field named file. {HOW_TO_SEND}")
        names = [_name(own.filename, number, len(files)) for number, own in enumerate(files)]
        return [Upload(name, await own.read()) for name, own in zip(names, files, strict=True)]
    finally:
        await form.close()


def _parse_json(body: bytes) -> list[Upload]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _bad(f"The body is not JSON ({_shorten(str(error))}). {HOW_TO_SEND}") from None
    rows = value.get("files", [value]) if isinstance(value, dict) else None
    if not isinstance(rows, list) or not rows:
        raise _bad(f"The JSON has neither audio nor a list of files. {HOW_TO_SEND}")
    if len(rows) > MOST_RECORDINGS:
        raise _bad(f"The request has {len(rows)} recordings; send at most {MOST_RECORDINGS}.")
    return [_parse_row(row, number, len(rows)) for number, row in enumerate(rows)]


def _parse_row(row: Any, number: int, count: int) -> Upload:
    if not isinstance(row, dict) or not isinstance(row.get("audio"), str):
        raise _bad(f"Recording {number} has no text in audio. {HOW_TO_SEND}")
    name = row.get("name")
    if name is not None and not isinstance(name, str):
        raise _bad(f"The name of recording {number} is of type {type(name).__name__}; send text.")
    try:
        content = _decode_base64(row["audio"])
    except ValueError as error:
        sentence = (
            f"The audio of recording {number} is not base64 ({_shorten(str(error))}). Send standard base64, with + and "
            "/, padding, and no data: prefix."
        )
        raise _bad(sentence) from None
    return Upload(_name(name, number, count), content)


def _decode_base64(text: str) -> bytes:
    """Return the bytes of base64, which may have line breaks; ValueError if it is no base64."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return base64.b64decode("".join(text.split()), validate=True)


def _name(given: str | None, number: int, count: int) -> str:
    """Return a name that JSON can hold."""
    text = (given or "")[:LONGEST_NAME].encode(errors="replace").decode()
    return text or ("recording" if count == 1 else f"recording {number}")


def _shorten(text: str) -> str:
    return text[:100].encode(errors="replace").decode()


def _bad(sentence: str) -> RefusedError:
    return RefusedError(HTTPStatus.BAD_REQUEST, sentence)
