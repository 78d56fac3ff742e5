"""The page of the report in headless Chromium: its players play, and it fits screens and themes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Visit, open_browser, visit
from conftest import NewStore
from playwright.sync_api import Browser
from prepared import write_shards
from tones import write_tone

from pipeline.cli.stages import DataConfig, EvaluateSettings, ReportSettings
from pipeline.evaluate import evaluate
from pipeline.report import report

pytestmark = pytest.mark.slow  # a browser
CLIPS = 9
PLAYS = "number => document.querySelectorAll('#hard audio')[number].currentTime > 0.02"
PAUSED = "number => document.querySelectorAll('#hard audio')[number].paused"
CUT_OFF = """() => [...document.querySelectorAll(".card, .card *")].filter((own) => {
    const section = own.closest("section").getBoundingClientRect();
    return own.getBoundingClientRect().right > section.right;
}).length"""
"""Number of elements of cards that reach out of their section."""
SHADE = """([selector, name]) => {
    for (let own = document.querySelector(selector); own; own = own.parentElement) {
        const [red, green, blue, alpha = 1] = getComputedStyle(own)[name].match(/[\\d.]+/g).map(Number);
        if (alpha > 0) return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255;
    }
}"""
"""Brightness from 0 to 1 of an element's text or ground; a transparent one has that of its parent."""


@pytest.fixture
def page(tmp_path: Path, trained_bundle: Path, new_store: NewStore, without_ray) -> Path:
    """Write the report of an evaluated run with recordings."""
    store = new_store(tmp_path)
    write_shards(tmp_path / "shards", {"train": 6, "test": CLIPS})
    rows = [f"{write_tone(tmp_path / 'data' / f'{n}.wav', n % 3, n, 2).name},a,test-{n},test" for n in range(CLIPS)]
    source = tmp_path / "data" / "list.csv"
    source.write_text("\n".join(["path,labels,clip_id,split", *rows]) + "\n")
    values = {"run_dir": tmp_path, "shards": tmp_path / "shards", "experiment": "test", "workers": 1, "tracking": store}
    evaluate(EvaluateSettings(**values, data=DataConfig(source="clips")))
    return report(ReportSettings(**values, data=DataConfig(source=str(source))))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    sound = write_tone(tmp_path_factory.mktemp("sound") / "microphone.wav", 0, 0)
    with open_browser(sound) as own:
        yield own


def assert_alone(own: Visit) -> None:
    """Fail if the page asked anything besides itself, or if a script failed."""
    assert own.hosts() <= {"file://", "data://"}
    assert own.complaints == []


def test_a_press_of_the_space_bar_plays_one_of_the_hardest_clips(browser: Browser, page: Path) -> None:
    with visit(browser, page.as_uri()) as own:
        players = own.page.locator("#hard audio")
        assert players.count() == len(re.findall(r'alt="log-mel of test-\d"', page.read_text())) == 8
        for number in (0, 1):
            players.nth(number).evaluate("player => { player.playbackRate = 0.1; }")  # clips of less than a second
            players.nth(number).focus()
            own.page.keyboard.press("Space")
            own.page.wait_for_function(PLAYS, arg=number)
            assert not own.page.evaluate(PAUSED, number)
        assert own.page.evaluate(PAUSED, 0)  # one clip at a time
        own.page.keyboard.press("Space")
        own.page.wait_for_function(PAUSED, arg=1)
        assert_alone(own)


def test_page_fits_the_screen_and_the_theme(browser: Browser, page: Path) -> None:
    for scheme in ("light", "dark"):
        for width in (360, 1280):
            with visit(browser, page.as_uri(), color_scheme=scheme, viewport={"width": width, "height": 800}) as own:
                assert own.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
                assert own.page.evaluate(CUT_OFF) == 0
                for selector in ("body", "section", "th", ".card"):
                    ground, ink = (own.page.evaluate(SHADE, [selector, name]) for name in ("backgroundColor", "color"))
                    assert (ground < 0.5) == (ink > 0.5) == (scheme == "dark"), (scheme, selector, ground, ink)
                assert_alone(own)
