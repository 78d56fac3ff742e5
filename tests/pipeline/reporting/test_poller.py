"""The polling thread: it looks while the body runs, once more at the end, and hides no exception."""

from __future__ import annotations

import threading

import pytest

from pipeline.reporting.poller import Poller


def test_it_looks_while_the_body_runs_and_once_at_the_end() -> None:
    looks: list[str] = []
    twice = threading.Event()

    def look() -> None:
        looks.append(threading.current_thread().name)
        if len(looks) == 2:
            twice.set()

    with Poller(0.01, look):
        assert twice.wait(10)
    assert looks[-1] == threading.current_thread().name
    count = len(looks)
    assert set(looks[:2]) != {looks[-1]}
    assert len(looks) == count  # nothing looks after the end


def test_the_last_look_raises_in_the_callers_thread() -> None:
    def look() -> None:
        raise ValueError("the file is damaged")

    with pytest.raises(ValueError, match="damaged"), Poller(60, look):
        pass
