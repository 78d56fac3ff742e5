"""Write and read JSON files. The files that a run resumes from begin with the SHA-256 of their own lines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ast_core.errors import DamagedError, UserError
from ast_core.storage.atomic_files import atomic_write

SELF_HASH = "sha256_of_lines_below"
"""Key of the hash in a hashed file's first line."""


def sha256_of_json(value: Any) -> str:
    """Return the hex SHA-256 of a JSON value in its canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Commit a JSON value, indented and with sorted keys."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Commit a text, as UTF-8."""
    content = text.encode()
    with atomic_write(path, len(content)) as temporary:
        temporary.write_bytes(content)


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file's value; `what` names the file in errors.

    Raises:
        UserError: the file is missing.
        DamagedError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what} is missing: {path}.") from None
    except (ValueError, RecursionError) as error:  # text that is not UTF-8 also raises ValueError
        raise DamagedError(f"{what} is damaged: {path} is not JSON ({error}).") from error


def write_hashed_json(path: Path, value: dict[str, Any]) -> None:
    """Commit a non-empty JSON object whose first line holds the SHA-256 of the lines below it.

    Other JSON readers see the hash as one more key. `tail -n +2 FILE | sha256sum` checks it without this program.
    """
    lines = (
        f"{json.dumps(value, indent=1)[2:]}\n".encode()
    )  # keeps the order of the keys, which a resumed run's metrics need
    content = _first_line(hashlib.sha256(lines).hexdigest()) + lines
    with atomic_write(path, len(content)) as temporary:
        temporary.write_bytes(content)


def read_hashed_json(path: Path, what: str) -> dict[str, Any]:
    """Read what `write_hashed_json` wrote; `what` names the file in errors.

    Raises:
        UserError: the file is missing.
        DamagedError: a byte of the file changed.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{what} is missing: {path}.") from None
    return parse_hashed_json(content, f"{what} {path}")


def parse_hashed_json(content: bytes, name: str) -> dict[str, Any]:
    """Parse the bytes of a file that `write_hashed_json` wrote.

    Args:
        content: bytes of the file.
        name: name and place of the file for errors.

    Raises:
        DamagedError: a byte of the file changed; the text has both hashes.
    """
    first, end, lines = content.partition(b"\n")
    found = hashlib.sha256(lines).hexdigest()
    if first + end != _first_line(found):
        noted = first[:120].decode(errors="backslashreplace")
        says = f"its first line says {noted!r}"
        raise DamagedError(f"{name} is damaged: its lines have sha256 {found}, {says}. Fetch or make it again.")
    try:
        value: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{name} is damaged: it is not JSON ({error}). Fetch or make it again.") from error
    return {key: own for key, own in value.items() if key != SELF_HASH}


def _first_line(sha256: str) -> bytes:
    return f'{{"{SELF_HASH}": "{sha256}",\n'.encode()
