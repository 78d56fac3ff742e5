"""Sockets on which a process and those that it started listen while something runs."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import psutil

LOOK_EVERY_S = 0.5
"""Each look reads all processes, which takes CPU time from them; those that listen do so for many seconds."""


@contextlib.contextmanager
def watch_sockets() -> Iterator[set[tuple[int, str, str]]]:
    """Collect process id, command line and address of each listening socket while this context is open."""
    this, done, seen = psutil.Process(), threading.Event(), set[tuple[int, str, str]]()

    def look() -> None:
        while not done.wait(LOOK_EVERY_S):
            seen.update(listening(this))

    watching = threading.Thread(target=look)
    watching.start()
    try:
        yield seen
    finally:
        done.set()
        watching.join()


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
