"""Show libsndfile a corrected file without a copy: parts of an open file, and bytes in place of a header."""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Sequence

_TAIL = 128
"""Bytes that mpg123 reads at the end of a file, where an ID3v1 tag may be."""


class ByteView:
    """A read-only file that consists of bytes and of ranges of an open file, whose position does not move.

    Args:
        descriptor: the open file.
        pieces: bytes, and ranges of places in the file, in the order in which they are read.
        claimed_size: the size that `seek` reports. Decoders that estimate a length from the size do not stop too early
            if they see a larger one. 0 is the true size.
    """

    def __init__(self, descriptor: int, pieces: Sequence[bytes | range], claimed_size: int = 0) -> None:
        self._descriptor, self._pieces = descriptor, [piece for piece in pieces if len(piece)]
        self._starts = [0, *itertools.accumulate(len(piece) for piece in self._pieces)]
        self._claimed_size = max(claimed_size, self._starts[-1])
        self._place = 0
        self.error: OSError | None = None
        """The last error of the disk. libsndfile takes a failed callback for the end of the file."""

    def tell(self) -> int:
        """Return the current place."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._claimed_size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def read(self, count: int = -1) -> bytes:
        """Read at most `count` bytes; all that is left if it is negative."""
        left = max(0, self._starts[-1] - self._place)
        buffer = bytearray(left if count < 0 else min(count, left))
        return bytes(buffer[: self.readinto(buffer)])

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fill a buffer, and return the number of bytes, which is smaller only at the end."""
        target, done = memoryview(buffer), 0
        if self._place >= self._starts[-1]:
            return self._read_claimed(target)
        try:
            while done < len(target) and (count := self._read_piece(target[done:])):
                done += count
                self._place += count
        except OSError as error:
            self.error = error
        return done

    def _read_piece(self, target: memoryview) -> int:
        """Read from the piece at the current place, and return the number of bytes; 0 at the end."""
        number = bisect.bisect_right(self._starts, self._place) - 1
        if number == len(self._pieces):
            return 0
        piece, offset = self._pieces[number], self._place - self._starts[number]
        count = min(len(target), len(piece) - offset)
        if isinstance(piece, range):
            return os.preadv(self._descriptor, [target[:count]], piece[offset])
        target[:count] = piece[offset : offset + count]
        return count

    def _read_claimed(self, target: memoryview) -> int:
        """Read zeros where mpg123 looks for a tag; elsewhere behind the true end there is nothing."""
        if not self._claimed_size > self._place >= self._claimed_size - _TAIL:
            return 0
        count = min(len(target), self._claimed_size - self._place)
        target[:count] = bytes(count)
        self._place += count
        return count
