"""Tokens: the file that holds them, the requests that they let in, and their limits."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path

import pytest

from ast_core.errors import UserError
from pipeline.serving.client_tokens import DEFAULT_LIMIT, Client, TokenGate, find_token, read_tokens
from pipeline.serving.refusals import RefusedError

SECRET, OTHER = "s3cret-token-of-alice", "another.token~of_bob"


def write(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_the_file_has_a_client_a_line(tmp_path: Path) -> None:
    text = f"# clients\n\nalice {SECRET} 2\nbob\t{OTHER}\n"
    assert read_tokens(write(tmp_path / "tokens", text)) == (
        Client("alice", SECRET, 2), Client("bob", OTHER, DEFAULT_LIMIT),
    )  # fmt: skip
    assert read_tokens("") == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no token"),
        (f"alice {SECRET} 2 3\n", "Line 1 of the file of tokens .* has 4 words"),
        (f"{SECRET}\n", "has 1 words"),
        ("alice short\n", "too short"),
        (f"alice {SECRET}ü\n", "other characters"),
        (f"alice {SECRET} 0\n", "has the limit '0'"),
        (f"alice {SECRET} many\n", "has the limit 'many'"),
        (f"alice {SECRET}\nalice {OTHER}\n", "one name twice"),
        (f"alice {SECRET}\nbob {SECRET}\n", "one token twice"),
    ],
)
def test_a_wrong_file_is_refused_without_showing_a_token(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as found:
        read_tokens(write(tmp_path / "tokens", text))
    assert SECRET not in str(found.value)


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="chmod 600"):
        read_tokens(write(tmp_path / "tokens", f"alice {SECRET}\n", 0o644))
    with pytest.raises(UserError, match="cannot be read"):
        read_tokens(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ({"authorization": f"Bearer {SECRET}"}, SECRET),
        ({"authorization": f"bearer  {SECRET} "}, SECRET),
        ({"sec-websocket-protocol": f"audio, bearer.{SECRET}"}, SECRET),
        ({"authorization": f"Basic {SECRET}"}, ""),
        ({}, ""),
    ],
)
def test_a_token_is_found_in_a_header_or_a_subprotocol(headers: dict[str, str], token: str) -> None:
    assert find_token(headers) == token


@pytest.mark.parametrize("token", ["", SECRET[:-1], SECRET + "x", "ü", SECRET.upper()])
def test_other_tokens_are_refused(token: str) -> None:
    gate = TokenGate((Client("alice", SECRET),))
    with pytest.raises(RefusedError) as found, gate.admit({"authorization": f"Bearer {token}"}):
        pass
    assert found.value.status == HTTPStatus.UNAUTHORIZED
    assert found.value.headers == {"WWW-Authenticate": "Bearer"}


def test_each_token_has_its_own_limit() -> None:
    gate = TokenGate((Client("alice", SECRET, 2), Client("bob", OTHER, 1)))
    alice, bob = {"authorization": f"Bearer {SECRET}"}, {"authorization": f"Bearer {OTHER}"}
    with gate.admit(alice), gate.admit(alice), gate.admit(bob):
        with pytest.raises(RefusedError) as found, gate.admit(alice):
            pass
        assert found.value.status == HTTPStatus.TOO_MANY_REQUESTS
        assert "Retry-After" in found.value.headers
    with gate.admit(alice):
        pass
