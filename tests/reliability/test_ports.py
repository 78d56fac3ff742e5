"""No other machine can reach a port that a local run opens."""

from __future__ import annotations

import ipaddress

import pytest
from main_jobs import MainJob

RANK = "RayTrainWorker"
"""Whose store for the ranks to meet torch lets listen everywhere, and has no setting for."""


MEMBERS = 2
"""Trainings of the main job."""


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


@pytest.mark.timeout(500)
def test_a_local_run_listens_on_loopback_alone(main_job: MainJob, measured) -> None:
    seen = main_job.sockets
    assert any("gcs_server" in name for _, name, _ in seen)
    ranks = {pid for pid, name, _ in seen if RANK in name}
    assert ranks
    beyond = {(pid, address) for pid, _, address in seen if not is_loopback(address)}
    assert {pid for pid, _ in beyond} <= ranks, seen
    assert len(beyond) <= MEMBERS, beyond
    measured("security", processes=len({pid for pid, _, _ in seen}), ranks=len(ranks), beyond_loopback=len(beyond))
