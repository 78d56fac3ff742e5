"""Read a few bytes at many places of a file, with few calls of the system."""

from __future__ import annotations

import os

_HEAD_BYTES, _WINDOW_BYTES = 1 << 12, 1 << 16
"""Bytes that are read at the beginning, which has the header of most files, and elsewhere."""


class FileWindow:
    """A part of an open file. Reading does not move the file's position.

    Args:
        descriptor: the open file.
        start: where the part begins. Places are counted from here.
        size: bytes of the part.
    """

    def __init__(self, descriptor: int, start: int, size: int) -> None:
        self.descriptor, self.start, self.size = descriptor, start, size
        self._content, self._place = os.pread(descriptor, min(size, _HEAD_BYTES), start), 0

    def read(self, place: int, count: int) -> bytes:
        """Return `count` bytes, or fewer at the end of the part."""
        offset = place - self._place
        if offset < 0 or offset + count > len(self._content):
            count = min(count, max(0, self.size - place))
            if not count:
                return b""
            wanted = min(max(count, _WINDOW_BYTES), self.size - place)
            self._content, self._place, offset = os.pread(self.descriptor, wanted, self.start + place), place, 0
        return self._content[offset : offset + count]
