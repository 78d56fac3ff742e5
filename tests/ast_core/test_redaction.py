"""Passwords and keys are hidden, and other texts stay unchanged."""

from __future__ import annotations

import pickle

import pytest

from ast_core.errors import DamagedError, UserError
from ast_core.redaction import holds_secret, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pw@db:5432/mlflow", "postgresql://me:***@db:5432/mlflow"),
        ("mysql+pymysql://me:p@w:x@db/m?charset=utf8", "mysql+pymysql://me:***@db/m?charset=utf8"),
        ("HTTP://:pw@host", "HTTP://:***@host"),
        ("at http://a:b@c/d and http://e:f@g.", "at http://a:***@c/d and http://e:***@g."),
        ("'s3://KEY:SECRET@bucket/x'", "'s3://KEY:***@bucket/x'"),
        ("s3://b/p?region=r&secret_key=x/y&scheme=http", "s3://b/p?region=r&secret_key=***&scheme=http"),
        ("http://s/f?X-Amz-Signature=ab&X-Amz-Date=1", "http://s/f?X-Amz-Signature=***&X-Amz-Date=1"),
        ("postgresql://h/db?user=a&password=b", "postgresql://h/db?user=a&password=***"),
        ("host=h password=pw user=a", "host=h password=*** user=a"),
    ],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    assert holds_secret(text)
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////work/mlflow.db", "http://mlflow:5000/#/models", "postgresql://me@db:5432/m", "s3://bucket/a@b:c",
        "models:/ast-demo@champion", "a:b@c", "https://example.org/?seed=3", "",
    ],
)  # fmt: skip
def test_texts_without_secrets_stay_unchanged(text: str) -> None:
    assert without_secrets(text) == text
    assert not holds_secret(text)


def test_secrets_are_hidden_in_nested_settings_and_in_errors() -> None:
    found = without_secrets({"a": {"b": ["http://u:pw@h", 1, None]}, "c": ("x", 2.0)})
    assert found == {"a": {"b": ["http://u:***@h", 1, None]}, "c": ("x", 2.0)}
    for kind in (UserError, DamagedError):
        error = pickle.loads(pickle.dumps(kind("MLflow at http://u:pw@h is away.")))
        assert str(error) == "MLflow at http://u:***@h is away."
        assert "pw" not in repr(error)
