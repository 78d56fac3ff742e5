"""Settings that say how the lists of a source are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ast_core.config import DataConfig
from ast_core.storage.places import is_uri


@dataclass(frozen=True)
class Columns:
    """Columns that the user names, of Parquet files whose columns cannot be recognised; "" for those that can."""

    label: str = ""
    """Column of the labels."""
    audio: str = ""
    """Column of the recordings."""
    split: str = ""
    """Column of the splits' names."""

    @property
    def named(self) -> tuple[tuple[str, str], ...]:
        """Options that are set, and their columns."""
        given = {
            "--data.label-column": self.label,
            "--data.audio-column": self.audio,
            "--data.split-column": self.split,
        }
        return tuple((option, column) for option, column in given.items() if column)


@dataclass(frozen=True)
class SourceOptions:
    """Settings of a source besides its layout."""

    roots: Sequence[Path | str] = ()
    """Further folders in which listed files, or the targets of links, may lie; or one URI, in which they lie."""
    follow_links: bool = False
    """Whether links may lead anywhere."""
    group: str = ""
    """Column, or regular expression with one group, whose value is the group of a clip."""
    columns: Columns = Columns()
    """Columns of Parquet files that the user names."""
    label_names: str = ""
    """Path of a class_labels_indices.csv that fixes the names and the order of all classes; "" for none."""
    listings: Path | None = None
    """Folder in which the listings of archives in object stores are kept; None keeps none."""


def options_of(data: DataConfig, listings: Path | None = None) -> SourceOptions:
    """Return the options that the settings of a data set hold.

    Args:
        data: the settings.
        listings: folder in which the listings of archives in object stores are kept; None keeps none.
    """
    columns = Columns(data.label_column, data.audio_column, data.split_column)
    roots = [root if is_uri(root) else Path(root) for root in data.root]
    return SourceOptions(roots, data.follow_links, data.group, columns, data.label_names, listings)
