"""Bearer tokens of clients, each with a limit of concurrent requests."""

from __future__ import annotations

import contextlib
import hmac
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from ast_core.errors import UserError, require
from pipeline.serving.refusals import RETRY_AFTER_S, RefusedError

DEFAULT_LIMIT = 16
"""Concurrent requests of a token whose line has no limit."""
SUBPROTOCOL = "bearer."
"""Beginning of the WebSocket subprotocol that holds a token, for browsers, which cannot set headers."""
SHORTEST = 16
"""Characters of a token at least."""
_TOKEN = re.compile(r"[A-Za-z0-9._~-]+")
"""Characters that a header and a subprotocol may have."""
_LINE = "Each line is NAME TOKEN [LIMIT], separated by spaces."


@dataclass(frozen=True)
class Client:
    """One line of the file of tokens."""

    name: str
    token: str
    limit: int = DEFAULT_LIMIT
    """Concurrent requests."""


def read_tokens(file: str) -> tuple[Client, ...]:
    """Read the file of tokens; no file, no clients.

    Args:
        file: path of the file; empty if no client needs a token.

    Raises:
        UserError: the file is missing, readable by other users, or has a wrong line. No message holds a token.
    """
    if not file:
        return ()
    path = Path(file)
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UserError(f"The file of tokens {file} cannot be read: {reason}. Give a text file.") from None
    require(
        not mode & 0o007,
        f"Every user of this machine may read the file of tokens {file}; run `chmod 600 {file}`.",
    )
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    clients = tuple(_read_line(file, number, words) for number, words in lines if words and words[0][0] != "#")
    require(bool(clients), f"The file of tokens {file} has no token. {_LINE}")
    for what, values in (("name", [own.name for own in clients]), ("token", [own.token for own in clients])):
        require(len(set(values)) == len(values), f"The file of tokens {file} has one {what} twice; make them differ.")
    return clients


def _read_line(file: str, number: int, words: list[str]) -> Client:
    where = f"Line {number} of the file of tokens {file}"
    require(len(words) in {2, 3}, f"{where} has {len(words)} words. {_LINE}")
    require(
        len(words[1]) >= SHORTEST and _TOKEN.fullmatch(words[1]) is not None,
        f"{where} has a token that is too short or has other characters than letters, digits, and . _ ~ -; make one "
        "with `openssl rand -hex 32`.",
    )
    if len(words) == 2:
        return Client(words[0], words[1])
    limit = int(words[2]) if re.fullmatch(r"[0-9]{1,6}", words[2]) else 0
    require(limit >= 1, f"{where} has the limit {words[2][:40]!r}; give a number of concurrent requests, at least 1.")
    return Client(words[0], words[1], limit)


class TokenGate:
    """Lets requests with a known token in, up to the limit of each token; without tokens, every request.

    Args:
        clients: clients with their tokens.
    """

    def __init__(self, clients: tuple[Client, ...]) -> None:
        self._clients = clients
        self._running: Counter[str] = Counter()

    @contextlib.contextmanager
    def admit(self, headers: Mapping[str, str]) -> Iterator[None]:
        """Count a request of a client while the context is open.

        Args:
            headers: headers of the request or WebSocket, by names in small letters.

        Raises:
            RefusedError: 401 without a known token, 429 if the client has as many requests as it may.
        """
        if not self._clients:
            yield
            return
        client = self._find(headers)
        if self._running[client.name] >= client.limit:
            raise RefusedError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"This token has {client.limit} requests at the same time, which is its limit; wait for an answer.",
                RETRY_AFTER_S,
            )
        self._running[client.name] += 1
        try:
            yield
        finally:
            self._running[client.name] -= 1

    def _find(self, headers: Mapping[str, str]) -> Client:
        """Return the client of a request; every token is compared, so the time says nothing about them."""
        given = find_token(headers).encode()
        same = [own for own in self._clients if hmac.compare_digest(own.token.encode(), given)]
        if not same:
            sentence = "This server wants a token: send the header `Authorization: Bearer TOKEN` with a valid one."
            raise RefusedError(HTTPStatus.UNAUTHORIZED, sentence)
        return same[0]


def find_token(headers: Mapping[str, str]) -> str:
    """Return the token in the header `Authorization`, or in a subprotocol of a WebSocket; else an empty text."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    offered = [own.strip() for own in headers.get("sec-websocket-protocol", "").split(",")]
    return next((own.removeprefix(SUBPROTOCOL) for own in offered if own.startswith(SUBPROTOCOL)), "")
