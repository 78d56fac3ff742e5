"""Ray Train's trainer, without the processes that it starts beside the workers and that have nothing to do here."""

from __future__ import annotations

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback

IDLE = (DatasetsCallback, PlacementGroupCleanerCallback)
"""Each is a process of its own, a second of a core at every start. Ranks read the shards themselves, without a Ray
data set; and what a killed controller held, `cluster.release` gives back, also where no dashboard tells of its end."""


class Trainer(TorchTrainer):
    """As Ray's. A Ray that names its callbacks otherwise starts them all: slower, and no worse."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        started = super()._create_default_callbacks()  # type: ignore[misc]  # mypy sees an older class
        return [callback for callback in started if not isinstance(callback, IDLE)]
