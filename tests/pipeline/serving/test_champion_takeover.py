"""A new champion is taken over while clients ask, and other versions are loaded when a request names them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import servers
from served_app import ServedApp, encode_wav, serve_app
from served_versions import MODEL, add_versions, set_champion, upload_version

import ast_core
from ast_core.errors import UserError
from ast_core.weights.bundle import Bundle
from pipeline.serving.serve_options import ServeOptions
from pipeline.tracking.model_choice import open_model_folder

REFRESH_S = 0.2
WAVE = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path, new_store) -> str:
    return new_store(tmp_path)


@pytest.fixture
def versions(tmp_path: Path, store: str) -> list[Path]:
    return add_versions(tmp_path / "runs", store, 3)


@pytest.fixture
def server(store: str, versions: list[Path]) -> Iterator[ServedApp]:
    with serve_app(ServeOptions(f"models:/{MODEL}@champion", store, refresh_s=REFRESH_S)) as own:
        yield own


def wait_for(server: ServedApp, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in server.get("/metrics").body.decode():
        assert time.monotonic() < deadline, server.get("/metrics").body.decode()
        time.sleep(0.05)


def test_no_request_fails_while_the_champion_changes(server: ServedApp, store: str, versions: list[Path]) -> None:
    expected = {str(number): ast_core.load(folder).predict(WAVE, 16_000) for number, folder in enumerate(versions, 1)}
    content, seen, over, failed = encode_wav(WAVE), set(), threading.Event(), []

    def ask() -> None:
        while not over.is_set():
            answer = server.post("/v1/predict", content)
            version = answer.json.get("model", {}).get("version")
            right = answer.status == 200 and answer.json["results"][0]["probabilities"] == pytest.approx(
                expected[version],
                abs=2e-5,  # the file has 16 bits a sample
            )
            if not right:
                failed.append(answer.body)
            seen.add(version)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for version in (2, 3):
            set_champion(store, version)
            wait_for(server, f'version="{version}"')
    finally:
        time.sleep(0.2)
        over.set()
        for client in clients:
            client.join()
    assert failed == []
    assert seen == {"1", "2", "3"}


def test_a_broken_champion_is_reported_and_the_old_one_serves_on(
    server: ServedApp, store: str, versions: list[Path]
) -> None:
    weights = next(versions[1].glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    set_champion(store, 2)
    wait_for(server, "ast_serve_takeover_failures_total")
    answer = server.post("/v1/predict", encode_wav(WAVE))
    assert answer.status == 200
    assert answer.json["model"]["version"] == "1"
    set_champion(store, 3)
    wait_for(server, 'version="3"')


@pytest.mark.server
@pytest.mark.slow
def test_versions_that_are_downloaded_leave_nothing_behind(
    store: str, versions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with servers.object_store("127.0.0.1", tmp_path / "s3.log") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        expected = {}
        for number, folder in enumerate(versions, 4):
            expected[str(number)] = ast_core.load(folder).bundle.digest
            upload_version(folder, f"s3://{servers.BUCKET}/{number}", environment)
        monkeypatch.setattr("tempfile.tempdir", str(scratch))
        loaded = []
        load = Bundle.load
        monkeypatch.setattr(Bundle, "load", lambda folder: loaded.append(folder) or load(folder))
        set_champion(store, 4)
        with serve_app(ServeOptions(f"models:/{MODEL}@champion", store, refresh_s=REFRESH_S)) as server:
            assert list(scratch.glob("ast-model-*")) == []
            set_champion(store, 5)
            wait_for(server, 'version="5"')
            for version in ("6", "4", "5"):
                answer = server.post(f"/v1/predict?version={version}", encode_wav(WAVE))
                assert answer.json["model"] == {"name": MODEL, "version": version, "digest": expected[version]}
        assert [own.is_relative_to(scratch) for own in loaded] == [True] * 4  # 4, 5, 6, and 4 again
        assert list(scratch.iterdir()) == []


def test_a_version_that_cannot_be_loaded_leaves_nothing_behind_and_one_on_this_machine_is_not_removed(
    store: str, versions: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    files = sorted(versions[0].rglob("*"))
    with open_model_folder(f"models:/{MODEL}/1", store) as folder:
        assert folder == versions[0]
    assert sorted(versions[0].rglob("*")) == files
    with pytest.raises(UserError, match="could not be fetched"), open_model_folder(f"models:/{MODEL}/9", store):
        pass
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_request_may_name_any_version(server: ServedApp, versions: list[Path]) -> None:
    listed = server.get("/v1/model").json
    assert listed["name"] == MODEL
    assert listed["versions"] == [
        {"version": "3", "aliases": []}, {"version": "2", "aliases": []}, {"version": "1", "aliases": ["champion"]},
    ]  # fmt: skip
    for version in ("3", "2", "1", "3"):
        answer = server.post(f"/v1/predict?version={version}", encode_wav(WAVE))
        assert answer.json["model"]["version"] == version
        assert answer.json["model"]["digest"] == ast_core.load(versions[int(version) - 1]).bundle.digest
    for unknown in ("4", "0", "x", "1e0", "..%2F1"):
        answer = server.post(f"/v1/predict?version={unknown}", encode_wav(WAVE))
        assert answer.status == 404
        assert "/v1/model" in answer.json["error"]
