"""A member that one node began and another goes on with: what the nodes' folders are to each other, without Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from prepared import FRONT_END, write_shards

from ast_core.config import AugmentConfig, DataConfig, EnsembleConfig, Job, ModelConfig, OptimConfig
from ast_core.storage.atomic_files import list_stored
from ast_core.storage.object_store import ObjectStore
from ast_core.training import trainer
from pipeline.cli.stages import CombineSettings
from pipeline.combine import combine
from pipeline.run_folder import sync

pytestmark = pytest.mark.server

EPOCHS = 3
MODEL = ModelConfig(backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch")


def a_node(root: Path, uri: str) -> Job:
    """Return the member as a node without files trains it, with what it downloaded."""
    job = Job(
        folder=root / "members" / "seed-0",
        shards=root / "shards",
        seed=0,
        data=DataConfig(train_splits=("train",), test_split="test"),
        front_end=FRONT_END,
        model=MODEL,
        augment=AugmentConfig(mixup_rate=0.5, freq_mask_bins=4, time_mask_frames=8),
        optim=OptimConfig(epochs=EPOCHS, batch_size=6, checkpoint_every_steps=3, learning_rate=1e-3),
    )
    sync.attach_stores([ObjectStore(root, uri)])
    sync.download_rank_inputs(job)
    return job


def prepared(root: Path, uri: str) -> None:
    store = ObjectStore(root, uri)
    store.attach()
    write_shards(root / "shards", {"train": 42, "test": 9})


@pytest.mark.timeout(120)
def test_another_node_goes_on_from_the_store_to_the_same_weights(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    device = torch.device("cpu")
    prepared(tmp_path / "alone" / "driver", f"{uri}/alone")
    trainer.fit(a_node(tmp_path / "alone" / "node", f"{uri}/alone"), 0, 1, device)

    prepared(tmp_path / "driver", f"{uri}/shared")
    steps = iter(range(17))
    real = trainer.queue_step
    monkeypatch.setattr(trainer, "queue_step", lambda *arguments: (next(steps), real(*arguments))[1])
    with pytest.raises(StopIteration):  # the node is gone in the middle of epoch 3, with a step after its checkpoint
        trainer.fit(a_node(tmp_path / "first", f"{uri}/shared"), 0, 1, device)
    monkeypatch.undo()
    job = a_node(tmp_path / "second", f"{uri}/shared")
    assert [path.name for path in (job.folder / "checkpoints").iterdir()] == ["step-00000015"]
    trainer.fit(job, 0, 1, device)

    weights = []
    for place in (f"{uri}/alone", f"{uri}/shared"):
        root = tmp_path / "third" / place.rpartition("/")[2]  # one more node, which combines
        settings = CombineSettings(run_dir=root, shards=root / "shards", storage=place)
        optim = dataclasses.replace(job.optim, average_first_epoch=2)
        combine(dataclasses.replace(settings, optim=optim, ensemble=EnsembleConfig(seeds=(0,))))
        files = sorted(root.rglob("*.safetensors"))
        weights.append({path.relative_to(root).as_posix(): path.read_bytes() for path in files})
        kept = {path.parent.name for path in list_stored(root / "members" / "seed-0" / "checkpoints")}
        assert kept == {"step-00000018", "step-00000021"}
    assert len(weights[0]) == EPOCHS + 2
    assert weights[0] == weights[1]
