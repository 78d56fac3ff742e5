"""No other machine can reach a port that a local run opens."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from launches import training_flags
from prepared import write_shards

from pipeline import train

RANK = "RayTrainWorker"
"""Whose store for the ranks to meet torch lets listen everywhere, and has no setting for."""


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def listening(process: psutil.Process) -> Iterator[tuple[int, str, str]]:
    """Process, its name and address of each socket that a process, or one that it started, listens on.

    Clusters that other tests started on purpose, with `ray start`, do not belong to a local run.
    """
    elsewhere = {child.pid for start in process.children() if "start" in start.cmdline() for child in family(start)}
    for own in family(process):
        try:
            name = " ".join(own.cmdline())
            if own.pid in elsewhere:
                continue
            for connection in own.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN or (
                    connection.type == socket.SOCK_DGRAM and not connection.raddr
                ):
                    yield own.pid, name, connection.laddr.ip
        except psutil.Error:
            continue  # it has ended meanwhile


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


@pytest.mark.timeout(500)
@pytest.mark.usefixtures("ray_session")
def test_a_local_run_listens_on_loopback_alone(tmp_path: Path, measured) -> None:
    write_shards(tmp_path / "shards", {"train": 42, "test": 9})
    this, done, seen = psutil.Process(), threading.Event(), set()

    def look() -> None:
        while not done.wait(0.1):
            seen.update(listening(this))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        train.main(training_flags(tmp_path, "run", 2))
    finally:
        done.set()
        watching.join()
    assert any("gcs_server" in name for _, name, _ in seen)
    ranks = {pid for pid, name, _ in seen if RANK in name}
    assert ranks
    beyond = {(pid, address) for pid, _, address in seen if not is_loopback(address)}
    assert {pid for pid, _ in beyond} <= ranks, seen
    assert len(beyond) <= 1, beyond
    measured("security", processes=len({pid for pid, _, _ in seen}), ranks=len(ranks), beyond_loopback=len(beyond))
