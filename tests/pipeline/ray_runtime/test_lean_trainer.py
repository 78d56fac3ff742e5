"""The processes of a training: workers, their controller, and what these two need."""

from __future__ import annotations

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer

from pipeline.ray_runtime.lean_trainer import IDLE, Trainer


def test_what_would_idle_is_not_started():
    scaling = ScalingConfig(num_workers=2)
    rays, ours = ([type(found) for found in kind(print, scaling_config=scaling)._create_default_callbacks()]
                  for kind in (TorchTrainer, Trainer))  # fmt: skip
    assert set(rays) - set(ours) == set(IDLE)
    assert set(ours) < set(rays)
