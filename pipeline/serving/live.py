"""The route `/v1/live`: a WebSocket that takes audio while it is recorded, and sends probabilities every hop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from ast_core.audio.live.opus_stream import CONTAINERS, has_ffmpeg
from ast_core.audio.live.pcm_stream import PcmFormat
from ast_core.errors import ClipError, UserError
from pipeline.listening.live_session import (
    AGAINST_RULES,
    BUSY,
    FAILED,
    GOING_AWAY,
    SEND_S,
    TOO_BIG,
    WRONG_DATA,
    ClientLeftError,
    LiveError,
    LiveRequest,
    LiveServer,
    LiveSession,
)
from pipeline.serving.client_tokens import SUBPROTOCOL
from pipeline.serving.refusals import RefusedError
from pipeline.serving.server_state import ServerState

MOST_SESSIONS = 32
"""Sessions of a replica at most; each Opus stream has a process of 40 MB."""
SHORTEST_HOP_S = 0.1
MOST_LABELS = 10_000
DEFAULTS = {"format": "pcm_s16le", "sample_rate_hz": "16000", "hop_s": "", "top": "5", "version": ""}
"""Values of the query."""
PCM = "pcm_s16le"
ENDED, CLIENT_LEFT = "ended", "client_left"
REASONS = {
    GOING_AWAY: "going_away",
    WRONG_DATA: "unusable_audio",
    AGAINST_RULES: "refused",
    TOO_BIG: "message_too_big",
    FAILED: "failed",
    BUSY: "busy",
}
"""Reason of a session's end in the metrics, by the code with which its WebSocket is closed."""
_REASON_BYTES = 123
"""Bytes of a reason in a closing frame at most (RFC 6455)."""
_THREADS_OF_SESSION = 3
"""Threads that wait for a decoder's process, to write and to read, and for the model."""
logger = logging.getLogger("ray.serve")


def build_live_router() -> APIRouter:
    """Return the route with its threads, for one application."""
    router = APIRouter(prefix="/v1")
    threads = ThreadPoolExecutor(_THREADS_OF_SESSION * MOST_SESSIONS, "live")

    async def live(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol=_choose_subprotocol(websocket.scope.get("subprotocols", [])))
        reason = REASONS[GOING_AWAY]  # the server cancels its sessions when it ends
        try:
            await _count_session(websocket, threads)
            reason = ENDED
            await _close(websocket, 1000, "")
        except ClientLeftError:
            reason = CLIENT_LEFT
        except LiveError as error:
            reason = REASONS[error.code]
            await _refuse(websocket, error)
        finally:
            websocket.app.state.server.metrics.add("ast_serve_live_sessions_total", reason=reason)

    router.add_api_websocket_route("/live", live)
    return router


async def _count_session(websocket: WebSocket, threads: ThreadPoolExecutor) -> None:
    """Run a session unless the replica has as many as it may."""
    state: ServerState = websocket.app.state.server
    if state.live_sessions >= MOST_SESSIONS:
        raise LiveError(BUSY, f"The server has {MOST_SESSIONS} live sessions, which is its limit; try later.")
    state.live_sessions += 1
    try:
        await _run_session(websocket, threads)
    finally:
        state.live_sessions -= 1


async def _run_session(websocket: WebSocket, threads: ThreadPoolExecutor) -> None:
    """Check the client and its query, and run its session; LiveError says why it cannot go on."""
    state: ServerState = websocket.app.state.server
    try:
        _require_own_page(websocket.headers, state)
        request = read_request(websocket.query_params)
        version = websocket.query_params.get("version") or None
        with state.admit(websocket.headers):
            server = LiveServer(
                lambda: state.models.find(version),
                lambda: state.draining,
                threads,
                reads_ahead=state.behind_proxy,
                on_sound=lambda seconds: state.metrics.add("ast_serve_live_seconds_total", seconds),
                on_lag=lambda seconds: state.metrics.observe("ast_serve_live_lag_seconds", seconds),
            )
            await LiveSession(websocket, request, server).run()
    except RefusedError as error:
        busy = error.status == HTTPStatus.SERVICE_UNAVAILABLE
        raise LiveError(BUSY if busy else AGAINST_RULES, error.sentence) from error
    except ClipError as error:
        raise LiveError(WRONG_DATA, f"The audio cannot be used ({error.stage}): {error.reason}.") from error
    except UserError as error:
        raise LiveError(AGAINST_RULES, str(error)) from error
    except (LiveError, ClientLeftError):
        raise
    except WebSocketDisconnect as error:
        raise ClientLeftError from error
    except Exception as error:
        logger.exception("A live session failed.")
        raise LiveError(FAILED, "The server failed to answer; its log has the reason.") from error


def read_request(query: Mapping[str, str]) -> LiveRequest:
    """Return what the query of a WebSocket asks for.

    Raises:
        LiveError: a value is wrong; the text names it.
    """
    unknown = sorted(query.keys() - DEFAULTS.keys())
    if unknown:
        sentence = f"The query has {unknown[0][:40]!r}, which is unknown; it may have {', '.join(DEFAULTS)}."
        raise LiveError(AGAINST_RULES, sentence)
    values = {**DEFAULTS, **query}
    form = values["format"]
    if form not in {PCM, *CONTAINERS}:
        sentence = f"format is {form[:40]!r}; give {PCM}, {' or '.join(CONTAINERS)}."
        raise LiveError(AGAINST_RULES, sentence)
    if form in CONTAINERS and not has_ffmpeg():
        sentence = f"This server does not decode Opus: `pip install 'ast-pipeline[ffmpeg]'` is missing. Send {PCM}."
        raise LiveError(AGAINST_RULES, sentence)
    hop_s = _read_number("hop_s", values["hop_s"], SHORTEST_HOP_S, math.inf) if values["hop_s"] else None
    top = int(_read_number("top", values["top"], 1, MOST_LABELS, whole=True))
    rate_hz = int(_read_number("sample_rate_hz", values["sample_rate_hz"], 1, math.inf, whole=True))
    try:
        PcmFormat(rate_hz)
    except ClipError as error:
        raise LiveError(AGAINST_RULES, f"sample_rate_hz cannot be used: {error.reason}.") from error
    return LiveRequest(form, rate_hz, hop_s, top)


def _read_number(name: str, text: str, least: float, most: float, whole: bool = False) -> float:
    try:
        number = float(text[:40])
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and least <= number <= most and (not whole or number == int(number))):
        limit = f"from {least} to {most:g}" if most < math.inf else f"of at least {least}"
        sentence = f"{name} is {text[:40]!r}; give a {'whole ' if whole else ''}number {limit}."
        raise LiveError(AGAINST_RULES, sentence)
    return number


def _require_own_page(headers: Mapping[str, str], state: ServerState) -> None:
    """Raise LiveError if a page of another server opened the WebSocket, which browsers permit; tokens are enough."""
    origin, cors = headers.get("origin"), state.options.cors
    if origin is None or state.options.tokens or origin in cors or "*" in cors:
        return
    if urlsplit(origin).netloc != headers.get("host"):
        sentence = f"Pages of {origin[:80]} may not use this server; start it with `--cors {origin[:80]}`."
        raise LiveError(AGAINST_RULES, sentence)


def _choose_subprotocol(offered: list[str]) -> str | None:
    """Return the subprotocol to accept: browsers leave unless it is one that they offered."""
    others = [own for own in offered if not own.startswith(SUBPROTOCOL)]
    return next(iter([*others, *offered]), None)


async def _refuse(websocket: WebSocket, error: LiveError) -> None:
    """Send the reason as a message, and close the WebSocket."""
    with contextlib.suppress(TimeoutError, RuntimeError, OSError):
        async with asyncio.timeout(SEND_S / 4):
            await websocket.send_text(json.dumps({"error": error.sentence}, ensure_ascii=False))
    await _close(websocket, error.code, error.sentence)


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    with contextlib.suppress(TimeoutError, RuntimeError, OSError):
        async with asyncio.timeout(SEND_S / 4):
            await websocket.close(code, reason.encode()[:_REASON_BYTES].decode(errors="ignore"))
