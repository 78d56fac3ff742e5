"""Refused requests: the status of HTTP, and a sentence that says what to do."""

from __future__ import annotations

from http import HTTPStatus

RETRY_AFTER_S = 1
"""Seconds after which a client of a busy server should try again."""


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: status of HTTP.
        sentence: what is wrong, and what to do.
        retry_after_s: seconds after which the client may send the request again; 0 if it must change the request.
    """

    def __init__(self, status: HTTPStatus, sentence: str, retry_after_s: int = 0) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        found = {"Retry-After": str(self.retry_after_s)} if self.retry_after_s else {}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == HTTPStatus.UNAUTHORIZED else {})


def overload(sentence: str) -> RefusedError:
    """Return the refusal of a server that is busy now."""
    return RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, sentence, RETRY_AFTER_S)
