"""Types of a data set's list: `Clip`, `Manifest`, and the counts of files that are no clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ast_core.errors import require


@dataclass(frozen=True, slots=True)
class Clip:
    """One listed recording.

    Attributes:
        clip_id: id, unique in its manifest.
        path: absolute path or URI of its file; "" if the file does not exist.
        labels: indices into `Manifest.labels`, ascending.
        split: name of its split, which can also be a folder's name.
        start_s: place in the file where the clip begins.
        end_s: place where it ends; None is the end of the file.
        group: id of its speaker, site or source recording, all of whose clips share a split; "" for a group of its own.
        member: place of the recording in a file that holds many: of Parquet its row group and its row in that group, of
            a tar archive its first byte and its number of bytes. None if the file is the recording.
    """

    clip_id: str
    path: str
    labels: tuple[int, ...]
    split: str
    start_s: float = 0.0
    end_s: float | None = None
    group: str = ""
    member: tuple[int, int] | None = None

    @property
    def is_segment(self) -> bool:
        """Whether the clip is a part of its file."""
        return self.start_s > 0 or self.end_s is not None


@dataclass(frozen=True)
class UnlistedFiles:
    """Files or folders that are no clips, or not only one clip, for one reason."""

    IGNORES_UNKNOWN_KEYS: ClassVar[bool] = True
    reason: str
    """Words that follow `files are`, such as `not audio`."""
    count: int
    """Number of them."""
    examples: tuple[str, ...]
    """Names of the first ones, relative to the source, printable."""
    noun: str = "file"
    """Word for one of them: `file`, `folder` or `clip`."""

    def __post_init__(self) -> None:
        """Check the count."""
        require(self.count >= 0, f"the count of {self.reason[:99]!a} is {self.count}; give 0 or more.")

    @property
    def sentence(self) -> str:
        """The count, the reason and the examples."""
        what = f"{self.noun} is" if self.count == 1 else f"{self.noun}s are"
        return f"{self.count} {what} {self.reason}, for example {', '.join(self.examples)}"


@dataclass(frozen=True)
class Manifest:
    """All clips and labels of a data set."""

    clips: tuple[Clip, ...]
    labels: tuple[str, ...]
    """Label names in the order of the indices in `Clip.labels`."""
    single_label: bool
    """Whether every clip has exactly one label."""
    layout: str
    """Layout that the data set was read as."""
    unlisted: tuple[UnlistedFiles, ...] = ()
    """Files of the source that are no clips, by reason."""
    audio_column: str = ""
    """Column of the recordings if they are in Parquet files."""
    notes: tuple[str, ...] = ()
    """Sentences about the list that the user should read, although nothing is wrong with it."""
