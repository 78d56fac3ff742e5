"""Checkpoints: a committed one is read back, a damaged one is noticed."""

from __future__ import annotations

import pytest
import torch

from ast_core.errors import DamagedError, UserError
from ast_core.storage.atomic_files import sha256_of
from ast_core.storage.json_files import write_hashed_json
from ast_core.weights import checkpoint
from ast_core.weights.average import average_weights


def save(folder, value=1.0, identity="a"):
    tensors = {"model": {"w": torch.full((3,), value)}}
    checkpoint.save(folder, tensors, {"identity": {"model": identity}, "step": int(value)})


def test_newest_verified_is_chosen_and_damage_is_named(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path / f"step-{step:08d}", float(step))
    (tmp_path / "step-00000004").mkdir()  # a kill before the marker
    damaged = tmp_path / "step-00000003" / "model.safetensors"
    bits = bytearray(damaged.read_bytes())
    bits[-1] ^= 1
    damaged.write_bytes(bits)
    chosen, passed_over = checkpoint.newest(tmp_path)
    assert chosen == tmp_path / "step-00000002"
    assert len(passed_over) == 1
    assert str(damaged) in passed_over[0]


def test_truncated_or_missing_file_is_noticed(tmp_path):
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DamagedError, match="sha256"):
        checkpoint.read_state(tmp_path)
    path.unlink()
    with pytest.raises(DamagedError, match="no file"):
        checkpoint.read_state(tmp_path)


def test_marker_that_names_a_file_outside_its_folder_is_refused(tmp_path):
    save(tmp_path / "step")
    (tmp_path / "outside").write_bytes(b"1")
    for name in ("../outside", str(tmp_path / "outside"), "x" * 300, "."):
        hashes = {name: sha256_of(tmp_path / "outside")}
        write_hashed_json(tmp_path / "step" / checkpoint.MARKER, {"sha256": hashes, "state": {}})
        with pytest.raises(DamagedError, match="no file"):
            checkpoint.read_state(tmp_path / "step")


def test_remove_older_keeps_only_the_newest(tmp_path):
    for step in range(5):
        save(tmp_path / f"step-{step:08d}")
    checkpoint.remove_older(tmp_path, 2)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["step-00000003", "step-00000004"]


def test_average_is_the_mean_and_refuses_other_models(tmp_path):
    for value in (1.0, 2.0, 6.0):
        save(tmp_path / str(value), value)
    mean = average_weights([tmp_path / "1.0", tmp_path / "2.0", tmp_path / "6.0"])
    assert torch.equal(mean["w"], torch.full((3,), 3.0))
    save(tmp_path / "other", identity="b")
    with pytest.raises(UserError, match="cannot be averaged"):
        average_weights([tmp_path / "1.0", tmp_path / "other"])


def test_optimizer_state_survives_the_flat_table_and_another_model_is_refused():
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    table = checkpoint.optimizer_tensors(optimizer)
    other = torch.optim.Adam(model.parameters())
    checkpoint.restore_optimizer(other, table)
    again = checkpoint.optimizer_tensors(other)
    assert table.keys() == again.keys()
    assert all(torch.equal(table[key], again[key]) for key in table)
    with pytest.raises(UserError, match="belongs to another model"):  # int() refuses so many digits
        checkpoint.restore_optimizer(other, {f"{'9' * 5000}.exp_avg": torch.zeros(3)})
