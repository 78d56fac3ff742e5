"""Names of the files that `predict` writes for each recording."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def name_recordings(files: Sequence[Path]) -> dict[Path, Path]:
    """Return a relative path for each recording, to which a suffix is added; no two are the same.

    It is the name of the recording with its suffix, so those of a.wav and a.mp3 differ. Recordings of the same name
    have their files in folders as the recordings are.
    """
    absolute = [Path(os.path.normpath(path.absolute())) for path in files]  # `..` would lead out of the folder
    counts = Counter(path.name for path in absolute)
    common = os.path.commonpath([path.parent for path in absolute])
    names = [Path(path.name) if counts[path.name] == 1 else path.relative_to(common) for path in absolute]
    return dict(zip(files, names, strict=True))
