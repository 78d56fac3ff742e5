"""Former name of `pipeline.tracking.pyfunc`: models that were registered before the move name it as their loader.

MLflow puts the copies of the packages that such a model carries first on the path. If this file runs nevertheless, the
current `pipeline` was imported before; the current `ast_core` must then come with it, not the model's old copy.
"""

import sys
from pathlib import Path

sys.path.insert(0, _root := str(Path(__file__).resolve().parents[2]))
try:
    from pipeline.tracking.pyfunc import _load_pyfunc
finally:
    sys.path.remove(_root)

__all__ = ["_load_pyfunc"]
