"""An object store, and a cluster of nodes that share nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import nodes
import pytest
import servers

from ast_core.storage.file_systems import forget_file_systems


@contextlib.contextmanager
def reached(environment: Mapping[str, str]) -> Iterator[None]:
    """Set the variables with which this process reaches an S3 server, for the running test only.

    Two servers may run at the same time. A fixture that lives longer than a test must not set these variables: the
    fixture that ends first would take them from the other one.
    """
    with pytest.MonkeyPatch.context() as patch:  # a patch of its own, which a test's `monkeypatch.undo` leaves alone
        for name, value in environment.items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        forget_file_systems()
        yield


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start an S3 server on loopback; return the variables with which clients reach it."""
    with servers.object_store("127.0.0.1", tmp_path_factory.mktemp("s3") / "log") as environment:
        yield environment


@pytest.fixture
def s3_store(s3_server: dict[str, str]) -> Iterator[dict[str, str]]:
    """Let this test's process reach the S3 server on loopback through the usual variables."""
    with reached(s3_server):
        yield s3_server


@pytest.fixture(scope="module")
def started_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nodes.Nodes]:
    """Start a head without CPUs, two nodes of one CPU, and an S3 server that all of them reach."""
    reason = nodes.why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    with (
        nodes.Nodes(folder) as made,
        servers.object_store(made.gateway, folder / "s3.log") as environment,
    ):
        made.start(environment)
        made.add("a")
        made.add("b")
        yield made


@pytest.fixture
def cluster(started_nodes: nodes.Nodes) -> Iterator[nodes.Nodes]:
    """Return the cluster of nodes; this test's process reaches its S3 server, too."""
    with reached(started_nodes.environment):
        yield started_nodes


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
