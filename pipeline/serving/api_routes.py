"""The routes below `/v1` that take recordings: probabilities, events and embeddings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from ast_core.evaluation.embedder import find_member
from ast_core.evaluation.events import EventRule
from pipeline.serving.answers import (
    EmbedAnswer,
    ErrorAnswer,
    EventAnswer,
    JSONAnswer,
    ModelAnswer,
    PredictAnswer,
    answer_uploads,
    describe_event,
    describe_scores,
    describe_timeline,
)
from pipeline.serving.request_bodies import Upload, parse_uploads
from pipeline.serving.server_state import ServerState

DESCRIPTION = (
    "Probabilities, events and embeddings of recordings. Errors are JSON with a sentence in `error`. If the server has "
    "tokens, send `Authorization: Bearer TOKEN`."
)
MOST_LABELS = 10_000
"""Largest value of `top`."""
Version = Annotated[
    str | None, Query(max_length=40, description="Version of the registered model; by default the served one.")
]
_CONTENT = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["file"],
            "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
        }
    },
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    "application/json": {
        "schema": {
            "oneOf": [
                {
                    "type": "object",
                    "required": ["audio"],
                    "properties": {"audio": {"type": "string", "format": "byte"}, "name": {"type": "string"}},
                },
                {
                    "type": "object",
                    "required": ["files"],
                    "properties": {
                        "files": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["audio"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "audio": {"type": "string", "format": "byte"},
                                },
                            },
                        }
                    },
                },
            ]
        }
    },
}
_BODY = {"requestBody": {"required": True, "content": _CONTENT}}
_ERRORS = {
    400: "The body holds no recordings.",
    401: "The token is missing or wrong.",
    404: "The version does not exist.",
    408: "The body came too slowly.",
    413: "The request is too large.",
    422: "No recording can be used, or a value of the query is wrong.",
    429: "The token has as many requests as it may.",
    503: "The server is busy, starts or is being stopped; see Retry-After.",
}
router = APIRouter(
    prefix="/v1",
    tags=["recordings"],
    responses={status: {"model": ErrorAnswer, "description": text} for status, text in _ERRORS.items()},
)


@contextlib.asynccontextmanager
async def _admit(request: Request) -> AsyncIterator[tuple[ServerState, list[Upload]]]:
    """Check the token and the limits, and read the recordings of a request."""
    state: ServerState = request.app.state.server
    with state.admit(request.headers):
        body = await state.bodies.read(request)
        try:
            yield state, await parse_uploads(request.headers, bytes(body.content))
        finally:
            body.release()


@router.post(
    "/predict", summary="Return the probability of each class", response_model=PredictAnswer, openapi_extra=_BODY
)
async def predict(
    request: Request,
    top: Annotated[
        int, Query(ge=0, le=MOST_LABELS, description="Number of the most probable classes in `labels`.")
    ] = 5,
    version: Version = None,
) -> Response:
    """Return the mean over consecutive windows, as `ast-pipeline predict` does."""
    async with _admit(request) as (state, uploads):
        model = await state.models.find(version)

        async def run(content: bytes) -> dict[str, Any]:
            return describe_scores(model.bundle.labels, await model.predict(content), top)

        results = await answer_uploads(uploads, run, {"labels": None, "probabilities": None})
        return JSONAnswer({"model": model.identity, "results": results})


@router.post(
    "/events", summary="Return the sounds with their beginnings and ends", response_model=EventAnswer,
    response_model_exclude_unset=True, openapi_extra=_BODY,
)  # fmt: skip
async def events(
    request: Request,
    threshold: Annotated[
        float | None,
        Query(gt=0, le=1, description="Probability at which an event begins; by default the model's, else 0.5."),
    ] = None,
    hop_s: Annotated[
        float | None,
        Query(gt=0, lt=1e6, description="Seconds from one window to the next; by default 1, or a shorter window."),
    ] = None,
    release: Annotated[float, Query(gt=0, le=1, description="Share of the threshold at which an event ends.")] = 0.5,
    min_s: Annotated[float, Query(ge=0, lt=1e9, description="Shortest event in seconds.")] = 0.0,
    gap_s: Annotated[float, Query(ge=0, lt=1e9, description="Shorter gaps within a class are closed.")] = 0.0,
    overlap: Annotated[
        float, Query(ge=0, lt=1, description="Share of a window that a sound fills at the threshold.")
    ] = 0.0,
    timeline: Annotated[
        bool, Query(description="Whether to return the windows' probabilities, too, calibrated if the model is.")
    ] = False,
    version: Version = None,
) -> Response:
    """Return the events of windows that overlap, as `ast-pipeline predict --events` does."""
    rule = EventRule(threshold, release, min_s, gap_s, overlap)
    async with _admit(request) as (state, uploads):
        model = await state.models.find(version)
        model.measure_hop(hop_s)

        async def run(content: bytes) -> dict[str, Any]:
            found = await model.follow(content, hop_s)
            own = await asyncio.to_thread(
                found.events, rule.threshold, release=release, min_s=min_s, gap_s=gap_s, overlap=overlap
            )
            more = {"timeline": describe_timeline(found)} if timeline else {}
            return {"duration_s": float(found.ends_s.max()), "events": [describe_event(one) for one in own], **more}

        results = await answer_uploads(uploads, run, {"events": None})
        return await asyncio.to_thread(JSONAnswer, {"model": model.identity, "results": results})


@router.post("/embed", summary="Return the embedding of a recording", response_model=EmbedAnswer, openapi_extra=_BODY)
async def embed(
    request: Request,
    layer: Annotated[int | None, Query(description="Block, counted from 1; by default the last one.")] = None,
    member: Annotated[str | None, Query(max_length=200, description="Member of an ensemble.")] = None,
    version: Version = None,
) -> Response:
    """Return the embedding that `ast-pipeline embed` writes for a recording."""
    async with _admit(request) as (state, uploads):
        model = await state.models.find(version)
        facts = {
            "member": model.bundle.members[find_member(model.bundle, member)].name,
            "layer": model.find_embedder(member, layer).layer,
        }

        async def run(content: bytes) -> dict[str, Any]:
            found = await model.embed(content, member, layer)
            return {"duration_s": found.length_s, "embedding": found.clip_E.tolist(), **facts}

        results = await answer_uploads(uploads, run, {"embedding": None, **facts})
        return JSONAnswer({"model": model.identity, "results": results})


@router.get("/model", summary="Describe the served model", response_model=ModelAnswer, tags=["model"])
async def describe_model(request: Request, version: Version = None) -> Response:
    """Return name, version, labels and window of the model, and the versions that `version` may name."""
    state: ServerState = request.app.state.server
    with state.admit(request.headers):
        model = await state.models.find(version)
        versions = await asyncio.to_thread(state.models.known_versions)
        return JSONAnswer({**model.describe(), "versions": versions})
