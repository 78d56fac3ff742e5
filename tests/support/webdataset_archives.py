"""WebDataset archives, with a few bytes in place of the recordings."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Member = tuple[str, bytes]


def flac(number: int = 0) -> bytes:
    """Return a recording that no decoder sees."""
    return b"fLaC" + bytes([number % 256]) * (20 + number)


def sample(key: str, labels: Any, suffix: str = "flac", number: int = 0) -> list[Member]:
    """Return a recording and its labels as JSON."""
    return [(f"{key}.{suffix}", flac(number)), (f"{key}.json", json.dumps({"labels": labels}).encode())]


def named(contents: Mapping[str, bytes], key: str) -> list[Member]:
    """Return the members with a key."""
    return [(name, content) for name, content in contents.items() if name.partition(".")[0] == key]


def pack(members: Iterable[Member | tarfile.TarInfo], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return the bytes of an archive; members without bytes are headers of their own."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return out.getvalue()


def write(path: Path, members: Iterable[Member | tarfile.TarInfo], form: int = tarfile.USTAR_FORMAT) -> Path:
    """Write an archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pack(members, form))
    return path
