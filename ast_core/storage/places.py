"""Tell the URIs of object stores from paths and globs of this machine. Importing this module loads no library."""

from __future__ import annotations

import glob
import os
import re
import urllib.parse

from ast_core.errors import require
from ast_core.redaction import holds_secret

_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


def is_uri(place: str | os.PathLike[str]) -> bool:
    """Return whether a place is a URI such as `s3://bucket/folder`, and not a path of this machine."""
    return _URI.match(os.fspath(place)) is not None


def is_pattern(place: str | os.PathLike[str]) -> bool:
    """Return whether a place is a glob such as `data/*.parquet`: it has `*`, `?` or `[`, and no file has that name."""
    text = os.fspath(place)
    if is_uri(text):  # a `?` begins the query of a URI
        return any(mark in text.partition("?")[0] for mark in "*[")
    return glob.has_magic(text) and not os.path.lexists(text)


def matches_files(pattern: str) -> bool:
    """Return whether at least one file or folder of this machine matches a glob; `**` stands for any folders."""
    found = glob.iglob(pattern, recursive=True)  # noqa: PTH207  # Path.glob takes no absolute pattern
    return next(found, None) is not None


def fixed_folder(pattern: str) -> str:
    """Return the folder of a path's or URI's glob: the parts before the first one that has `*`, `?` or `[`."""
    kept = []
    for part in pattern.split("/")[:-1]:
        if glob.has_magic(part):
            break
        kept.append(part)
    return "/".join(kept) or ("/" if pattern.startswith("/") else "")


def require_no_keys(uri: str, option: str) -> None:
    """Raise UserError if a URI holds a user name, password or key: runs log their settings.

    Args:
        uri: URI that the user gave.
        option: option that it comes from, for the error.
    """
    require(
        "@" not in urllib.parse.urlsplit(uri).netloc and not holds_secret(uri),
        f"The URI of {option} holds keys, which runs would log. Set them as AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY in the environment instead.",
    )


def root_of(place: str | os.PathLike[str]) -> str:
    """Return the folder of a data set, to which the names of its files are relative: a real path, or a URI."""
    text = os.fspath(place)
    if is_pattern(text):
        text = fixed_folder(text)
    return text.partition("?")[0].rstrip("/") if is_uri(text) else os.path.realpath(text)
