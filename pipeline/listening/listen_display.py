"""What `listen` shows: a table that changes, lines in a file or a pipe, or JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.listening.live_session import describe_window
from pipeline.listening.local_listener import Heard

Show = Callable[[Heard], None]
_BAR = 30


@contextmanager
def open_display(labels: Sequence[str], top: int, hop_s: float, json_lines: bool) -> Iterator[Show]:
    """Yield the function that shows a result.

    Args:
        labels: names of the classes.
        top: number of classes to show.
        hop_s: seconds from one result to the next.
        json_lines: whether to write JSON.
    """
    console = Console()
    if json_lines:
        yield lambda heard: _write_json(heard, labels, top)
    elif not console.is_terminal:
        yield lambda heard: _write_line(heard, labels, top)
    else:
        with Live(Text("Listening. Ctrl-C ends."), console=console, auto_refresh=False) as live:
            yield lambda heard: live.update(draw_table(heard, labels, top, hop_s), refresh=True)


def draw_table(heard: Heard, labels: Sequence[str], top: int, hop_s: float) -> Group:
    """Return the table of a result."""
    found = describe_window(heard.window, heard.scores_C, labels, top, heard.lag_s)
    table = Table(box=None, show_header=False)
    for label, score in found["probabilities"].items():
        table.add_row(escape(label), ProgressBar(total=1, completed=score, width=_BAR), f"{score:.2f}")
    window = f"{heard.window.start_s:.1f} to {heard.window.end_s:.1f} s"
    return Group(table, Text(f"{window}, every {hop_s:g} s, lag {heard.lag_s:.2f} s. Ctrl-C ends.", style="dim"))


def _write_line(heard: Heard, labels: Sequence[str], top: int) -> None:
    found = describe_window(heard.window, heard.scores_C, labels, top, heard.lag_s)
    scores = ", ".join(f"{label} {score:.2f}" for label, score in found["probabilities"].items())
    _write(f"{heard.window.start_s:8.2f} to {heard.window.end_s:8.2f} s  lag {heard.lag_s:.2f} s  {scores}")


def _write_json(heard: Heard, labels: Sequence[str], top: int) -> None:
    _write(json.dumps(describe_window(heard.window, heard.scores_C, labels, top, heard.lag_s), ensure_ascii=False))


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
