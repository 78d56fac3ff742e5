"""What workers of a local cluster print. Imported by each of them as it starts, so it imports nothing heavy."""

from __future__ import annotations

import logging


def quieten() -> None:
    """Keep Ray's running commentary out of the terminal; its warnings of our own workers come as errors.

    One of its actors would ask a local cluster's dashboard, which is not there, once a second and say so.
    """
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
