"""Read WebDataset archives: tar files with a recording and its labels in members of the same key.

Local archives are read from header to header, those in an object store in one pass that keeps a listing. A clip's
member is (first byte, number of bytes).
"""

from __future__ import annotations

from collections.abc import Iterable

from ast_core.config import Layout
from ast_core.dataset.archives.tar_listing import list_archives
from ast_core.dataset.archives.tar_samples import SampleReader
from ast_core.dataset.clips import Manifest
from ast_core.dataset.label_names import LABEL_LIST, LabelNames, read_label_names
from ast_core.dataset.parquet.parquet_labels import RowLabels
from ast_core.dataset.problems import EXAMPLES, Problems, UnlistedCounts, make_printable, shorten
from ast_core.dataset.source_files import SourceFile, SourceFiles, find_source_files
from ast_core.dataset.source_options import SourceOptions
from ast_core.dataset.split_names import find_audioset_split, find_split
from ast_core.errors import UserError, require
from ast_core.storage.file_systems import is_uri, join_uri

SUFFIX = ".tar"
COMPRESSED_SUFFIXES = (
    ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4",
)  # fmt: skip
"""Suffixes of compressed archives, which are refused: their members cannot be found without unpacking them."""
_UNPACK = (
    "compressed archives are not read, because a recording in them cannot be found by seeking: unpack it to a .tar"
)
_TRAINING = {"balanced_train", "unbalanced_train"}


def load_webdataset(place: str, options: SourceOptions, problems: Problems) -> Manifest:
    """Read the clips of WebDataset archives.

    A sample is a recording and its labels, in members with the same key: the name up to the first dot of its base name.
    Labels are those of KEY.json (the key `label` or `labels`), else of KEY.cls, else of KEY.txt. A clip's id is
    ARCHIVE/KEY, where ARCHIVE is the archive's path below the source without `.tar`: keys often repeat in each archive.
    Its split is that of its archive's name or folder; with folders such as `bal_train`, that of AudioSet's lists. The
    names of labels are sorted, integers by number.

    Raises:
        UserError: there are no such archives, or only compressed ones, or an option does not fit them.
    """
    return _load(place, options, problems, audioset=False)


def load_audioset_archives(place: str, options: SourceOptions, problems: Problems) -> Manifest:
    """Read a copy of AudioSet in WebDataset archives, as `load_webdataset` does.

    The differences: splits are those of Google's lists, by the folders or archives `bal_train`, `unbal_train` and
    `eval`. The clip id is the key, which is the video's id. Names and order of the labels are those of
    `data.label_names`, else those of class_labels_indices.csv in the source's folder, without the classes of no clip.

    Raises:
        UserError: as `load_webdataset`.
    """
    return _load(place, options, problems, audioset=True)


def detect_archives(place: str, options: SourceOptions) -> Layout | None:
    """Return `audioset` or `webdataset` if a source has tar archives and no Parquet files, else None.

    Raises:
        UserError: a URI does not exist, or its store does not answer.
    """
    source = find_source_files(place, (SUFFIX, *COMPRESSED_SUFFIXES, ".parquet"), options, Problems())
    names = [file.name for file in source.files]
    if not any(_is_archive(name) for name in names) or any(name.lower().endswith(".parquet") for name in names):
        return None
    return "audioset" if _has_training_lists(names) else "webdataset"


def _has_training_lists(names: Iterable[str]) -> bool:
    """Return whether a folder or file has the name of one of AudioSet's training lists."""
    return any(find_audioset_split(name) in _TRAINING for name in names)


def _is_archive(name: str) -> bool:
    return name.lower().endswith((SUFFIX, *COMPRESSED_SUFFIXES))


def _load(place: str, options: SourceOptions, problems: Problems, audioset: bool) -> Manifest:
    columns = [option for option, _ in options.columns.named if option != "--data.label-column"]
    require(
        not columns,
        f"{' and '.join(columns)} names a column of Parquet files, but the recordings of {place} are in tar archives. "
        "Leave it empty.",
    )
    source = find_source_files(
        place, (SUFFIX, *COMPRESSED_SUFFIXES), options, problems, [LABEL_LIST] if audioset else []
    )
    files = _find_archives(place, source, problems)
    labels = RowLabels(_read_label_names(source, options, problems), bool(options.label_names), audioset=False)
    counts = UnlistedCounts(source.root)
    reader = SampleReader(labels, options.columns.label, options.group, audioset, problems, counts)
    google = audioset or _has_training_lists(file.name for file in files)
    own = f"{source.root.partition('?')[0].rpartition('/')[2]}/" if audioset else ""  # also the source's own folder
    splits = [find_audioset_split(own + file.name) if google else find_split(file.name) for file in files]
    for number, ((file, members), split) in enumerate(zip(list_archives(files, options.listings), splits, strict=True)):
        if not split and any(splits):
            problems.add(file.path, None, _explain_no_split(google))
        reader.read_archive(number, file, split, members)
    names, final = labels.finish()
    clips = tuple(reader.clips.clips(files, final))
    if clips and not names:
        problems.add(place, None, "no recording has a label; give at least one a label")
    single = bool(clips) and not audioset and labels.single
    unlisted = (*source.unlisted, *counts.counts())
    layout = "audioset" if audioset else "webdataset"
    return Manifest(clips, names, single, layout, unlisted, notes=_note(labels, reader.without_end))


def _find_archives(place: str, source: SourceFiles, problems: Problems) -> tuple[SourceFile, ...]:
    """Return the archives that can be read; UserError if the source has no archives."""
    files = tuple(file for file in source.files if file.name.lower().endswith(SUFFIX))
    compressed = [file for file in source.files if file.name.lower().endswith(COMPRESSED_SUFFIXES)]
    if compressed and not files:
        raise UserError(f"{compressed[0].path}: {_UNPACK}.")
    for file in compressed:
        problems.add(file.path, None, _UNPACK)
    found = bool(files) or bool(problems.texts)
    require(found, f"{place} has no tar archives; give a file, folder, glob or URI of some.")
    return files


def _read_label_names(source: SourceFiles, options: SourceOptions, problems: Problems) -> LabelNames | None:
    path = options.label_names
    if not path and source.lists:
        path = join_uri(source.root, LABEL_LIST) if is_uri(source.root) else f"{source.root}/{LABEL_LIST}"
    return read_label_names(path, problems) if path else None


def _explain_no_split(google: bool) -> str:
    folders = "bal_train, unbal_train or eval" if google else "train, validation or test"
    return f"no folder or file name says the split, as it does for other archives; put it below {folders}"


def _note(labels: RowLabels, without_end: list[str]) -> tuple[str, ...]:
    """Return what the user should know, although nothing is wrong with it."""
    notes = []
    if labels.commas:
        notes.append(
            f"labels of text such as {shorten(labels.commas)} are one class each: a comma does not separate classes, "
            "';' does"
        )
    if without_end:
        shown = ", ".join(make_printable(name) for name in without_end[:EXAMPLES])
        notes.append(
            f"{len(without_end)} archives have no blocks that end them, for example {shown}: compare their sizes with "
            "the originals, because they may be cut off"
        )
    return tuple(notes)
