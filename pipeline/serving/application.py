"""The HTTP application of a server; Ray Serve runs it in each replica, and uvicorn runs it in tests."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response

from ast_core.errors import UserError
from pipeline.serving import api_routes
from pipeline.serving.answers import JSONAnswer
from pipeline.serving.live import build_live_router
from pipeline.serving.page_files import ASK_AGAIN, PageFiles
from pipeline.serving.refusals import RefusedError
from pipeline.serving.serve_options import ServeOptions
from pipeline.serving.server_metrics import CountRequests, ServerMetrics, render
from pipeline.serving.server_state import Board, ServerState

PAGE = Path(__file__).with_name("page")
"""Folder of the page's files."""
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)
"""What a browser may load for the page: nothing from other servers."""
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
"""Media type of Prometheus' text format."""
logger = logging.getLogger("ray.serve")


def build_app(
    options: ServeOptions, load_first: bool = False, board: Board | None = None, behind_proxy: bool = False
) -> FastAPI:
    """Return the application of one replica. Its lifespan loads the model.

    Args:
        options: settings of the server.
        load_first: whether the lifespan begins only when the model is loaded, and fails with it. Otherwise the
            application answers 503 until then.
        board: what collects the counts of all replicas.
        behind_proxy: whether requests come through Ray Serve's proxy.
    """
    metrics = ServerMetrics()

    @contextlib.asynccontextmanager
    async def lifespan(own: FastAPI) -> AsyncIterator[None]:
        state = ServerState(options, metrics, board, behind_proxy)
        own.state.server = state
        try:
            await state.start(load_first)
            yield
        finally:
            await state.stop()

    app = FastAPI(
        title="AST Pipeline", description=api_routes.DESCRIPTION, version="1", lifespan=lifespan,
        docs_url=None, redoc_url=None,  # both load their scripts from other servers
    )  # fmt: skip
    app.include_router(api_routes.router)
    app.include_router(build_live_router())
    _add_page(app)
    _add_health(app)
    _add_errors(app)
    if options.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(options.cors), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"], expose_headers=["Retry-After"],
        )  # fmt: skip
    app.add_middleware(CountRequests, metrics=metrics)
    return app


def _add_page(app: FastAPI) -> None:
    """Add the page at `/`, and its files below `/page/`."""

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        _require_ready(request)
        if not (PAGE / "index.html").is_file():
            return JSONAnswer({"status": "ok"})
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": PAGE_POLICY, **ASK_AGAIN})

    if PAGE.is_dir():
        app.mount("/page", PageFiles(directory=PAGE))


def _add_health(app: FastAPI) -> None:
    """Add what probes and Prometheus ask for; none of it needs a token."""

    @app.get("/healthz", tags=["health"], summary="Say whether the process works")
    async def healthz(request: Request) -> Response:
        healthy = request.app.state.server.models.windows.healthy
        if not healthy:
            raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "The model does not compute any more.")
        return JSONAnswer({"status": "ok"})

    @app.get("/readyz", tags=["health"], summary="Say whether predictions work")
    async def readyz(request: Request) -> Response:
        _require_ready(request)
        return JSONAnswer({"status": "ok"})

    @app.get("/metrics", tags=["health"], summary="Count requests and windows, for Prometheus")
    async def metrics(request: Request) -> Response:
        return PlainTextResponse(render(await request.app.state.server.collect()), media_type=PROMETHEUS)


def _require_ready(request: Request) -> None:
    state: ServerState = request.app.state.server
    if not state.ready:
        what = "is being stopped" if state.draining else "has not loaded its model yet"
        raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, f"The server {what}.", 1)


def _add_errors(app: FastAPI) -> None:
    """Answer every error with JSON that has a sentence in `error`."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return JSONAnswer({"error": error.sentence}, error.status, error.headers)

    @app.exception_handler(UserError)
    async def wrong(_: Request, error: UserError) -> Response:
        return JSONAnswer({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return JSONAnswer({"error": _describe(error.errors())}, HTTPStatus.UNPROCESSABLE_ENTITY)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> Response:
        sentence = f"{error.detail}. /openapi.json lists what this server answers."
        return JSONAnswer({"error": sentence}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        logger.error("A request failed.", exc_info=error)
        sentence = "The server failed to answer; its log has the reason."
        return JSONAnswer({"error": sentence}, HTTPStatus.INTERNAL_SERVER_ERROR)


def _describe(errors: Any) -> str:
    """Return a sentence about the values of a query that are wrong."""
    found = [f"{own['loc'][-1]} is {str(own.get('input'))[:40]!r}: {own['msg'].lower()}" for own in errors[:3]]
    return f"The query is wrong: {'; '.join(found)}."
