"""Log messages of Ray's in worker processes. Every worker imports this module: keep its imports light."""

from __future__ import annotations

import logging


def quiet_ray_logs() -> None:
    """Keep Ray's log messages in this worker process out of the terminal.

    An error of a worker is not lost: Ray raises it in the driver, which reports it once.
    """
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
