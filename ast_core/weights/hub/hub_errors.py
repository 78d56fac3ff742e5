"""What the user can do about an error of the hub's client."""

from __future__ import annotations

import platform
from pathlib import Path

from ast_core.errors import UserError
from ast_core.storage.disk_space import FULL_DISK_ERRNOS, write_error
from ast_core.weights.hub.hub_address import HubAddress
from ast_core.weights.huggingface import CONFIG, PREPROCESSOR, WEIGHTS

_FILES = f"{CONFIG}, {PREPROCESSOR} and {WEIGHTS}"
_REFUSALS = {401, 403}
"""Answers of the hub to a token that may not read a model."""


def explain_failure(error: Exception, address: HubAddress, file: str) -> UserError:
    """Return the error that says what the user can do about an error of the hub's client."""
    from huggingface_hub import constants, errors  # noqa: PLC0415

    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else error
    if isinstance(error, OSError) and error.errno in FULL_DISK_ERRNOS:
        return write_error(Path(constants.HF_HUB_CACHE) / file, error, 0, 0)
    if isinstance(error, PermissionError):
        return UserError(
            f"{address} could not be written to the cache {constants.HF_HUB_CACHE}: {error}. Set HF_HOME to a folder "
            "that you may write."
        )
    refusal = _explain_refusal(cause, address, file)
    if refusal:
        return UserError(refusal)
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return UserError(_explain_absence(cause, address))
    return UserError(
        f"{file} of {address} was not downloaded completely from {constants.ENDPOINT} on {platform.node()} "
        f"({_name(error)}). Run the same command again. {_advise(address)}"
    )


def _explain_refusal(error: BaseException | None, address: HubAddress, file: str) -> str:
    """Return the sentence for an answer of the hub that does not depend on the network; "" for other errors."""
    from huggingface_hub import errors  # noqa: PLC0415

    missing = f"{address} has no {file}, so it is no model of transformers. Give the name of an AST."
    if file == WEIGHTS:
        missing = (
            f"{address} has no {WEIGHTS}, and other files of weights are not downloaded, because pickles can run code. "
            f"Give a revision that has it (a pull request of the hub's converter may, {address.at('refs/pr/1')}), or "
            f'convert it once with transformers, ASTForAudioClassification.from_pretrained("{address.name}")'
            '.save_pretrained("FOLDER"), and give FOLDER instead of the name.'
        )
    sentences = {  # the first that fits: a gated repository is also one that is not found
        errors.GatedRepoError: f"{address} is gated: ask for access on {address.page}, set HF_TOKEN to a token of your "
        "account, and run again.",
        errors.RepositoryNotFoundError: f"{address} does not exist on the hub, or is private. Check the name on "
        f"{address.page}, or set HF_TOKEN to a token that may read it.",
        errors.RevisionNotFoundError: f"{address.name} has no revision {address.revision or 'main'!r} on the hub. Give "
        f"a branch, a tag or a commit of {address.page}/commits.",
        errors.RemoteEntryNotFoundError: missing,
    }
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in _REFUSALS:
        sentences[errors.HfHubHTTPError] = (
            f"The hub refused access to {address} ({error.response.status_code}). Check the name on {address.page}, or "
            "set HF_TOKEN to a token that may read it."
        )
    return next((sentence for kind, sentence in sentences.items() if isinstance(error, kind)), "")


def _explain_absence(cause: BaseException | None, address: HubAddress) -> str:
    """Return the sentence for a model that the cache does not have and that cannot be downloaded now."""
    from huggingface_hub import constants, errors  # noqa: PLC0415

    reason = f"{constants.ENDPOINT} did not send it ({_name(cause)})"
    if constants.is_offline_mode() or cause is None or isinstance(cause, errors.OfflineModeIsEnabled):
        reason = "HF_HUB_OFFLINE forbids to download it"
    return (
        f"{address} is not complete in the cache {constants.HF_HUB_CACHE} of {platform.node()}, and {reason}. "
        f"{_advise(address)}"
    )


def _advise(address: HubAddress) -> str:
    """Return the sentence that says how to use a model without a network."""
    from huggingface_hub import constants, file_download  # noqa: PLC0415

    cached = file_download.repo_folder_name(repo_id=address.name, repo_type="model")
    return (
        f"Without a network, copy {_FILES} from {address.page} into a folder and give that folder instead of the name, "
        f"or copy the folder {Path(constants.HF_HUB_CACHE) / cached} from a machine that has downloaded the model."
    )


def _name(error: BaseException | None) -> str:
    """Return an error as its type and the first line of its text."""
    if error is None:
        return "no answer"
    line = str(error).strip().partition("\n")[0][:160]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
