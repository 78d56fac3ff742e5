"""The page at `/` in headless Chromium, with the real application and a small model."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import runpy
from pathlib import Path

import bundles
import numpy as np
import pytest
from browser import Visit, visit
from listening_page import MODEL_SHOWN, SECONDS, SHOWN, drop, move, show_time
from matplotlib.image import imread
from playwright.sync_api import Browser, Route
from served_app import ServedApp, encode_wav, serve_app

from ast_core.evaluation.audio_tagger import Timeline
from ast_core.weights.bundle import Bundle
from ast_core.weights.decisions import Decisions
from pipeline.serving.answers import describe_timeline
from pipeline.serving.serve_options import ServeOptions

pytestmark = pytest.mark.slow  # a browser
IMAGES = Path(__file__).resolve().parents[3] / "docs" / "images"
TOKEN = "a-token-of-the-tests"
NEAR = 1e-6
FIND_EVENTS = """async (cases) => {
    const { findEvents, prepare } = await import("./page/events.js");
    return cases.map(([timeline, rule]) => findEvents(prepare(timeline), rule));
}"""
WATCH_CHOOSER = """() => document.getElementById("file").addEventListener("click", (event) => {
    event.preventDefault();
    document.body.dataset.asked = "";
})"""
"""Mark the page when it asks for a file, without opening the dialog."""
UNNAMED = """() => [...document.querySelectorAll("button, input, select, summary")]
    .filter((own) => own.offsetParent && !own.textContent.trim() && !own.labels?.length && !own.ariaLabel)
    .map((own) => own.outerHTML)"""


def test_dropped_file_shows_the_events_of_the_python_api(own: Visit, recording: bytes, timeline: Timeline) -> None:
    drop(own, recording)
    threshold = round(float(np.median(timeline.probabilities)), 2)
    move(own, "threshold", threshold)
    move(own, "release", 1)
    expected = timeline.events(threshold, release=1)
    assert len(expected) > 1
    assert [row[:1] + row[3:] for row in own.rows()] == [
        [event.label, f"{event.end_s - event.start_s:.2f}", f"{event.peak:.2f}"] for event in expected
    ]
    assert own.text("#events-count").startswith(f"{len(expected)} events")
    assert own.text("#listen-title") == "recording.wav"
    assert own.page.locator("#lanes canvas").count() == len(timeline.labels)
    assert own.page.evaluate("document.getElementById('spectrogram').toDataURL().length") > 5000  # it is drawn


def test_files_of_the_page_are_strict_and_never_stale(server: ServedApp) -> None:
    page = server.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(rb"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", page.body)
    for answer in (page, server.get("/page/page.js"), server.get("/page/page.css")):
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-cache")
    again = server.get("/page/page.js", {"If-None-Match": server.get("/page/page.js").headers["etag"]})
    assert (again.status, again.headers["cache-control"]) == (304, "no-cache")
    assert server.get("/page/..%2fapplication.py").status == 404


def test_sliders_change_the_events_without_a_request(own: Visit, recording: bytes, timeline: Timeline) -> None:
    drop(own, recording)
    names = ("threshold", "release", "shortest", "gap", "overlap")
    low, middle, high = (round(float(own), 2) for own in np.quantile(timeline.probabilities, [0.2, 0.5, 0.8]))
    counts = set()
    for values in [(low, 0.5, 0, 0, 0), (middle, 1, 0, 0, 0), (high, 1, 0.2, 0, 0.3), (middle, 1, 0, 1, 0)]:
        for slider, value in zip(names, values, strict=True):
            move(own, slider, value)
        threshold, release, shortest, gap, overlap = values
        expected = timeline.events(threshold, release=release, min_s=shortest, gap_s=gap, overlap=overlap)
        assert [row[0] for row in own.rows()] == [event.label for event in expected]
        counts.add(len(expected))
    assert len(counts) > 2
    assert own.asked("/v1/events") == 1
    move(own, "threshold", 0.99)
    assert own.rows() == []
    assert own.page.is_visible("#no-events")


def test_rule_of_the_page_is_that_of_the_package(own: Visit) -> None:
    rng = np.random.default_rng(1)
    cases, expected = [], []
    for _ in range(150):
        window_s, hop_s, length_s = rng.uniform(0.3, 3), rng.uniform(0.1, 0.3), rng.uniform(0.2, 9)
        starts_s = np.arange(-window_s + 0.025, length_s - 0.02, hop_s)
        ends_s = np.minimum(starts_s + window_s, length_s)
        scores_WC = np.round(rng.uniform(0, 1, (len(starts_s), 2)) ** rng.uniform(0.5, 3), 1).astype(np.float32)
        rule = [round(float(rng.uniform(0.1, 0.9)), 1), float(rng.choice([0.5, 1])), *rng.choice([0, 0.3], 3).tolist()]
        thresholds = tuple(np.round(rng.uniform(0.1, 0.9, 2), 1).tolist())
        decisions = Decisions("d", {}, False, (1.0, 1.0), (0.0, 0.0), thresholds)
        own_timeline = Timeline(starts_s, ends_s, scores_WC, ("b", "a"), float(window_s), decisions)
        threshold = None if rng.uniform() < 0.5 else rule[0]
        found = own_timeline.events(threshold, release=rule[1], min_s=rule[2], gap_s=rule[3], overlap=rule[4])
        expected.append([(event.label, event.start_s, event.end_s, event.peak) for event in found])
        names = dict(zip(("threshold", "release", "minS", "gapS", "overlap"), (threshold, *rule[1:]), strict=True))
        cases.append([describe_timeline(own_timeline), names])
    answers = own.page.evaluate(FIND_EVENTS, cases)
    assert sum(map(len, expected)) > 300
    for answer, wanted in zip(answers, expected, strict=True):
        assert [event["label"] for event in answer] == [label for label, *_ in wanted]
        values = [[event[name] for name in ("start_s", "end_s", "peak")] for event in answer]
        assert np.allclose(np.array(values).ravel(), [number for _, *row in wanted for number in row], atol=NEAR)


def test_page_is_used_by_keyboard(own: Visit, recording: bytes) -> None:
    page = own.page
    focused = []
    while "choose" not in focused and len(focused) < 9:
        page.keyboard.press("Tab")
        focused.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert focused[0] == "Skip to the recording"
    assert focused[-2:] == ["Token", "choose"]
    page.evaluate(WATCH_CHOOSER)
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-asked]")
    page.set_input_files("#file", {"name": "own.wav", "mimeType": "audio/wav", "buffer": recording})
    page.wait_for_selector(SHOWN)
    page.focus("#seek")
    for key, seconds in [("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", SECONDS), ("Home", 0)]:
        page.keyboard.press(key)
        assert float(page.get_attribute("#seek", "aria-valuenow") or "") == pytest.approx(seconds, abs=0.06)
    page.keyboard.press("Space")
    page.wait_for_selector("#play[aria-label='Pause']")
    page.wait_for_selector("#seek:not([aria-valuenow='0.0'])")
    page.keyboard.press("Space")
    page.wait_for_selector("#play[aria-label='Play']")
    page.locator("#events .jump").first.focus()
    page.keyboard.press("Enter")
    assert own.text("#now") == own.rows()[0][1]
    assert page.locator("#events tr.sounding").count() > 0
    drawn = page.evaluate("document.getElementById('waveform').toDataURL()")
    page.keyboard.press("+")
    assert page.evaluate("document.getElementById('waveform').toDataURL()") != drawn
    page.keyboard.press("0")
    assert page.evaluate("document.getElementById('waveform').toDataURL()") == drawn
    assert page.evaluate(UNNAMED) == []


def test_click_jumps_and_a_longer_hop_asks_again(own: Visit, recording: bytes) -> None:
    drop(own, recording)
    box = own.page.locator("#seek").bounding_box()
    assert box is not None
    own.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 40)
    assert own.text("#now") == show_time(SECONDS / 2)
    with own.page.expect_response(lambda answer: "hop_s=0.25" in answer.url):
        own.page.select_option("#hop", "0.25")
    assert own.text("#now") == show_time(SECONDS / 2)


def test_events_are_downloaded_as_csv_and_json(own: Visit, recording: bytes) -> None:
    drop(own, recording, 'dawn, "loud".wav')
    shown = own.rows()
    contents = {}
    for kind in ("csv", "json"):
        with own.page.expect_download() as saved:
            own.page.click(f"#{kind}")
        assert saved.value.suggested_filename.endswith(f"-events.{kind}")
        contents[kind] = saved.value.path().read_text()
    table = list(csv.DictReader(io.StringIO(contents["csv"])))
    assert [row["label"] for row in table] == [row[0] for row in shown]
    assert {row["path"] for row in table} == {'dawn, "loud".wav'}
    found = json.loads(contents["json"])
    assert [(event["label"], f"{event['peak']:.2f}") for event in found["events"]] == [
        (row[0], row[4]) for row in shown
    ]
    assert found["rule"]["threshold"] == 0.5
    assert re.fullmatch(r"[0-9a-f]{64}", found["model"]["digest"])


def test_format_that_only_the_server_decodes_still_shows_events(own: Visit, recording: bytes) -> None:
    samples_N = np.frombuffer(recording[44:], "<i2").astype(np.float32) / 32768
    drop(own, encode_wav(samples_N, file_format="AIFF"), "recording.aiff")
    assert own.rows()
    assert own.page.is_visible("#unplayable")
    assert not own.page.is_visible("#waveform")
    assert own.text("#length") == f"of {show_time(SECONDS)}"


def test_errors_of_the_server_are_readable(browser: Browser, server: ServedApp, recording: bytes) -> None:
    with visit(browser, f"http://127.0.0.1:{server.port}") as own:
        own.page.wait_for_selector(MODEL_SHOWN)
        own.drop("broken.wav", b"no audio at all")
        own.page.wait_for_selector("#alert:not([hidden])")
        assert own.text("#alert-text").startswith("The recording cannot be used: decode: ")
        assert not own.page.is_visible("#retry")
        own.drop("large.wav", bytes(1_200_000))
        own.page.wait_for_selector("#alert-text:has-text('MiB')")

        def refuse(route: Route) -> None:
            route.fulfill(
                status=503, json={"error": "The server has 9 requests already."}, headers={"Retry-After": "7"}
            )

        own.page.route("**/v1/events*", refuse)
        own.drop("recording.wav", recording)
        own.page.wait_for_selector("#retry:visible")
        assert own.text("#alert-text") == "The server has 9 requests already. Try again in 7 s."
        own.page.unroute("**/v1/events*")
        own.page.click("#retry")
        own.page.wait_for_selector("#events tr")
        assert not own.page.is_visible("#alert")
        own.page.route("**/v1/events*", lambda route: route.abort())
        own.drop("recording.wav", recording)
        own.page.wait_for_selector("#retry:visible")
        assert own.text("#alert-text").startswith("The server does not answer.")


def test_token_is_asked_for_and_kept_in_the_tab(
    browser: Browser, folder: Path, recording: bytes, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"tests {TOKEN}\n")
    tokens.chmod(0o600)
    with (
        serve_app(ServeOptions(str(folder), tokens=str(tokens))) as server,
        visit(browser, f"http://127.0.0.1:{server.port}") as own,
    ):
        own.page.wait_for_selector("#token:focus")
        assert own.text("#alert-text") == "This server wants a token. Enter it above."
        own.page.keyboard.type("wrong")
        own.page.keyboard.press("Enter")
        own.page.wait_for_selector("#alert-text:has-text('does not know')")
        own.page.fill("#token", TOKEN)
        own.page.keyboard.press("Enter")
        own.page.wait_for_selector(MODEL_SHOWN)
        drop(own, recording)
        assert own.rows()
        assert own.page.evaluate("[JSON.stringify(sessionStorage), localStorage.length, document.cookie]") == [
            json.dumps({"ast-token": TOKEN}, separators=(",", ":")), 0, "",
        ]  # fmt: skip
        own.page.click("#microphone")
        own.page.wait_for_selector("#length:has-text('after the sound')")
        own.page.click("#microphone")
        own.page.wait_for_selector("#results:not([hidden])")
        assert not own.page.is_visible("#alert")
        assert not any(TOKEN in address for address in own.requests)


def test_file_that_is_dropped_before_the_model_is_known_waits_for_it(
    browser: Browser, server: ServedApp, recording: bytes
) -> None:
    held: list[Route] = []
    with visit(browser, "about:blank") as own:
        own.page.route("**/v1/model*", lambda route: [held.append(route)])
        own.page.goto(f"http://127.0.0.1:{server.port}")
        own.drop("recording.wav", recording)
        own.page.wait_for_selector("#stage[aria-busy='true']")
        assert own.asked("/v1/events") == 0
        held.pop().continue_()
        own.page.wait_for_selector(SHOWN)
        assert "hop_s=0.1&" in next(address for address in own.requests if "/v1/events" in address)
        assert own.complaints == []


def test_calibrated_model_has_its_thresholds_and_sliders_need_no_request(
    browser: Browser, folder: Path, recording: bytes, timeline: Timeline, tmp_path: Path
) -> None:
    calibrated = bundles.calibrate_copy(folder, tmp_path / "calibrated")
    decisions = Bundle.load(calibrated).decisions
    assert decisions is not None
    own_timeline = dataclasses.replace(timeline, decisions=decisions)
    with (
        serve_app(ServeOptions(str(calibrated))) as server,
        visit(browser, f"http://127.0.0.1:{server.port}") as own,
    ):
        own.page.wait_for_selector(MODEL_SHOWN)
        drop(own, recording)
        assert own.page.is_disabled("#threshold")
        names = own.page.eval_on_selector_all("#lanes canvas", "all => all.map((own) => own.ariaLabel)")
        shown = {name.split(": ")[0]: re.findall(r"threshold (\d\.\d\d)", name) for name in names}
        assert shown == {
            label: [f"{own:.2f}"] for label, own in zip(timeline.labels, decisions.threshold_C, strict=True)
        }
        assert len(set(decisions.threshold_C)) == len(timeline.labels)
        move(own, "release", 1)
        rows = [[f"{event.end_s - event.start_s:.2f}", f"{event.peak:.2f}"] for event in own_timeline.events(release=1)]
        assert rows
        assert [row[3:] for row in own.rows()] == rows
        own.page.uncheck("#own")
        middle = round(float(np.median(decisions.calibrated(timeline.probabilities))), 2)
        move(own, "threshold", middle)
        rows = [
            [event.label, f"{event.end_s - event.start_s:.2f}", f"{event.peak:.2f}"]
            for event in own_timeline.events(middle, release=1)
        ]
        assert len(rows) > 1
        assert [row[:1] + row[3:] for row in own.rows()] == rows
        assert own.asked("/v1/events") == 1
        assert own.complaints == []


def test_picture_of_the_guide_is_drawn_from_any_server(
    browser: Browser, server: ServedApp, recording: bytes, tmp_path: Path
) -> None:
    script = runpy.run_path(str(IMAGES / "draw_listening_page.py"))
    (tmp_path / "recording.wav").write_bytes(recording)
    out = tmp_path / "page.png"
    script["draw_page"](browser, f"http://127.0.0.1:{server.port}", tmp_path / "recording.wav", out, 2)
    assert imread(out).shape[1:] == imread(IMAGES / "listening-page.png").shape[1:]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_fits_the_screen_and_the_theme(
    browser: Browser, server: ServedApp, recording: bytes, scheme: str, width: int
) -> None:
    settings = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}, "reduced_motion": "reduce"}
    with visit(browser, f"http://127.0.0.1:{server.port}", **settings) as own:
        own.drop_all({f"{'a-long-name-' * 9}.wav": recording, "second.wav": recording})
        own.page.wait_for_selector(SHOWN)
        assert own.page.is_visible("#files-card")
        assert own.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        ground = own.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) < 380) == (scheme == "dark")
        own.page.evaluate("document.getElementById('busy').hidden = false")
        assert own.page.evaluate("getComputedStyle(document.querySelector('.bar')).animationName") == "none"
        assert own.complaints == []
