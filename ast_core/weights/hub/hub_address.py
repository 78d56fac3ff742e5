"""Addresses of models on Hugging Face's hub, such as `hf:MIT/ast-finetuned-audioset-10-10-0.4593@main`.

Importing this module loads no library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ast_core.errors import UserError

SCHEME = "hf:"
FORM = "hf:ORG/NAME or hf:ORG/NAME@REVISION, for example hf:MIT/ast-finetuned-audioset-10-10-0.4593"
"""Form of an address, for errors."""
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
"""Organisation or name: the characters and the length that the hub permits."""
_ADDRESS = re.compile(rf"{SCHEME}(?P<name>{_PART}/{_PART})(?:@(?P<revision>[A-Za-z0-9_][A-Za-z0-9_./+-]{{0,199}}))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHOWN = 120
"""Characters of a wrong address that an error repeats."""


@dataclass(frozen=True)
class HubAddress:
    """A model on the hub, at one revision."""

    name: str
    """Organisation and name, `ORG/NAME`."""
    revision: str = ""
    """Branch, tag or commit; "" for the main branch."""

    def __str__(self) -> str:
        """Return the address as the user writes it."""
        return f"{SCHEME}{self.name}" + (f"@{self.revision}" if self.revision else "")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return is_commit(self.revision)

    @property
    def page(self) -> str:
        """Web page of the model."""
        return f"https://huggingface.co/{self.name}"

    def at(self, revision: str) -> HubAddress:
        """Return the same model at another revision."""
        return replace(self, revision=revision)


def is_hub_address(text: str) -> bool:
    """Return whether a text names a model on the hub, and no file or registered model."""
    return text.startswith(SCHEME)


def is_commit(revision: str) -> bool:
    """Return whether a revision is the complete hash of a commit."""
    return _COMMIT.fullmatch(revision) is not None


def parse_hub_address(text: str) -> HubAddress:
    """Return the model and the revision that an address names.

    Name and revision become parts of paths and of web addresses, so only the hub's own characters are accepted.

    Raises:
        UserError: the text has another form.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or not (_is_name(match["name"]) and _is_revision(match["revision"] or "")):
        raise UserError(f"{ascii(text)[:_SHOWN]} names no model on Hugging Face's hub; give {FORM}.")
    return HubAddress(match["name"], match["revision"] or "")


def _is_name(name: str) -> bool:
    """Return whether the hub permits a name of permitted characters."""
    return not any(part in name for part in ("..", "--")) and not name.endswith(".git")


def _is_revision(revision: str) -> bool:
    """Return whether Git permits a revision of permitted characters; `..` would leave the folder of the cache."""
    return not any(part in revision for part in ("..", "//", "/.", "./")) and not revision.endswith(("/", ".lock"))
