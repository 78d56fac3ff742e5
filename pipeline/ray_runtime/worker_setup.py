"""How workers of a local cluster start. Imported by each of them, so it imports nothing heavy."""

from __future__ import annotations

import logging


def quiet_ray_logs() -> None:
    """Keep Ray's commentary out of the terminal.

    An error of a worker is not lost: it comes back to the driver, which tells it once.
    """
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
