"""What tests of the page at `/` share: a recording dropped onto it, and what it shows then."""

from __future__ import annotations

from browser import Visit

SECONDS = 6.0
SHOWN = "#listen:has(#stage[aria-busy='false']) ~ #results:not([hidden])"
"""Selector of a recording whose events and sound are there."""
MODEL_SHOWN = "#model:has-text('labels')"
"""Selector, because the page's policy forbids to evaluate the text of a waiting function."""


def drop(own: Visit, recording: bytes, name: str = "recording.wav") -> None:
    own.drop(name, recording)
    own.page.wait_for_selector(f"{SHOWN}, #alert:not([hidden])")
    assert not own.page.is_visible("#alert"), own.text("#alert-text")


def move(own: Visit, slider: str, value: float) -> None:
    """Move a slider to a value."""
    own.page.locator(f"#{slider}").fill(str(value))


def show_time(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"
