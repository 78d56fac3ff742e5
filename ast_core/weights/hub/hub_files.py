"""Download models by name from Hugging Face's hub: their settings and safetensors, never code and never pickles.

Cache, offline mode, tokens and mirrors are those of the package huggingface_hub (HF_HOME, HF_HUB_OFFLINE, HF_TOKEN,
HF_ENDPOINT). Its locks let one process of a machine download while the others wait for the same file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ast_core.errors import DamagedError, UserError, require
from ast_core.storage.atomic_files import sha256_of
from ast_core.weights.hub.hub_address import HubAddress, is_commit
from ast_core.weights.hub.hub_errors import explain_failure
from ast_core.weights.huggingface import CONFIG, PREPROCESSOR, WEIGHTS

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubModel:
    """Files of a model that are on this machine."""

    address: HubAddress
    """The model at its commit."""
    folder: Path
    """Folder of the files, in Hugging Face's format; it belongs to the cache and must not be changed."""
    sha256: dict[str, str]
    """SHA-256 of each file by name."""


def fetch_hub_model(address: HubAddress) -> HubModel:
    """Return a model of the hub; what the cache has is not downloaded again.

    A branch or tag is looked up on the hub, or in the cache without a network. A commit that the cache has needs no
    network.

    Raises:
        UserError: the model, the revision or a file does not exist, access is refused, the download failed, or there is
            no network and the cache does not have the model.
        DamagedError: the weights in the cache are not the ones that the hub has.
    """
    config = _download(address, CONFIG)
    commit = config.parent.name  # snapshots/COMMIT/config.json
    require(
        is_commit(commit),
        f"{address} cannot be used: the server names its commit {ascii(commit)[:80]}, which is no hash of Git. Unset "
        "HF_ENDPOINT, or set it to a mirror of the hub.",
    )
    pinned = address.at(commit)
    paths = [config, _download(pinned, WEIGHTS)]
    if _may_exist(pinned, PREPROCESSOR):
        paths.append(_download(pinned, PREPROCESSOR))
    sha256 = {path.name: sha256_of(path) for path in paths}
    _require_intact(pinned, paths[1], sha256[WEIGHTS])
    return HubModel(pinned, config.parent, sha256)


def _require_intact(address: HubAddress, weights: Path, sha256: str) -> None:
    """Compare the weights with the hub's own hash, by which the cache names its file."""
    stored = weights.readlink().name if weights.is_symlink() else ""
    if _SHA256.fullmatch(stored) and stored != sha256:
        raise DamagedError(
            f"The weights of {address} in the cache are damaged: {weights.resolve()} has the SHA-256 {sha256}, not "
            f"{stored}. Remove this file and run again."
        )


def _may_exist(address: HubAddress, file: str) -> bool:
    """Return whether the model has a file that not every model has; it is in the cache then."""
    # Its import takes a third of a second.
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415
    from huggingface_hub.errors import RemoteEntryNotFoundError  # noqa: PLC0415

    found = try_to_load_from_cache(address.name, file, revision=address.revision)
    if found is not None:  # a path, or a mark of the cache that the file does not exist
        return isinstance(found, str)
    try:
        _download(address, file)
    except UserError as error:
        if isinstance(error.__cause__, RemoteEntryNotFoundError):
            return False
        raise
    return True


def _download(address: HubAddress, file: str) -> Path:
    """Return a file of a model in the cache, downloaded if it is not there."""
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        try:
            return _ask(address, file)
        except (OSError, ValueError, errors.HfHubHTTPError):
            raise
        except Exception:  # noqa: BLE001  # the client found a connection closed that it kept, and did not try another
            return _ask(address, file)
    except Exception as error:  # the hub's client raises many types, and the user must act on each
        raise explain_failure(error, address, file) from error


def _ask(address: HubAddress, file: str) -> Path:
    """Let the hub's client find or download a file."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415

    return Path(hf_hub_download(address.name, file, revision=address.revision or None))
