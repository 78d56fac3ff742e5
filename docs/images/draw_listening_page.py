"""Draw the page of a server with a recording in headless Chromium. Made for the guide of the page.

.venv/bin/python docs/images/draw_listening_page.py http://127.0.0.1:8000/ RECORDING
"""
# ruff: noqa: INP001

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

SIZE = {"width": 1180, "height": 900}


def draw_page(browser: Browser, address: str, recording: Path, out: Path, seconds: int, scheme: str = "light") -> None:
    """Write the picture of the page with a recording.

    Args:
        browser: Chromium.
        address: address of the page.
        recording: file that the page shows.
        out: PNG to write.
        seconds: place of the playhead.
        scheme: `light` or `dark`.
    """
    context = browser.new_context(viewport=SIZE, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.goto(address)
    page.set_input_files("#file", recording)
    page.wait_for_selector("#listen:has(#stage[aria-busy='false']) ~ #results:not([hidden])")
    page.focus("#seek")
    for _ in range(seconds):
        page.keyboard.press("ArrowRight")
    page.evaluate("document.activeElement.blur()")
    page.screenshot(path=out, full_page=True)
    context.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="address of the page")
    parser.add_argument("recording", type=Path, help="recording")
    parser.add_argument("--seconds", type=int, default=0, help="place of the playhead")
    parser.add_argument("--scheme", default="light", choices=["light", "dark"], help="colours")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("listening-page.png"), help="PNG to write")
    arguments = parser.parse_args()
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium") or shutil.which("google-chrome"))
        draw_page(chromium, arguments.address, arguments.recording, arguments.out, arguments.seconds, arguments.scheme)
        chromium.close()
