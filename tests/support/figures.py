"""Figures that the tests of promises measure, printed at the end; they travel with the reports of the tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

FIGURE = "figure"
"""Name of the property of a test report that holds a row of docs/concepts/reliability.md and its figures."""
Measured = Callable[..., None]


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Return `measured("R1", kills=20)`, which prints figures at the end, the only ones of the reliability page."""

    def note(row: str, **figures: object) -> None:
        shown = ", ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in figures.items())
        request.node.user_properties.append((FIGURE, f"{row:>4}  {request.node.name}: {shown}"))

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures by row."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    lines = [
        text
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, text in report.user_properties
        if name == FIGURE
    ]
    if lines:
        form = "long" if config.getoption("--long") else "short"
        seed = config.getoption("--fault-seed")
        terminalreporter.section(f"what was measured: the {form} form, --fault-seed {seed}")
    for line in sorted(lines, key=lambda line: _row_order(line.split()[0])):
        terminalreporter.line(line)


def _row_order(row: str) -> tuple[str, int, str]:
    return row[:1], int(row[1:]) if row[1:].isdecimal() else 0, row


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
