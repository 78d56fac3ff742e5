"""A run notes the commits of the hub's models that it uses, and keeps them when their branches move."""

from __future__ import annotations

from pathlib import Path

import pytest
from local_hub import NAME, LocalHub, write_model

from ast_core.errors import DamagedError, UserError
from ast_core.storage.json_files import write_hashed_json
from pipeline.run_folder.pinned_models import fetch_pinned, find_pinned


@pytest.fixture
def first(hub: LocalHub, tmp_path: Path) -> str:
    """Return the first commit of a repository, which the run in `run` uses, and whose branch moved on then."""
    commit = hub.add().commit_folder(write_model(tmp_path / "model"))
    fetch_pinned(f"hf:{NAME}", tmp_path / "run")
    hub.add().commit_folder(write_model(tmp_path / "other", seed=1))
    return commit


def test_a_later_launch_uses_the_noted_commit_without_a_network(hub: LocalHub, first: str, tmp_path: Path) -> None:
    hub.stop()
    again = fetch_pinned(f"hf:{NAME}", tmp_path / "run")
    assert again.address.revision == first
    assert fetch_pinned(f"hf:{NAME}@{first}", tmp_path / "run") == again
    noted = find_pinned(f"hf:{NAME}", tmp_path / "run")
    assert noted is not None
    assert (noted.pinned, noted.sha256) == (f"hf:{NAME}@{first}", again.sha256)


def test_another_run_and_another_revision_have_commits_of_their_own(hub: LocalHub, first: str, tmp_path: Path) -> None:
    moved = hub.add().branches["main"]
    assert fetch_pinned(f"hf:{NAME}", tmp_path / "other-run").address.revision == moved != first
    assert fetch_pinned(f"hf:{NAME}@main", tmp_path / "run").address.revision == moved
    assert find_pinned(f"hf:{NAME}@v1", tmp_path / "run") is None


def test_an_empty_cache_is_filled_with_the_noted_commit(
    hub: LocalHub, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "another-node"))
    assert fetch_pinned(f"hf:{NAME}", tmp_path / "run").address.revision == first


def test_other_files_under_the_noted_commit_are_refused(first: str, tmp_path: Path) -> None:
    folder = fetch_pinned(f"hf:{NAME}", tmp_path / "run").folder
    (folder / "config.json").unlink()
    (folder / "config.json").write_text("{}")
    with pytest.raises(
        UserError, match=rf"has other files now than when the run .* began: config.json. Remove {folder}"
    ):
        fetch_pinned(f"hf:{NAME}", tmp_path / "run")


def test_a_damaged_note_is_refused(first: str, tmp_path: Path) -> None:
    note = tmp_path / "run" / "hub-models.json"
    note.write_text(note.read_text().replace(first[:8], "0" * 8))
    with pytest.raises(DamagedError, match="hub-models"):
        find_pinned(f"hf:{NAME}", tmp_path / "run")
    for values in ({"models": 3}, {"models": [{"address": 1}]}):
        write_hashed_json(note, values)
        with pytest.raises(UserError):
            find_pinned(f"hf:{NAME}", tmp_path / "run")
