"""The base of every actor that holds a model; apart from the stages, whose imports would cost each worker seconds."""

from __future__ import annotations

import torch

from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle
from pipeline.cli.gpu_choice import Gpus
from pipeline.ray_runtime.heartbeat import start_heartbeat
from pipeline.scoring.device import choose_device


class ModelWorker:
    """A worker that `evaluate`, `calibrate` and `predict` start: it sends heartbeats and puts models on its device.

    Args:
        watch: name of the driver's `LivenessWatch`.
        task: what this worker does, for messages.
        gpus: value of `--gpus`.
    """

    def __init__(self, watch: str, task: str, gpus: Gpus) -> None:
        start_heartbeat(watch, task)
        torch.set_num_threads(1)  # the workers of a node share its cores
        self._gpus: Gpus = gpus

    def place(self, bundle: Bundle) -> Predictor:
        """Return a bundle on the device of this worker.

        Raises:
            UserError: `--gpus` is `yes` and torch finds no GPU on this node.
        """
        return Predictor(bundle, choose_device(self._gpus))
