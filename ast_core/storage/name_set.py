"""A set of millions of names in 16 bytes a name."""

from __future__ import annotations

import hashlib

import numpy as np

DIGEST_BYTES = 16
"""Bytes that are kept of a name: two of a billion names have the same ones with a probability of 10^-21."""
_RECENT = 1 << 15
"""Names that are kept in a set of Python before they are merged into the array."""


class NameSet:
    """Names, as their hashes: a sorted array, and a small set of the recent ones."""

    def __init__(self) -> None:
        self._sorted = np.empty(0, f"S{DIGEST_BYTES}")
        self._recent: set[bytes] = set()

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._sorted) + len(self._recent)

    def __contains__(self, name: str) -> bool:
        """Return whether a name was added."""
        return self._has(_hash_name(name))

    def add(self, name: str) -> bool:
        """Add a name; return whether it is new."""
        digest = _hash_name(name)
        if self._has(digest):
            return False
        self._recent.add(digest)
        if len(self._recent) >= _RECENT:
            self._sorted = np.sort(np.concatenate([self._sorted, np.array(list(self._recent), self._sorted.dtype)]))
            self._recent.clear()
        return True

    def _has(self, digest: bytes) -> bool:
        if digest in self._recent:
            return True
        place = np.searchsorted(self._sorted, np.bytes_(digest)) if len(self._sorted) else 0
        return bool(place < len(self._sorted) and self._sorted[place] == digest.rstrip(b"\0"))


def _hash_name(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
