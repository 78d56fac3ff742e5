"""The rule about lengths in headers: which are unknown, and which are a promise that the file must keep."""

from __future__ import annotations

from ast_core.errors import ClipError

STREAMED = 0x7F00_0000
"""The smallest length that programs write if they cannot know it: `sox` into a pipe. Others write up to 2^64 - 1."""


def is_unknown(length: int, available: int) -> bool:
    """Return whether a length in a header stands for "to the end of the file", of which `available` is left."""
    return length == 0 or (length >= STREAMED and length > available)


def truncated(found: int, promised: int, unit: str) -> ClipError:
    """Return the error for a file that is provably shorter than its header says."""
    return ClipError("decode", f"truncated: {found} of {promised} {unit}")
