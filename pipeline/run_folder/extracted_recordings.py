"""Save recordings out of Parquet files, tar archives and object stores, for the user to listen to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from ast_core.dataset.clips import Clip
from ast_core.dataset.contents.clip_contents import read_contents
from ast_core.storage.atomic_files import atomic_write

_BEGINNINGS = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3", b"\xff\xfb": ".mp3"}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def extract_recordings(clips: Sequence[Clip], audio_column: str, folder: Path) -> tuple[Path, ...]:
    """Return the paths of clips' recordings. Those that are not local files are saved to a folder first.

    Clips whose recording cannot be read are left out.

    Args:
        clips: a few clips; memory holds one recording at a time.
        audio_column: column of the recordings in Parquet files.
        folder: folder to save to; it is made if something is saved.
    """
    paths = []
    for clip, content in read_contents(clips, audio_column):
        if isinstance(content, str):
            paths.append(Path(content))
        elif isinstance(content, bytes):
            path = folder / _make_name(clip.clip_id, content)
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path, len(content)) as temporary:
                temporary.write_bytes(content)
            paths.append(path)
    return tuple(paths)


def _make_name(clip_id: str, content: bytes) -> str:
    """Return a file name that every disk takes, with the suffix of the recording's format if it is known."""
    suffix = next((suffix for start, suffix in _BEGINNINGS.items() if content.startswith(start)), "")
    safe = _UNSAFE.sub("_", clip_id)[:100].lstrip(".")
    if safe != clip_id:  # two ids must not share a file
        safe = f"{safe}-{hashlib.sha256(clip_id.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
    return safe if suffix and safe.lower().endswith(suffix) else safe + suffix
