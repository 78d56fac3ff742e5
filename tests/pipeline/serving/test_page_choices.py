"""What a user chooses on the page: one of several recordings, and a version of the model."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from browser import Visit, visit
from listening_page import MODEL_SHOWN, SHOWN, drop, move
from playwright.sync_api import Browser
from served_app import ServedApp, encode_wav, serve_app
from served_versions import MODEL, add_versions

import ast_core
from ast_core.evaluation.audio_tagger import Timeline
from pipeline.serving.serve_options import ServeOptions

pytestmark = pytest.mark.slow  # a browser
CHOSEN = "#files button[aria-current]"


def show_events(timeline: Timeline, threshold: float) -> list[list[str]]:
    """Return label, length and peak of each event as the page shows them."""
    found = timeline.events(threshold, release=1)
    return [[own.label, f"{own.end_s - own.start_s:.2f}", f"{own.peak:.2f}"] for own in found]


def shown_events(own: Visit) -> list[list[str]]:
    return [row[:1] + row[3:] for row in own.rows()]


def test_several_recordings_are_a_list_and_each_is_asked_when_it_is_chosen(own: Visit, recording: bytes) -> None:
    page = own.page
    short = encode_wav(np.zeros(24_000, np.float32))
    own.drop_all({"morning.wav": recording, "<b>noise</b>.wav": short, "broken.wav": b"no audio"})
    page.wait_for_selector(SHOWN)
    names = ["morning.wav", "<b>noise</b>.wav", "broken.wav"]
    assert page.locator("#files button").all_inner_texts() == names
    assert own.text("#files-count") == "3 recordings"
    assert (own.text(CHOSEN), own.text("#listen-title")) == ("morning.wav", "morning.wav")
    assert own.asked("/v1/events") == 1
    page.focus(CHOSEN)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#length:has-text('of 0:01.5')")
    page.wait_for_selector(SHOWN)
    assert (own.text(CHOSEN), own.text("#listen-title")) == (names[1], names[1])
    assert page.evaluate("document.activeElement.textContent") == names[1]
    with page.expect_download() as saved:
        page.click("#csv")
    assert saved.value.suggested_filename.endswith("noise__b_-events.csv")
    page.click("#files button:has-text('morning')")
    page.wait_for_selector("#length:has-text('of 0:06.0')")
    page.wait_for_selector(SHOWN)
    with page.expect_download() as saved:
        page.click("#csv")
    table = list(csv.DictReader(io.StringIO(saved.value.path().read_text())))
    assert [row["path"] for row in table] == ["morning.wav"] * len(own.rows())
    assert table
    assert own.asked("/v1/events") == 3


def test_recording_that_cannot_be_used_leaves_the_others_to_choose(
    browser: Browser, server: ServedApp, recording: bytes
) -> None:
    with visit(browser, f"http://127.0.0.1:{server.port}") as own:
        own.page.wait_for_selector(MODEL_SHOWN)
        own.drop_all({"broken.wav": b"no audio", "whole.wav": recording})
        own.page.wait_for_selector("#alert-text:has-text('The recording cannot be used')")
        own.page.click("#files button:has-text('whole')")
        own.page.wait_for_selector(SHOWN)
        assert not own.page.is_visible("#alert")


def test_recordings_that_come_later_and_the_microphone_join_the_list(own: Visit, recording: bytes) -> None:
    drop(own, recording)
    assert not own.page.is_visible("#files-card")
    own.drop("second.wav", recording)
    own.page.wait_for_selector("#files-card:visible")
    assert own.text(CHOSEN) == "second.wav"
    own.page.wait_for_selector(SHOWN)
    own.page.click("#microphone")
    own.page.wait_for_selector("#length:has-text('after the sound')")
    assert own.page.locator(CHOSEN).count() == 0
    own.page.click("#microphone")
    own.page.wait_for_selector(SHOWN)
    assert own.text(CHOSEN).startswith("microphone-")
    assert own.page.locator("#files button").count() == 3


def test_versions_of_a_registry_are_listed_and_the_chosen_one_answers(
    browser: Browser, recording: bytes, tmp_path: Path, new_store
) -> None:
    store = new_store(tmp_path)
    folders = add_versions(tmp_path / "runs", store, 2)
    (tmp_path / "recording.wav").write_bytes(recording)
    first, second = (
        ast_core.load(folder, device="cpu").timeline(str(tmp_path / "recording.wav"), hop_s=0.1, edges=True)
        for folder in folders
    )
    middle = round(float(np.median(np.stack([first.probabilities, second.probabilities]))), 2)
    assert show_events(first, middle) != show_events(second, middle)
    with (
        serve_app(ServeOptions(f"models:/{MODEL}@champion", store)) as server,
        visit(browser, f"http://127.0.0.1:{server.port}") as own,
    ):
        own.page.wait_for_selector("#version-field:visible")
        names = ["as served (1 · champion)", "2", "1 · champion"]
        assert own.page.locator("#version option").all_inner_texts() == names
        drop(own, recording)
        move(own, "threshold", middle)
        move(own, "release", 1)
        assert shown_events(own) == show_events(first, middle)
        for choice, timeline, version in [("2", second, "2"), ("1", first, "1"), ("", first, "1")]:
            with own.page.expect_response(lambda answer: "/v1/events" in answer.url) as answered:
                own.page.select_option("#version", choice)
            assert answered.value.json()["model"]["version"] == version
            own.page.wait_for_selector("#busy", state="hidden")
            assert own.text("#model") == f"{MODEL} {version} · 3 labels"
            assert shown_events(own) == show_events(timeline, middle)
        assert own.complaints == []
