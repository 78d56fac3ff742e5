"""Private names of Ray Train: a trainer that starts fewer processes than Ray Train's own.

Each process of Ray's costs a second of start, or three if it imports Ray Train. `tests/pipeline/ray_runtime/
test_internals.py` lists the private names, and `pyproject.toml` keeps Ray below the next minor release.
"""

from __future__ import annotations

import logging
import os
from typing import Any

import ray
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
    ENV_VARS_TO_PROPAGATE,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.ray_runtime import internals

NO_WARNING = "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC"
"""Environment variable that Ray Train sets for its controller."""
IDLE = (DatasetsCallback, PlacementGroupCleanerCallback)
"""Callbacks that start a process each. Our trainings use no data sets of Ray's. On a local Ray nothing outlives
the driver, so that no placement group needs a cleaner."""


class LeanTorchTrainer(TorchTrainer):
    """TorchTrainer without the processes that our trainings do not need.

    On a local Ray nothing is left to the environment of single processes, so that the controller and the ranks can run
    in processes that Ray has already started: Ray starts a new process, twice, for each environment of its own.
    """

    _controller: Any = None
    _stopped = False

    def _create_default_callbacks(self) -> list[Any]:
        all_of_them: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # mypy sees an older class
        idle = IDLE if internals.is_local() else (DatasetsCallback,)
        return [callback for callback in all_of_them if not isinstance(callback, idle)]

    def stop(self) -> None:
        """End the controller, and with it the workers; `fit` then raises an error of Ray's."""
        self._stopped = True  # before the look at the controller, whose thread looks in the other order
        if self._controller is not None:
            ray.kill(self._controller)

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        settings = {name: os.environ[name] for name in ENV_VARS_TO_PROPAGATE if name in os.environ}
        settings.setdefault(NO_WARNING, DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE)
        if internals.is_local():
            arguments |= {"settings": settings, "scaling_policy": _LocalScaling(self.scaling_config)}  # type: ignore[arg-type]
            actor_class: Any = ray.remote(num_cpus=0)(_LocalController)
        else:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            actor_class = ray.remote(TrainController)
            actor_class = actor_class.options(num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": settings})
        self._controller = actor_class.remote(**arguments)
        if self._stopped:
            ray.kill(self._controller)
        ray.get(self._controller.run.remote())
        result: Result = ray.get(self._controller.get_result.remote())
        return result


class _LocalController(TrainController):
    """Controller that takes the driver's settings of Ray Train as an argument, not from its environment."""

    def __init__(self, settings: dict[str, str], **arguments: Any) -> None:
        os.environ.update(settings)
        ENV_VARS_TO_PROPAGATE.clear()  # the ranks need none of these settings
        quiet_ray_logs()
        super().__init__(**arguments)


class _LocalScaling(FixedScalingPolicy):
    """A fixed number of workers, of which no process informs the autoscaler that a local Ray does not have."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Request nothing."""

    def _maybe_send_resource_request(self) -> None:
        """Request nothing."""


def quiet_ray_logs() -> None:
    """Keep the log messages of Ray Train in this process out of the terminal: the driver reports each error once."""
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
