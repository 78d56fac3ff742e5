"""The models of one replica: the one that it serves, other versions on demand, and the next champion."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from ast_core.errors import UserError
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.bundle import Bundle
from pipeline.scoring.device import choose_device
from pipeline.serving.batching.decoder_pool import DecoderPool
from pipeline.serving.batching.window_queue import WindowQueue
from pipeline.serving.refusals import RefusedError, overload
from pipeline.serving.serve_options import ServeOptions
from pipeline.serving.served_model import ServedModel
from pipeline.tracking.model_choice import open_model_folder

KEPT_VERSIONS = 2
"""Versions besides the served one that stay in memory; the one that was used longest ago goes."""
WINDOWS_A_SECOND = 10
"""Windows of a timeline for each second of the longest recording, at most."""
LISTED_S = 3.0
"""Seconds for which a list of versions is used again."""
_REGISTERED = re.compile(r"models:/(?P<name>[^@/]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+))")
logger = logging.getLogger("ray.serve")  # Ray Serve sends this one to the logs of its replicas


@dataclass(frozen=True)
class Address:
    """A model of the registry, as `models:/NAME@ALIAS` or `models:/NAME/VERSION`."""

    name: str
    alias: str | None
    version: str | None


def parse_address(model: str) -> Address | None:
    """Return the parts of a model's address in the registry; None for other models."""
    match = _REGISTERED.fullmatch(model)
    return Address(match["name"], match["alias"], match["version"]) if match else None


class ModelStore:
    """Loads and keeps models. `start` loads the one to serve; `refresh` looks for a new champion.

    Args:
        options: settings of the server.
        on_batch: function that is called with the number of windows of each batch.
    """

    def __init__(self, options: ServeOptions, on_batch: Callable[[int], None] = lambda _: None) -> None:
        self.options = options
        self.windows = WindowQueue(options.threads, on_batch=on_batch)
        self.decoders = DecoderPool(self.windows, options.max_seconds)
        self._address = parse_address(options.model)
        self._current: ServedModel | None = None
        self._others: OrderedDict[str, ServedModel] = OrderedDict()
        self._loading = threading.Lock()
        self._listed: tuple[float, list[dict[str, Any]]] = (-LISTED_S, [])

    @property
    def current(self) -> ServedModel:
        """The model that is served; RefusedError until it has made a prediction."""
        if self._current is None:
            raise overload("The model is being loaded; try again in a moment.")
        return self._current

    @property
    def ready(self) -> bool:
        """Whether a model is loaded and the queue computes."""
        return self._current is not None and self.windows.healthy

    def start(self) -> None:
        """Load the model to serve, and predict once with it.

        Raises:
            UserError: the model does not exist or cannot be used.
        """
        version = None if self._address is None else self._address.version or self._find_champion()
        self._current = self._load(version)

    def refresh(self) -> bool:
        """Take over the version that the alias points to now; return whether there was a new one.

        Raises:
            UserError: the registry does not answer, or the version cannot be loaded; the old one goes on.
        """
        if self._address is None or self._address.alias is None or self._current is None:
            return False
        version = self._find_champion()
        if version == self._current.version:
            return False
        self._current = self._find_loaded(version) or self._load(version)
        logger.info("Version %s of %s is served now.", version, self._current.name)
        return True

    async def find(self, version: str | None) -> ServedModel:
        """Return the model of a request, loaded if no request has asked for it yet.

        Args:
            version: number of a version of the registered model; None for the served one.

        Raises:
            RefusedError: the version does not exist, or the server serves no registered model.
        """
        current = self.current
        if version is None or version == current.version:
            return current
        loaded = self._find_loaded(version)
        return loaded if loaded is not None else await asyncio.to_thread(self._load_other, version)

    def list_versions(self) -> list[dict[str, Any]]:
        """Return the versions of the registered model with their aliases, the newest first, a few seconds old at most.

        Raises:
            UserError: the registry does not answer.
        """
        if self._address is None:
            return []
        if time.monotonic() - self._listed[0] > LISTED_S:
            from pipeline.tracking import registry  # noqa: PLC0415  # MLflow takes 100 MB

            self._open_registry()
            found = registry.list_versions(self._address.name)
            rows = [{"version": str(number), "aliases": list(aliases)} for number, aliases in found.items()]
            self._listed = (time.monotonic(), rows)
        return self._listed[1]

    def known_versions(self) -> list[dict[str, Any]]:
        """Return `list_versions`, or what it returned last if the registry does not answer."""
        try:
            return self.list_versions()
        except UserError as error:
            logger.warning("%s", error)
            return self._listed[1]

    def close(self) -> None:
        """End the threads and processes."""
        self.decoders.close()
        self.windows.close()

    def _find_loaded(self, version: str) -> ServedModel | None:
        with contextlib.suppress(KeyError):
            self._others.move_to_end(version)
            return self._others[version]
        return None

    def _load_other(self, version: str) -> ServedModel:
        missing = RefusedError(
            HTTPStatus.NOT_FOUND, f"There is no version {version[:40]!r}; /v1/model lists the versions of this model."
        )
        if self._address is None or not re.fullmatch(r"[0-9]{1,9}", version):
            raise missing
        with self._loading:
            if (found := self._find_loaded(version)) is not None:
                return found
            try:
                if version not in {own["version"] for own in self.list_versions()}:
                    raise missing
                found = self._load(version)
            except UserError as error:
                logger.error("%s", error)  # noqa: TRY400  # a sentence for the user, no bug
                raise overload(f"Version {version} cannot be loaded; the server's log has the reason.") from None
            self._others[version] = found
            while len(self._others) > KEPT_VERSIONS:
                self._others.popitem(last=False)
            return found

    def _load(self, version: str | None) -> ServedModel:
        """Load a version, or the model if it is not registered, and predict once with it."""
        model = self.options.model if version is None else f"models:/{self._address.name}/{version}"  # type: ignore[union-attr]
        with open_model_folder(model, self.options.tracking) as folder:
            bundle, folder_name = Bundle.load(folder), folder.name
        predictor = Predictor(bundle, choose_device(self.options.gpus))
        most = int(self.options.max_seconds * WINDOWS_A_SECOND)
        name = self._address.name if self._address else (model if model.startswith("hf:") else folder_name)
        served = ServedModel(name, version, predictor, self.windows, self.decoders, most)
        served.warm_up()
        return served

    def _find_champion(self) -> str:
        """Return the version that the alias points to."""
        from pipeline.tracking import registry  # noqa: PLC0415  # MLflow takes 100 MB

        self._open_registry()
        name, alias = self._address.name, self._address.alias or ""  # type: ignore[union-attr]
        found = registry.version_of_alias(name, alias)
        if found is None:
            raise UserError(f"models:/{name}@{alias} does not exist; register a model, or give another --model.")
        return str(found.number)

    def _open_registry(self) -> None:
        from pipeline.tracking import mlflow_store  # noqa: PLC0415

        mlflow_store.open_store(self.options.tracking)
