"""A small model, its server, and its page in headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bundles
import numpy as np
import pytest
from browser import Visit, open_browser, visit
from listening_page import MODEL_SHOWN, SECONDS
from playwright.sync_api import Browser
from served_app import ServedApp, encode_wav, serve_app

import ast_core
from ast_core.evaluation.audio_tagger import Timeline
from pipeline.serving.serve_options import ServeOptions


@pytest.fixture(scope="module")
def recording() -> bytes:
    """Noise whose loudness changes, so that windows differ."""
    rng = np.random.default_rng(0)
    parts = int(SECONDS * 4)
    wave_N = rng.normal(0, 0.1, parts * 4000) * np.repeat(rng.uniform(0, 2, parts), 4000)
    return encode_wav(wave_N.astype(np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    bundles.write_run(run)
    return run / "bundles" / "ensemble"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServedApp]:
    with serve_app(ServeOptions(str(folder), max_seconds=30, max_request_mib=1)) as own:
        yield own


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, recording: bytes) -> Iterator[Browser]:
    sound = tmp_path_factory.mktemp("sound") / "microphone.wav"
    sound.write_bytes(recording)
    with open_browser(sound) as own:
        yield own


@pytest.fixture
def own(browser: Browser, server: ServedApp) -> Iterator[Visit]:
    """Open the page. At its end it must not have asked another host, and no script may have failed."""
    address = f"http://127.0.0.1:{server.port}"
    with visit(browser, address) as found:
        found.page.wait_for_selector(MODEL_SHOWN)
        yield found
        assert found.hosts() == {address}
        assert found.complaints == []


@pytest.fixture(scope="module")
def timeline(folder: Path, recording: bytes, tmp_path_factory: pytest.TempPathFactory) -> Timeline:
    path = tmp_path_factory.mktemp("audio") / "recording.wav"
    path.write_bytes(recording)
    return ast_core.load(folder, device="cpu").timeline(str(path), hop_s=0.1, edges=True)
