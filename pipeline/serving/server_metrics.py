"""Counts of a server in the text format of Prometheus.

Each replica counts for itself and sends its counts to a board, which all replicas show: a scraper reaches any of them.
"""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

KINDS = {
    "ast_serve_requests_total": ("counter", "Answered requests."),
    "ast_serve_request_seconds": ("histogram", "Seconds from the request to its answer."),
    "ast_serve_requests_running": ("gauge", "Requests that are being answered."),
    "ast_serve_windows_total": ("counter", "Windows that the model computed."),
    "ast_serve_batches_total": ("counter", "Batches of windows that the model computed."),
    "ast_serve_windows_waiting": ("gauge", "Windows that wait for the model."),
    "ast_serve_live_sessions": ("gauge", "Live sessions that are open."),
    "ast_serve_live_sessions_total": ("counter", "Live sessions that ended, by reason."),
    "ast_serve_live_seconds_total": ("counter", "Seconds of sound of live sessions."),
    "ast_serve_live_lag_seconds": ("histogram", "Seconds from the last sound of a live window to its result."),
    "ast_serve_model": ("gauge", "Number of replicas that serve this version."),
    "ast_serve_replicas": ("gauge", "Number of replicas that are ready."),
    "ast_serve_draining": ("gauge", "Whether the server is being stopped."),
    "ast_serve_takeovers_total": ("counter", "New versions that a replica took over."),
    "ast_serve_takeover_failures_total": ("counter", "New versions that could not be taken over, or looked up."),
}
"""Kind and help text of each metric."""
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
STALE_S = 15.0
"""Seconds after which a replica that sends nothing has no gauges any more; its counters stay."""
Key = tuple[str, tuple[tuple[str, str], ...]]
"""Name of a value, and its labels."""
Counts = dict[Key, float]
DRAINING: Key = ("ast_serve_draining", ())
RUNNING: Key = ("ast_serve_requests_running", ())
READY: Key = ("ast_serve_replicas", ())
"""Keys of gauges that other modules read."""


class ServerMetrics:
    """The counts of one replica; threads may share it."""

    def __init__(self) -> None:
        self._counts: Counts = {}
        self._lock = threading.Lock()

    def add(self, name: str, value: float = 1.0, /, **labels: str) -> None:
        """Add to a counter."""
        key = (name, tuple(sorted(labels.items())))
        with self._lock:
            self._counts[key] = self._counts.get(key, 0.0) + value

    def observe(self, name: str, seconds: float, /, **labels: str) -> None:
        """Add a duration to a histogram."""
        first = bisect.bisect_left(BUCKETS_S, seconds)
        for limit in (*map(str, BUCKETS_S[first:]), "+Inf"):
            self.add(f"{name}_bucket", le=limit, **labels)
        self.add(f"{name}_sum", seconds, **labels)
        self.add(f"{name}_count", **labels)

    def snapshot(self, gauges: Mapping[Key, float]) -> Counts:
        """Return all values, with those of gauges."""
        with self._lock:
            return {**self._counts, **gauges}


class MetricsBoard:
    """The newest counts of each replica, and the order to stop; an actor of Ray, or an object of the only replica."""

    def __init__(self) -> None:
        self._draining = False
        self._newest: dict[str, tuple[float, Counts]] = {}

    async def exchange(self, replica: str, counts: Counts) -> Counts:
        """Store the counts of a replica, and return the sums over all replicas."""
        self._newest[replica] = (time.monotonic(), counts)
        return self.merge()

    def drain(self) -> None:
        """Let the replicas refuse new requests; they read it in the counts."""
        self._draining = True

    def merge(self) -> Counts:
        """Return the sums over the replicas, and whether they are to refuse new requests."""
        total: Counts = {DRAINING: float(self._draining)}
        for sent, counts in self._newest.values():
            stale = time.monotonic() - sent > STALE_S
            for key, value in counts.items():
                if not (stale and _kind_of(key[0]) == "gauge"):
                    total[key] = total.get(key, 0.0) + value
        return total


def render(counts: Counts) -> str:
    """Return the text that Prometheus reads."""
    lines: list[str] = []
    for name, (kind, text) in KINDS.items():
        own = {key: value for key, value in counts.items() if _family(key[0]) == name}
        if own:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [f"{key[0]}{_labels(key[1])} {value:.17g}" for key, value in sorted(own.items())]
    return "\n".join([*lines, ""])


def _family(name: str) -> str:
    """Return the metric that a value belongs to."""
    return next((own for own in (name, *(name.removesuffix(end) for end in _ENDS)) if own in KINDS), name)


def _kind_of(name: str) -> str:
    return KINDS.get(_family(name), ("", ""))[0]


_ENDS = ("_bucket", "_sum", "_count")


def _labels(labels: tuple[tuple[str, str], ...]) -> str:
    escaped = ((name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels)
    text = ",".join(f'{name}="{value}"' for name, value in escaped)
    return f"{{{text}}}" if text else ""


class CountRequests:
    """Middleware of ASGI that counts requests and their durations, by route and status."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and count its answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), "499"  # the client left, as nginx calls it

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            route: Any = scope.get("route")
            path = getattr(route, "path", "other")
            self._metrics.add("ast_serve_requests_total", route=path, status=status)
            self._metrics.observe("ast_serve_request_seconds", time.monotonic() - started, route=path)
