"""Open the file system of a URI: object stores, Hugging Face's hub, and shared folders.

pyarrow has file systems for `s3://`, `gs://`, `abfs://`, `hdfs://` and `file:///`; fsspec for `hf://` and others whose
package is installed.
"""

from __future__ import annotations

import functools
import urllib.parse

import pyarrow as pa
from pyarrow import fs

from ast_core.errors import UserError
from ast_core.storage.places import is_uri, require_no_keys

__all__ = ["forget_file_systems", "is_uri", "join_uri", "locate_file", "open_filesystem", "uses_percent"]
_ENCODED = {"s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file"}
"""Kinds of URIs whose names are percent-encoded: those of pyarrow. fsspec takes names as they are."""
_PROBE = "probe"
"""Name in a bucket that need not exist, by which the path of the bucket is found."""


@functools.cache
def open_filesystem(uri: str, option: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a URI and the URI's path in it, without a `/` at its end.

    A file system is opened once, until `forget_file_systems` is called.

    Args:
        uri: place in an object store, on Hugging Face's hub or in a shared folder.
        option: the user's option that the URI comes from, for errors.

    Raises:
        UserError: the kind of URI is unknown, its package is missing, or the URI holds keys or no bucket.
    """
    require_no_keys(uri, option)
    try:
        filesystem, base = _open(uri)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise UserError(
            f"{option} {uri} cannot be used: {error}. Give s3://bucket/prefix, or file:///folder for a shared disk."
        ) from error
    if not base.strip("/"):
        raise UserError(f"{option} {uri} has no bucket or folder; give s3://bucket/prefix, or file:///folder.")
    return filesystem, base.rstrip("/")


def forget_file_systems() -> None:
    """Open every file system again at its next use, with the endpoint and the keys that the environment then names.

    Each listing of a source starts with it: a user of a notebook corrects a variable and tries again without a restart.
    """
    open_filesystem.cache_clear()


def locate_file(uri: str, option: str = "--data.source") -> tuple[fs.FileSystem, str]:
    """Return the file system of a file's URI and the file's path in it. File systems are opened once a bucket.

    Args:
        uri: URI of a file, as `join_uri` makes it.
        option: the user's option that the URI comes from, for errors.

    Raises:
        UserError: as `open_filesystem`.
    """
    scheme, _, rest = uri.partition("://")
    encoded = uses_percent(uri)
    rest, mark, query = rest.partition("?") if encoded else (rest, "", "")
    bucket, _, name = rest.partition("/")
    filesystem, probe = open_filesystem(f"{scheme}://{bucket}/{_PROBE}{mark}{query}", option)
    return filesystem, probe.removesuffix(_PROBE) + (urllib.parse.unquote(name) if encoded else name)


def uses_percent(uri: str) -> bool:
    """Return whether names in a URI are percent-encoded and a query may follow them."""
    return uri.partition("://")[0].lower() in _ENCODED


def join_uri(folder: str, name: str) -> str:
    """Return the URI of a file in a folder.

    Args:
        folder: URI of the folder, possibly with a query such as `?endpoint_override=...`.
        name: path of the file in the folder, as the file system lists it.
    """
    if not uses_percent(folder):
        return f"{folder.rstrip('/')}/{name}"
    place, mark, query = folder.partition("?")
    return f"{place.rstrip('/')}/{urllib.parse.quote(name)}{mark}{query}"


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    scheme = uri.partition("://")[0].lower()
    if scheme == "s3":  # with delayed open, a small file costs one request; without it, three
        return fs.FileSystem.from_uri(f"{uri}{'&' if '?' in uri else '?'}allow_delayed_open=true")
    try:
        return fs.FileSystem.from_uri(uri)
    except pa.ArrowInvalid:
        if not is_uri(uri):  # fsspec would take it for a path of this machine
            raise
        import fsspec  # type: ignore[import-untyped]  # noqa: PLC0415  # only for the file systems that pyarrow lacks

        filesystem, base = fsspec.core.url_to_fs(uri)
        handler = fs.FSSpecHandler(filesystem)  # type: ignore[abstract]  # pyarrow's stub is wrong
        return fs.PyFileSystem(handler), base
