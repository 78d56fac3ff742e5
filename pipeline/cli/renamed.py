"""Commands that have another name now: they say so and stop."""

from __future__ import annotations

import sys


def folds() -> None:
    """Stop with the new name of `ast-folds`."""
    sys.exit("ast-folds was renamed: use ast-cross-validate, or python pipeline/cross_validate.py.")
