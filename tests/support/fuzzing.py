"""Mutations of good inputs from one random generator: blind ones, and ones that know the structure."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

LENGTHS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1)
"""Values for length fields of four and eight bytes."""
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 31, 1 << 63, 1 << 2000, 0.5, math.nan, math.inf, -math.inf, 1e308,
    "", "x", "\0", "../x", "/etc/passwd",
    "\ud800", "é" * 50, "1e999", "-", "9" * 5000, [], {}, [[]], [None], {"": None}, ["a", "a"], [1.5] * 1000,
)  # fmt: skip
TEXTS = (
    "\0", "\r", "\n", "\r\n", '"', "'", ",", ";", "\t", "\ufeff", "\u2028", "#", "=", "[", "]", "{", "}", "../", "/",
    "\\", "%s", "-1", "1e999", "nan", "9" * 5000, "x" * 200_000, "\ud800", "é", "--help", "--model", ".",
)  # fmt: skip


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Make one to four blind changes: flipped bits, other bytes, cuts, copies of pieces, length fields."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(out) + 1)
        kind = chance.randrange(7)
        if kind == 0 and out:
            out[place % len(out)] ^= 1 << chance.randrange(8)
        elif kind == 1:
            out[place : place + chance.randint(1, 8)] = chance.randbytes(chance.randint(0, 8))
        elif kind == 2:
            del out[place:]
        elif kind == 3:
            del out[place : place + chance.randint(1, 64)]
        elif kind == 4:
            start = chance.randrange(len(out) + 1)
            out[place:place] = out[start : start + chance.randint(1, 256)]
        else:
            size, order = chance.choice((2, 4, 8)), chance.choice(("little", "big"))
            value = chance.choice(LENGTHS) & ((1 << 8 * size) - 1)
            place = chance.randrange(min(len(out), 256) + 1) if kind == 5 else place  # most headers are at the start
            out[place : place + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
    return bytes(out)


def mutated_text(data: bytes, chance: random.Random) -> bytes:
    """Change some characters or lines of a text; sometimes change it blindly."""
    if chance.random() < 0.3:
        return mutated(data, chance)
    lines = data.decode("utf-8", "surrogatepass").split("\n")
    for _ in range(chance.randint(1, 3)):
        number = chance.randrange(len(lines))
        kind = chance.randrange(4)
        if kind == 0:
            lines.insert(number, chance.choice(lines))
        elif kind == 1 and len(lines) > 1:
            del lines[number]
        else:
            place = chance.randrange(len(lines[number]) + 1)
            rest = lines[number][place + chance.choice((0, 0, 1, 5)) :]
            lines[number] = lines[number][:place] + chance.choice(TEXTS) + rest
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutated_value(value: Any, chance: random.Random) -> Any:
    """Change one place of a JSON value: replace, remove, repeat or rename it."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.1:
        return chance.choice(VALUES)
    keys: Sequence[Any] = list(value) if isinstance(value, dict) else range(len(value))
    key = chance.choice(keys)
    out: Any = value.copy()
    kind = chance.randrange(8)
    if kind == 0:
        del out[key]
    elif kind == 1 and isinstance(out, list):
        out.append(value[key])
    elif kind == 1:
        out[chance.choice(("", "x", "__class__", f"{key}"[:-1]))] = out.pop(key)
    else:
        out[key] = mutated_value(value[key], chance)
    return out


def mutated_json(data: bytes, chance: random.Random) -> bytes:
    """Change a JSON text as a value or as a text."""
    if chance.random() < 0.3:
        return mutated_text(data, chance)
    value = json.loads(data)
    for _ in range(chance.randint(1, 2)):
        value = mutated_value(value, chance)
    return json.dumps(value).encode()


def inputs(
    seeds: Sequence[bytes], mutate: Callable[[bytes, random.Random], bytes], seed: str, seconds: float
) -> Iterator[bytes]:
    """Yield the seeds, then mutations of them and of mutations, until the time is over."""
    chance, started = random.Random(seed), time.monotonic()
    yield from seeds
    last = seeds[0]
    while time.monotonic() - started < seconds:
        base = last if chance.random() < 0.2 and len(last) < 1 << 20 else chance.choice(seeds)
        try:
            last = mutate(base, chance)
        except ValueError:  # bytes that are not JSON or text any more can only be changed blindly
            last = mutated(base, chance)
        yield last


def corpus(folder: Path, target: str) -> list[bytes]:
    """Return the inputs that once crashed a target."""
    return [path.read_bytes() for path in sorted((folder / target).glob("*"))]
