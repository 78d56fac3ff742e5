"""Open the file system of a URI: object stores, Hugging Face's hub, and shared folders.

pyarrow has file systems for `s3://`, `gs://`, `abfs://`, `hdfs://` and `file:///`; fsspec for `hf://` and others whose
package is installed.
"""

from __future__ import annotations

import functools
import os
import re
import urllib.parse

import pyarrow as pa
from pyarrow import fs

from ast_core.errors import UserError
from ast_core.redaction import holds_secret

_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


def is_uri(place: str | os.PathLike[str]) -> bool:
    """Return whether a place is a URI such as `s3://bucket/folder`, and not a path of this machine."""
    return _URI.match(os.fspath(place)) is not None


@functools.cache
def open_filesystem(uri: str, option: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URI and the URI's path in it, without a `/` at its end.

    Args:
        uri: place in an object store, on Hugging Face's hub or in a shared folder.
        option: the user's option that the URI comes from, for errors.

    Raises:
        UserError: the kind of URI is unknown, its package is missing, or the URI holds keys or no bucket.
    """
    if "@" in urllib.parse.urlsplit(uri).netloc or holds_secret(uri):
        raise UserError(
            f"The URI of {option} holds keys, which runs would log. Set them as AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in the environment instead."
        )
    try:
        filesystem, base = _open(uri)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise UserError(
            f"{option} {uri} cannot be used: {error}. Give s3://bucket/prefix, or file:///folder for a shared disk."
        ) from error
    if not base.strip("/"):
        raise UserError(f"{option} {uri} has no bucket or folder; give s3://bucket/prefix, or file:///folder.")
    return filesystem, base.rstrip("/")


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    scheme = uri.partition("://")[0].lower()
    if scheme == "s3":  # with delayed open, a small file costs one request; without it, three
        return fs.FileSystem.from_uri(f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true")
    try:
        return fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        import fsspec  # noqa: PLC0415  # only for the file systems that pyarrow lacks

        filesystem, base = fsspec.core.url_to_fs(uri)
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), base
