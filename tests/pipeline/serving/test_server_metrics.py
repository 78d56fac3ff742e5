"""Counts of several replicas as one text of Prometheus."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from pipeline.serving import server_metrics
from pipeline.serving.server_metrics import MetricsBoard, ServerMetrics, render


def counts_of(requests: int, running: int) -> server_metrics.Counts:
    metrics = ServerMetrics()
    for _ in range(requests):
        metrics.add("ast_serve_requests_total", route="/v1/predict", status="200")
        metrics.observe("ast_serve_request_seconds", 0.2, route="/v1/predict")
    return metrics.snapshot({("ast_serve_requests_running", ()): running})


def test_the_board_adds_up_replicas_and_keeps_the_counts_of_dead_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    board = MetricsBoard()
    asyncio.run(board.exchange("a", counts_of(3, 1)))
    monkeypatch.setattr(server_metrics, "STALE_S", -1.0)
    merged = asyncio.run(board.exchange("b", counts_of(2, 4)))
    key = ("ast_serve_requests_total", (("route", "/v1/predict"), ("status", "200")))
    assert merged[key] == 5
    assert ("ast_serve_requests_running", ()) not in merged  # nothing newer than -1 s
    monkeypatch.undo()
    assert asyncio.run(board.exchange("b", counts_of(7, 4)))["ast_serve_requests_running", ()] == 5


def test_the_guide_lists_every_metric() -> None:
    guide = (Path(__file__).resolve().parents[3] / "docs" / "guides" / "serving.md").read_text()
    table = guide.partition("## Metrics")[2].partition("## Tokens")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {f"ast_serve_{name}" for row in rows for name in re.findall(r"`(\w+)`", row)} == set(server_metrics.KINDS)


def test_the_text_has_types_labels_and_cumulative_buckets() -> None:
    metrics = ServerMetrics()
    metrics.observe("ast_serve_request_seconds", 0.2, route='a"\n\\b')
    lines = render(metrics.snapshot({})).splitlines()
    assert lines[1] == "# TYPE ast_serve_request_seconds histogram"
    assert 'ast_serve_request_seconds_bucket{le="0.25",route="a\\"\\n\\\\b"} 1' in lines
    assert not any('le="0.1"' in line for line in lines)
    assert 'ast_serve_request_seconds_count{route="a\\"\\n\\\\b"} 1' in lines
