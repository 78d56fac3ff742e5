"""Remove passwords and keys from everything that is written or shown. Only this module knows how they look."""

from __future__ import annotations

import re
from typing import TypeVar

ValueT = TypeVar("ValueT")
HIDDEN = "***"
_NAMED = r"[\w.-]*(?:pass|pwd|secret|token|key|sig|credential)[\w.-]*"
_SECRETS = (
    re.compile(r"([a-z][a-z0-9+.-]*://[^\s/?#:@'\"]*:)[^\s/?#'\"]*(?=@)", re.IGNORECASE),  # scheme://user:HERE@host
    re.compile(rf"([?&;]{_NAMED}=)[^\s&;#'\"]+", re.IGNORECASE),  # ?secret_key=HERE, also X-Amz-Signature
    re.compile(r"(\bpassword\s*=\s*)[^\s&;'\"]+", re.IGNORECASE),  # how PostgreSQL's library writes it
)


def without_secrets(value: ValueT) -> ValueT:
    """Return a text, or all texts of a dict or list, with `***` for each password or key in a URI."""
    if isinstance(value, str):
        for secret in _SECRETS:
            value = secret.sub(rf"\g<1>{HIDDEN}", value)  # type: ignore[assignment]
    elif isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items()}  # type: ignore[return-value]
    elif isinstance(value, list | tuple):
        return type(value)(without_secrets(item) for item in value)
    return value


def holds_secret(text: str) -> bool:
    """Return whether a text, such as a URI, holds a password or key."""
    return without_secrets(text) != text
