"""Models by name against a stand-in of the hub: what is downloaded, from which commit, and what each fault says."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from local_hub import MODEL, NAME, LocalHub, Repository, write_model
from prepared import BINS, FRAMES, LABELS

import ast_core
from ast_core.config import AUDIOSET_MEAN
from ast_core.errors import DamagedError, UserError
from ast_core.model.transformer import AST
from ast_core.storage.atomic_files import sha256_of
from ast_core.weights.hub.hub_address import parse_hub_address
from ast_core.weights.hub.hub_files import HubModel, fetch_hub_model
from ast_core.weights.pretrained import initialise

FILES = {"config.json", "preprocessor_config.json", "model.safetensors"}
WAVE_N = np.sin(np.arange(8_000) / 9).astype(np.float32)
LOAD = """
import json, sys
import numpy as np
import ast_core
model = ast_core.load(sys.argv[1], device="cpu")
print(json.dumps(model.predict(np.sin(np.arange(8_000) / 9).astype(np.float32), 16_000)))
"""


@pytest.fixture
def repository(hub: LocalHub, tmp_path: Path) -> Repository:
    own = hub.add()
    own.commit_folder(write_model(tmp_path / "model"))
    return own


def fetch(address: str = f"hf:{NAME}") -> HubModel:
    return fetch_hub_model(parse_hub_address(address))


def say_why(address: str = f"hf:{NAME}") -> str:
    """Return the error of a download, which must be sentences without the client's own lines."""
    with pytest.raises(UserError) as caught:
        fetch(address)
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


def test_a_model_is_loaded_by_its_name_without_code_and_pickles(
    hub: LocalHub, repository: Repository, tmp_path: Path
) -> None:
    model = ast_core.load(f"hf:{NAME}", device="cpu")
    assert model.predict(WAVE_N, 16_000) == ast_core.load(tmp_path / "model", device="cpu").predict(WAVE_N, 16_000)
    asked = [request for request in hub.requests if "/resolve/" in request or "/weights/" in request]
    assert {request.rpartition("/")[2] for request in asked} == FILES
    assert {path.name for path in (tmp_path / "home").rglob("snapshots/*/*")} == FILES
    with pytest.raises(UserError, match="has labels of its own"):
        ast_core.load(f"hf:{NAME}", labels=["a", "b", "c"])


def test_the_model_names_its_commit_and_the_hashes_of_its_files(repository: Repository, tmp_path: Path) -> None:
    found = fetch()
    assert str(found.address) == f"hf:{NAME}@{repository.branches['main']}"
    assert found.sha256 == {name: sha256_of(tmp_path / "model" / name) for name in FILES}


def test_a_revision_is_a_branch_a_tag_or_a_commit(repository: Repository, tmp_path: Path) -> None:
    first = repository.branches["main"]
    second = repository.commit_folder(write_model(tmp_path / "other", seed=1), "refs/pr/1")
    assert fetch(f"hf:{NAME}@refs/pr/1").address.revision == second
    assert fetch(f"hf:{NAME}@{first}").address.revision == fetch().address.revision == first
    said = say_why(f"hf:{NAME}@v9")
    assert said.startswith(f"{NAME} has no revision 'v9' on the hub. Give a branch, a tag or a commit of https://")


def test_a_branch_that_moved_is_followed_and_a_commit_stays(
    hub: LocalHub, repository: Repository, tmp_path: Path
) -> None:
    before = fetch()
    moved = repository.commit_folder(write_model(tmp_path / "other", seed=1))
    assert fetch().address.revision == moved
    del hub.requests[:]
    assert fetch(str(before.address)) == before
    assert hub.requests == []  # the cache has it


def test_without_a_network_the_cache_serves_what_it_has(
    hub: LocalHub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fetch()
    hub.fault = "is down"
    assert fetch() == before
    hub.stop()
    assert fetch() == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch() == before


def test_without_a_network_and_cache_the_error_says_which_files_to_put_where(
    hub: LocalHub, repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where = [
        f"copy config.json, preprocessor_config.json and model.safetensors from https://huggingface.co/{NAME}",
        "give that folder instead of the name",
        str(tmp_path / "home" / "hub" / "models--tests--small-ast"),
    ]
    hub.fault = "is down"
    said = {"503": say_why()}
    hub.stop()
    said["ConnectError"] = say_why()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said["HF_HUB_OFFLINE"] = say_why()
    for reason, text in said.items():
        assert all(part in text for part in [*where, reason]), text


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ((404, "RepoNotFound"), "does not exist on the hub, or is private. Check the name on https://huggingface.co/"),
        ((401, "RepoNotFound"), "does not exist on the hub, or is private"),
        ((401, ""), f"The hub refused access to hf:{NAME} (401). Check the name on https://huggingface.co/{NAME}, or"),
        ((401, "GatedRepo"), f"is gated: ask for access on https://huggingface.co/{NAME}, set HF_TOKEN"),
        ((403, "GatedRepo"), "is gated: ask for access"),
        ((403, ""), "(403). Check the name on https://huggingface.co/tests/small-ast, or set HF_TOKEN"),
    ],
)
def test_a_refusal_says_how_to_get_access(repository: Repository, refusal: tuple[int, str], message: str) -> None:
    repository.refusal = refusal
    assert message in say_why()


def test_a_missing_repository_is_named(hub: LocalHub) -> None:
    assert say_why("hf:tests/nothing").startswith("hf:tests/nothing does not exist on the hub, or is private.")


def test_a_token_is_not_sent_to_the_host_of_the_weights(
    hub: LocalHub, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch()
    assert hub.downloads("model.safetensors") == 1
    assert hub.tokens == []


def test_a_repository_of_pickles_is_refused_with_the_way_to_convert_it(hub: LocalHub, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    hub.add().commit_folder(folder)
    assert f'from_pretrained("{NAME}").save_pretrained("FOLDER"), and give FOLDER' in say_why()
    assert hub.downloads("pytorch_model.bin") == 0
    (folder / "config.json").unlink()
    hub.add().commit_folder(folder)
    assert "has no config.json, so it is no model of transformers" in say_why()


def test_a_model_without_a_preprocessor_has_the_settings_of_audioset_even_offline(
    hub: LocalHub, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    hub.add().commit_folder(folder)
    model = ast_core.load(f"hf:{NAME}", device="cpu")
    assert model.bundle.members[0].mean == AUDIOSET_MEAN
    hub.stop()
    assert set(fetch().sha256) == FILES - {"preprocessor_config.json"}


def test_a_download_that_ends_once_in_the_middle_is_continued(hub: LocalHub, repository: Repository) -> None:
    hub.fault = "cuts once"
    fetch()
    assert hub.downloads("model.safetensors") == 2


@pytest.mark.parametrize("fault", ["cuts", "stops"])
def test_a_download_that_ends_in_the_middle_is_no_model(
    hub: LocalHub, repository: Repository, fault: str, tmp_path: Path
) -> None:
    hub.fault = fault  # type: ignore[assignment]
    said = say_why()
    assert said.startswith(
        f"model.safetensors of hf:{NAME}@{repository.branches['main']} was not downloaded completely"
    )
    assert "Run the same command again." in said
    assert not [
        path for path in (tmp_path / "home").rglob("*") if "safetensors" in path.name or "incomplete" in path.name
    ]
    if fault == "cuts":
        hub.fault = ""
        assert fetch().sha256["model.safetensors"] == sha256_of(tmp_path / "model" / "model.safetensors")


def test_weights_with_a_wrong_byte_are_refused_with_the_file_to_remove(hub: LocalHub, repository: Repository) -> None:
    hub.fault = "other bytes"
    with pytest.raises(
        DamagedError, match=r"are damaged: (\S+) has the SHA-256 .* Remove this file and run again"
    ) as caught:
        fetch()
    hub.fault = ""
    Path(str(caught.value).partition("are damaged: ")[2].partition(" ")[0]).unlink()
    fetch()


def test_a_server_that_is_no_hub_is_refused(hub: LocalHub, repository: Repository) -> None:
    commit = repository.branches["main"]
    repository.commits["latest"] = repository.commits[commit]
    repository.branches["main"] = "latest"
    assert "names its commit 'latest', which is no hash of Git" in say_why()


def test_ranks_of_one_machine_download_once(hub: LocalHub, repository: Repository) -> None:
    found: list[HubModel] = []
    ranks = [threading.Thread(target=lambda: found.append(fetch())) for _ in range(4)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [own == found[0] for own in found] == [True] * 4
    assert hub.downloads("model.safetensors") == 1


def test_initial_weights_are_those_of_the_name(repository: Repository, tmp_path: Path) -> None:
    models = []
    for init in (f"hf:{NAME}", str(tmp_path / "model")):
        torch.manual_seed(1)
        model = AST(MODEL, BINS, FRAMES, len(LABELS))
        initialise(model, type(MODEL)(**{**vars(MODEL), "init": init}), LABELS)
        models.append(model.state_dict())
    assert all(torch.equal(value, models[1][key]) for key, value in models[0].items())


@pytest.mark.slow  # two processes import torch
def test_the_variables_of_the_hub_choose_server_cache_and_offline_mode(
    hub: LocalHub, repository: Repository, tmp_path: Path
) -> None:
    environment = hub.environment(tmp_path / "own-home")
    command = [sys.executable, "-c", LOAD, f"hf:{NAME}"]
    said = []
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        done = subprocess.run(
            command, env={"PATH": "", **environment, **more}, capture_output=True, text=True, check=True
        )
        said.append(json.loads(done.stdout))
        hub.fault = "is down"
    assert said[0] == said[1]
    assert set(said[0]) == set(LABELS)
