"""Work is spread over the scoring workers that have started, however many were asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from ast_core.errors import UserError
from pipeline.ray_runtime.scorer import MemberWeights
from pipeline.scoring.bundle_scores import _run_tasks
from pipeline.scoring.device import choose_device


@ray.remote(num_cpus=1)
class Worker:
    """A worker that scores nothing."""

    def is_ready(self) -> None:
        """Return once this worker runs."""

    def score(self, member: MemberWeights, indices: np.ndarray) -> tuple[MemberWeights, np.ndarray, np.ndarray]:
        """Return both arguments and made-up scores."""
        return member, indices, indices * 2.0


def test_more_workers_than_the_cluster_has_room_for_do_not_keep_the_others_waiting(ray_session: None) -> None:
    workers = [Worker.remote() for _ in range(int(ray.cluster_resources()["CPU"]) + 2)]
    member = MemberWeights(Path("bundle"), 0, "sha")
    tasks = [(member, np.arange(first, first + 3)) for first in range(0, 30, 3)]
    try:
        results = list(_run_tasks(workers, tasks, None))
    finally:
        for worker in workers:
            ray.kill(worker)
    assert sorted(int(index) for _, indices, _ in results for index in indices) == list(range(30))
    assert all((scores == indices * 2).all() for _, indices, scores in results)


@pytest.mark.parametrize("found", [True, False])
def test_device_follows_gpus_and_what_torch_finds(monkeypatch: pytest.MonkeyPatch, found: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert choose_device("no") == "cpu"
    assert choose_device("auto") == ("cuda" if found else "cpu")
    if found:
        assert choose_device("yes") == "cuda"
    else:
        with pytest.raises(UserError, match=r"--gpus yes, but torch .* finds no GPU on .*nvidia-smi.*--gpus no"):
            choose_device("yes")
