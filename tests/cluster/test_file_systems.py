"""File systems are opened once for each listing of a source."""

from __future__ import annotations

import pytest

from ast_core.storage.file_systems import forget_file_systems, locate_file


def endpoint(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")


def test_a_listing_after_another_endpoint_opens_another_file_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of a notebook corrects an endpoint and tries again."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    endpoint(monkeypatch, 1)
    wrong, name = locate_file("s3://bucket/folder/clip.flac")
    assert locate_file("s3://bucket/folder/other.flac")[0] is wrong
    endpoint(monkeypatch, 2)
    forget_file_systems()
    right, same_name = locate_file("s3://bucket/folder/clip.flac")
    assert right is not wrong
    assert not right.equals(wrong)
    assert name == same_name == "bucket/folder/clip.flac"
