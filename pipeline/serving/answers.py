"""Answers to requests: JSON of results, and the models by which OpenAPI describes it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from ast_core.errors import ClipError
from ast_core.evaluation.audio_tagger import Timeline
from ast_core.evaluation.event_windows import calibrate_windows
from ast_core.evaluation.events import Event
from ast_core.evaluation.prediction_table import top_classes
from ast_core.evaluation.recording_batches import Scored
from pipeline.serving.refusals import RefusedError
from pipeline.serving.request_bodies import Upload

AT_ONCE = 4
"""Recordings of one request that are decoded or computed at the same time."""
MOST_VALUES = 5_000_000
"""Probabilities in a timeline at most; they are a hundred megabytes of JSON."""


class ModelIdentity(BaseModel):
    """The model that made an answer."""

    name: str
    version: str | None
    digest: str


class RecordingResult(BaseModel):
    """What all results of a recording have in common."""

    name: str
    duration_s: float | None
    error: str | None


class Prediction(RecordingResult):
    """Probabilities of a recording."""

    labels: list[str] | None
    probabilities: dict[str, float] | None


class FoundEvent(BaseModel):
    """A sound with its beginning and its end."""

    label: str
    start_s: float
    end_s: float
    peak: float


class TimelineAnswer(BaseModel):
    """Probabilities of each window, calibrated if the model is, and the threshold of each label."""

    starts_s: list[float]
    ends_s: list[float]
    labels: list[str]
    thresholds: list[float]
    probabilities: list[list[float]]


class EventResult(RecordingResult):
    """Events of a recording, with `timeline=true` also its probabilities over time."""

    events: list[FoundEvent] | None
    timeline: TimelineAnswer | None = None


class EmbeddingResult(RecordingResult):
    """Embedding of a recording."""

    embedding: list[float] | None
    member: str
    layer: int


class PredictAnswer(BaseModel):
    """Answer of `/v1/predict`."""

    model: ModelIdentity
    results: list[Prediction]


class EventAnswer(BaseModel):
    """Answer of `/v1/events`."""

    model: ModelIdentity
    results: list[EventResult]


class EmbedAnswer(BaseModel):
    """Answer of `/v1/embed`."""

    model: ModelIdentity
    results: list[EmbeddingResult]


class ModelVersion(BaseModel):
    """A version of the registered model."""

    version: str
    aliases: list[str]


class ModelAnswer(ModelIdentity):
    """Answer of `/v1/model`."""

    labels: list[str]
    single_label: bool
    sample_rate_hz: int
    window_s: float
    members: list[str]
    calibrated: bool
    versions: list[ModelVersion]


class ErrorAnswer(BaseModel):
    """Answer to a request that was refused."""

    error: str


class JSONAnswer(Response):
    """A response of JSON, which is written without checking it against a model again."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the JSON of a value; probabilities are finite."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


async def answer_uploads(
    uploads: Sequence[Upload], run: Callable[[bytes], Awaitable[dict[str, Any]]], missing: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return a result for each recording, a few of them at the same time.

    Args:
        uploads: recordings of a request.
        run: function that returns the result of one recording.
        missing: fields of the result of a recording that cannot be used.

    Raises:
        RefusedError: no recording can be used.
    """
    turns = asyncio.Semaphore(AT_ONCE)

    async def run_one(own: Upload) -> dict[str, Any]:
        async with turns:
            try:
                return {"name": own.name, **await run(own.content), "error": None}
            except ClipError as error:
                return {"name": own.name, "duration_s": None, **missing, "error": str(error)}

    tasks = [asyncio.create_task(run_one(own)) for own in uploads]
    try:
        results = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    if all(own["error"] for own in results):
        reasons = "; ".join(sorted({own["error"] for own in results})[:3])
        sentence = f"The recording cannot be used: {reasons}."
        if len(results) > 1:
            sentence = f"None of the {len(results)} recordings can be used: {reasons}."
        raise RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, sentence)
    return results


def describe_scores(labels: tuple[str, ...], scored: Scored, top: int) -> dict[str, Any]:
    """Return the fields of a prediction."""
    scores = scored.scores_C
    return {
        "duration_s": scored.length_s,
        "labels": [labels[c] for c in top_classes(scores, min(top, len(labels)))],
        "probabilities": dict(zip(labels, scores.tolist(), strict=True)),
    }


def describe_event(own: Event) -> dict[str, Any]:
    """Return the fields of an event."""
    return {"label": own.label, "start_s": own.start_s, "end_s": own.end_s, "peak": own.peak}


def describe_timeline(own: Timeline) -> dict[str, Any]:
    """Return what `Timeline.events` finds events in; RefusedError if it has too many values."""
    if own.probabilities.size > MOST_VALUES:
        raise RefusedError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"The timeline has {own.probabilities.size} probabilities, more than {MOST_VALUES}; give a longer hop_s, a "
            "shorter recording, or timeline=false.",
        )
    scores_WC, threshold_C = calibrate_windows(own.probabilities, own.decisions)
    return {
        "starts_s": own.starts_s.tolist(),
        "ends_s": own.ends_s.tolist(),
        "labels": list(own.labels),
        "thresholds": threshold_C.tolist(),
        "probabilities": scores_WC.tolist(),
    }
