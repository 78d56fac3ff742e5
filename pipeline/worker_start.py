"""How workers of a local cluster start. Imported by each of them, so it imports nothing heavy."""

from __future__ import annotations

import logging
import os

import ray


def settle() -> None:
    """Keep Ray's commentary out of the terminal, and tell Ray's own tools which cluster this is.

    An error of a worker is not lost: it comes back to the driver, which tells it once.

    One of Ray Train's actors looks for the cluster's dashboard once a second. There is none here: it would say so each
    time, and beside a second local cluster it would die for not knowing which of the two is its own.
    """
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
