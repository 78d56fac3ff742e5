"""Errors, grouped by who must act.

The program shows a `UserError` or `ClipError` as one sentence. Any other exception is a bug in this program.
"""

from __future__ import annotations

from ast_core.redaction import without_secrets


class UserError(Exception):
    """An error that the user must fix: a missing folder, a wrong setting, files that do not fit together.

    The text says what to do. It often repeats the text of another library, which may hold a URI with a password, so
    passwords are removed from it.
    """

    def __init__(self, text: str) -> None:
        super().__init__(without_secrets(text))


class ClipError(Exception):
    """An error in one clip. The clip goes to the rejects table, and the stage continues.

    Attributes:
        stage: `read`, `decode`, `resample` or `fbank`.
        reason: one sentence without the path, for a cell of a table.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason

    def __reduce__(self) -> tuple[type[ClipError], tuple[str, str]]:
        """Return how to pickle the error, so that both arguments reach another Ray process."""
        return (ClipError, (self.stage, self.reason))


class DamagedError(UserError):
    """A file whose bytes are not the ones that were written: a hash or size differs, or a marker is missing."""


class TakenOverError(UserError):
    """Another launch writes to the folder now; this one must stop."""


class NoRoomError(UserError):
    """A full disk. The text names the file, the bytes that it needs and the bytes that are free."""


class Preempted(Exception):  # noqa: N818  # nothing is wrong
    """A training that was asked to stop and stopped with all its steps on disk. Its supervisor starts it elsewhere."""


def require(condition: bool, sentence: str) -> None:
    """Raise `UserError(sentence)` unless `condition` holds."""
    if not condition:
        raise UserError(sentence)
