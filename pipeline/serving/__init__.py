"""The old name of `pipeline.tracking.pyfunc`, which models registered before the move still name as their loader."""

from pipeline.tracking.pyfunc import _load_pyfunc

__all__ = ["_load_pyfunc"]
