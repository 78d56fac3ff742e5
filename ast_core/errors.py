"""Errors by who must act. A `UserError` or `ClipError` is shown as one sentence; any other is a bug of ours."""

from __future__ import annotations

from ast_core.redaction import without_secrets


class UserError(Exception):
    """The user must act: a missing folder, a wrong setting, a mismatch of artefacts. The text says what to do.

    Texts of other libraries are often part of it, and URIs part of those: passwords in them are left out.
    """

    def __init__(self, text: str) -> None:
        super().__init__(without_secrets(text))


class ClipError(Exception):
    """One clip cannot be used. It goes to the rejects table; the stage goes on.

    Attributes:
        stage: `read`, `decode`, `resample` or `fbank`.
        reason: one sentence without the path, fit for a table.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason

    def __reduce__(self) -> tuple[type[ClipError], tuple[str, str]]:
        """Both arguments survive the trip between Ray's processes."""
        return (ClipError, (self.stage, self.reason))


class DamagedError(UserError):
    """A file's bytes are not what was committed: a hash or a size differs, or a marker is missing."""


class NoRoomError(UserError):
    """A disk is full. The text says which file, the bytes that it needs, and those that are free."""


class Preempted(Exception):  # noqa: N818  # nothing is wrong
    """A training was asked to leave and left: all its steps are on disk. Whoever supervises it starts it elsewhere."""


def require(condition: bool, sentence: str) -> None:
    """Raise `UserError(sentence)` unless `condition` holds."""
    if not condition:
        raise UserError(sentence)
