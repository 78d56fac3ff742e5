"""Headless Chromium for tests of pages."""

from __future__ import annotations

import base64
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Names of Chromium's program."""
ELSEWHERE = "elsewhere.test"
"""Name of a host that is this machine, but not loopback to a browser."""
DROP = """(files) => {
    const dataTransfer = new DataTransfer();
    for (const [name, content] of files) {
        dataTransfer.items.add(new File([Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0))], name));
    }
    for (const kind of ["dragenter", "dragover", "drop"]) {
        document.body.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
    }
}"""
"""Drop files onto the page, as a file manager does."""


@dataclass
class Visit:
    """A page that is open, and what it did."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Addresses that the page asked for."""
    complaints: list[str] = field(default_factory=list)
    """Errors of its scripts, and what the browser refused to load."""

    def hosts(self) -> set[str]:
        """Return the schemes and hosts that the page asked."""
        parts = [urlsplit(own.removeprefix("blob:")) for own in self.requests]
        return {f"{own.scheme}://{own.netloc}" for own in parts}

    def asked(self, route: str) -> int:
        """Return how often the page asked for a route."""
        return sum(urlsplit(own).path == route for own in self.requests)

    def drop(self, name: str, content: bytes) -> None:
        """Drop a file onto the page."""
        self.drop_all({name: content})

    def drop_all(self, files: dict[str, bytes]) -> None:
        """Drop files with their names onto the page, all at once."""
        self.page.evaluate(DROP, [[name, base64.b64encode(content).decode()] for name, content in files.items()])

    def text(self, selector: str) -> str:
        """Return the text of an element."""
        return self.page.inner_text(selector)

    def rows(self) -> list[list[str]]:
        """Return the text of the cells of the list of events."""
        rows: list[list[str]] = self.page.eval_on_selector_all(
            "#events tr", "rows => rows.map((row) => [...row.children].map((cell) => cell.textContent))"
        )
        return rows


@contextlib.contextmanager
def open_browser(sound: Path) -> Iterator[Browser]:
    """Run Chromium, with a file as its microphone; the test is skipped where there is no Chromium.

    Args:
        sound: WAV that the microphone plays again and again.
    """
    program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"this machine has none of {', '.join(PROGRAMS)}")
    flags = [
        "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--mute-audio",
        f"--use-file-for-fake-audio-capture={sound}", f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1",
    ]  # fmt: skip
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=flags)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def visit(browser: Browser, address: str, **settings: Any) -> Iterator[Visit]:
    """Open a page in a context of its own.

    Args:
        browser: what `open_browser` yields.
        address: address of the page.
        settings: settings of the context, such as its colour scheme.
    """
    context = browser.new_context(**settings)
    context.set_default_timeout(60_000)
    own = Visit(context.new_page())
    own.page.on("request", lambda request: own.requests.append(request.url))
    own.page.on("websocket", lambda socket: own.requests.append(socket.url.replace("ws://", "http://")))
    own.page.on("pageerror", lambda error: own.complaints.append(str(error)))
    own.page.on("console", lambda line: own.complaints.append(line.text) if line.type == "error" else None)
    try:
        own.page.goto(address)
        yield own
    finally:
        context.close()
