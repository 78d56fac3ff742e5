"""The server as an application of Ray Serve: replicas with the model, and the board of their counts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError

from ast_core.errors import require
from ast_core.evaluation.window_cuts import WINDOWS_AT_ONCE
from ast_core.serialization import from_dict
from pipeline.cli.user_environment import complete_environment
from pipeline.ray_runtime.cluster_size import uses_gpu
from pipeline.serving.application import build_app
from pipeline.serving.listening_replica import Listener, ListeningReplica
from pipeline.serving.serve_options import DAY_S, ServeOptions
from pipeline.serving.server_metrics import Counts, MetricsBoard
from pipeline.tracking.store_uri import choose_store

BOARD = "ast-serve-board"
"""Name of the actor that collects the counts."""
DEPLOYMENT = "model"
EXTRA_REQUESTS = 64
"""Requests besides the waiting ones that reach a replica, so that it refuses them itself, with a reason."""
MOST_REPLICAS = 1000
UP_S, DOWN_S = 5.0, 120.0
"""Seconds of more or less load after which the number of replicas changes."""


@dataclass(frozen=True)
class DeploymentOptions:
    """A server with its replicas."""

    server: ServeOptions
    replicas: tuple[int, ...] = (1, 1)
    """Lowest and highest number of replicas."""
    drain_s: float = 30
    """Seconds that a replica has to answer its requests before it ends."""

    def __post_init__(self) -> None:
        """Check the values; UserError names the wrong one."""
        require(
            len(self.replicas) == 2 and 1 <= self.replicas[0] <= self.replicas[1] <= MOST_REPLICAS,
            f"replicas is {' '.join(map(str, self.replicas))}; give the lowest and the highest number, from 1 to "
            f"{MOST_REPLICAS}.",
        )
        require(0 <= self.drain_s <= DAY_S, f"drain-s is {self.drain_s:g}; give seconds from 0 to {DAY_S}.")


class Replica:
    """What Ray Serve asks of a replica besides HTTP."""

    async def check_health(self) -> None:
        """Raise RuntimeError if the model does not compute any more; Ray Serve then replaces the replica."""
        if not self.app.state.server.models.windows.healthy:  # type: ignore[attr-defined]
            raise RuntimeError("The model does not compute any more.")


class RayBoard:
    """The board of all replicas, which is an actor."""

    def __init__(self) -> None:
        self._actor = self._find()

    async def exchange(self, replica: str, counts: Counts) -> Counts:
        """Store the counts of a replica, and return the sums over all replicas."""
        try:
            merged: Counts = await self._actor.exchange.remote(replica, counts)
        except RayActorError:
            self._actor = self._find()  # for the next time
            raise
        return merged

    @staticmethod
    def _find() -> Any:
        """Return the actor, started if it does not run."""
        options = {"name": BOARD, "namespace": "serve", "get_if_exists": True, "lifetime": "detached", "num_cpus": 0}
        return ray.remote(MetricsBoard).options(**options).remote()


def bind(options: DeploymentOptions, listener: Listener | None = None) -> serve.Application:
    """Return the application for `serve.run`.

    Args:
        options: settings of the server and its replicas.
        listener: where the only replica listens; None if requests come through Ray Serve's proxy.
    """
    low, high = options.replicas
    threads = options.server.threads or max(1, (os.cpu_count() or 1) // high)
    server = dataclasses.replace(options.server, threads=threads)

    def build() -> FastAPI:
        complete_environment()
        return build_app(complete_options(server), load_first=True, board=RayBoard(), behind_proxy=True)

    number: dict[str, Any] = {"num_replicas": low}
    if high > low:
        scaling = {"target_ongoing_requests": WINDOWS_AT_ONCE, "upscale_delay_s": UP_S, "downscale_delay_s": DOWN_S}
        number = {"autoscaling_config": {"min_replicas": low, "max_replicas": high, **scaling}}
    deployment: Any = serve.deployment(
        serve.ingress(build)(Replica) if listener is None else ListeningReplica,
        name=DEPLOYMENT,
        ray_actor_options={"num_cpus": 1, "num_gpus": int(uses_gpu(server.gpus))},
        logging_config={"enable_access_log": False},  # each line would go to the terminal; `/metrics` counts requests
        max_ongoing_requests=server.max_waiting + EXTRA_REQUESTS,
        graceful_shutdown_timeout_s=options.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5,
        health_check_timeout_s=60,
        **number,
    )
    arguments = () if listener is None else (server, RayBoard(), listener)
    application: serve.Application = deployment.bind(*arguments)
    return application


def complete_options(options: ServeOptions) -> ServeOptions:
    """Return the settings of a replica: without a tracking address, the one of its pod's `MLFLOW_TRACKING_URI` is used.

    Raises:
        UserError: the address is wrong.
    """
    return dataclasses.replace(options, tracking=choose_store(options.tracking))


def build(arguments: dict[str, Any]) -> serve.Application:
    """Return the application for a configuration file of Ray Serve, such as that of a RayService.

    Args:
        arguments: fields of `ServeOptions`, and `replicas` and `drain_s`.

    Raises:
        UserError: an argument is unknown or has a wrong value.
    """
    own = {name: arguments[name] for name in ("replicas", "drain_s") if name in arguments}
    server = {name: value for name, value in arguments.items() if name not in own}
    return bind(from_dict(DeploymentOptions, {"server": server, **own}))


def drain_replicas() -> Counts:
    """Let all replicas refuse new requests, and return the sums over them; nothing if there is no board."""
    try:
        board: Any = ray.get_actor(BOARD, namespace="serve")
    except ValueError:  # Ray knows no such actor
        return {}
    counts: Counts = ray.get([board.drain.remote(), board.merge.remote()])[1]
    return counts


def remove_board() -> None:
    """End the board of a cluster, which may be of an earlier server."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(BOARD, namespace="serve"))
