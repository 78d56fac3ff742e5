"""Members that share their workers end with the bits of members trained alone, and fail alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from launches import training_flags
from prepared import write_shards
from trainings import fit_without_ray, supervise_without_ray

from ast_core.errors import UserError
from ast_core.storage.atomic_files import sha256_of
from pipeline import train
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import TrainSettings
from pipeline.ray_runtime.training_supervisor import placement_group_file
from pipeline.train import MemberTrainings


def member_settings(folder: Path, run: str, seed: int, *more: str) -> TrainSettings:
    flags = [*training_flags(folder, run, 2), "--seed", str(seed), *more]
    return parse_settings(TrainSettings, "", flags)


def hash_epochs(member: Path) -> dict[str, str]:
    return {str(path.relative_to(member)): sha256_of(path) for path in member.glob("epochs/*/*.safetensors")}


@pytest.mark.timeout(300)
def test_members_in_one_group_equal_those_trained_alone_and_one_that_fails_costs_no_other(
    tmp_path: Path, ray_session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "shards", {"train": 42, "test": 21})
    alone = fit_without_ray(member_settings(tmp_path, "alone", 1), 2)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"no weights")
    groups: dict[int, str] = {}

    def train_four() -> None:
        with MemberTrainings() as trainings:
            for seed in range(4):
                more = ("--model.init", str(damaged)) if seed == 2 else ()
                if seed == 3:  # a group that lost its workers starts again in test_interrupted_training
                    monkeypatch.setattr(train, "supervise", supervise_without_ray)
                member = trainings.train(f"seed {seed}", member_settings(tmp_path, "together", seed, *more))
                assert (member is None) == (seed == 2)
                if seed < 2:
                    groups[seed] = placement_group_file(member).read_text()

    with pytest.raises(UserError, match=r"seed 2 failed: .*damaged\.pth.*Trained and kept: seed 0, seed 1, seed 3\."):
        train_four()
    assert groups[0] == groups[1]
    together = tmp_path / "together" / "members"
    assert hash_epochs(alone) == hash_epochs(together / "seed-1")
    assert len(hash_epochs(together / "seed-3")) == 2
    assert not list(together.glob("*/.ray"))
    assert "seed 2 failed" in capsys.readouterr().err
