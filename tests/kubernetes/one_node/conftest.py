"""Fixtures of the tests on a real Kubernetes, which only `make test-kubernetes` collects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from one_node import Cluster, use_cluster


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return None if config.getoption("--kubernetes") else True


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Use the cluster of KUBECONFIG, or one node on this machine."""
    with use_cluster() as started:
        yield started
