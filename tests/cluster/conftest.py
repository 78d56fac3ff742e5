"""An object store, and a cluster of nodes that share nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nodes
import pytest
import servers


@pytest.fixture(scope="session")
def s3_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start an S3 server on loopback, which this process reaches through the usual variables."""
    with (
        servers.object_store("127.0.0.1", tmp_path_factory.mktemp("s3") / "log") as environment,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nodes.Nodes]:
    """Start a head without CPUs, two nodes of one CPU, and an S3 server that all of them and this process reach."""
    reason = nodes.why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    with (
        nodes.Nodes(folder) as made,
        servers.object_store(made.gateway, folder / "s3.log") as environment,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        made.start(environment)
        made.add("a")
        made.add("b")
        yield made


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Return a URI of this test's own."""
    return f"s3://{servers.BUCKET}/{tmp_path.name}"


@pytest.fixture(params=["s3", "file"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a place of this test's own, in each kind of store."""
    if request.param == "file":
        return f"file://{tmp_path / 'stored'}"
    request.getfixturevalue("s3_store")
    return f"s3://{servers.BUCKET}/{tmp_path.name}"
