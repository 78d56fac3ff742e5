"""Recognise what the columns of a Parquet file with recordings hold, by their types, names and metadata."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from ast_core.dataset.problems import make_printable, require_printable, shorten
from ast_core.dataset.source_options import Columns
from ast_core.dataset.split_names import find_audioset_split
from ast_core.errors import UserError

_AUDIO_NAMES = (
    "audio", "recording", "sound", "audio_bytes", "bytes", "content", "data", "wav", "flac", "mp3", "ogg", "opus",
)  # fmt: skip
"""Names of binary columns that are taken for recordings; a struct with `bytes` may have any name."""
_LABEL_NAMES = ("labels", "label")
_WEAK_LABEL_NAMES = ("category", "class", "classes", "tags")
_ID_NAMES = ("clip_id", "video_id", "id")
_TIME_NAMES = ("start_s", "end_s")
HUMAN_LABELS = "human_labels"
"""Column of the AudioSet copy with the display names of the machine ids in `labels`."""
VIDEO_ID = "video_id"
_MOST_SHOWN = 30
"""Largest number of columns that an error names."""


@dataclass(frozen=True)
class FoundColumns:
    """Columns of one file, by what they hold; "" for those that it does not have."""

    audio: str
    """Column of the recordings."""
    content: str
    """Path in the schema of the recordings' bytes, such as `audio.bytes`."""
    stored_path: str
    """Path in the schema of the recordings' file names, such as `audio.path`."""
    label: str = ""
    human: str = ""
    split: str = ""
    clip_id: str = ""
    group: str = ""
    times: tuple[str, ...] = ()
    """Those of `start_s` and `end_s` that exist."""
    label_kind: str = ""
    """`text` or `integer`."""
    class_names: tuple[str, ...] | None = field(default=None, compare=False)
    """Names of the integers in the column of labels."""
    split_names: tuple[str, ...] | None = field(default=None, compare=False)
    """Names of the integers in the column of splits."""
    unread: tuple[str, ...] = field(default=(), compare=False)
    """Columns that mean nothing here."""

    @property
    def read(self) -> list[str]:
        """Paths in the schema of the columns that listing reads. The bytes of the recordings are not among them."""
        id_column = self.clip_id or self.stored_path
        wanted = (id_column, self.label, self.human, self.split, self.group, *self.times)
        return list(dict.fromkeys(name for name in wanted if name))


def find_audio_column(schema: pa.Schema, wanted: str = "") -> str:
    """Return the column of the recordings; "" without one, or if several may be it.

    Args:
        schema: schema of a Parquet file.
        wanted: column that the user named; it must be binary, or a struct with a binary field `bytes`.
    """
    fields = [field for field in schema if _content_path(field)]
    if wanted:
        return wanted if any(field.name == wanted for field in fields) else ""
    kinds = {name: _kind(feature) for name, feature in _read_features(schema).items()}
    declared = [field.name for field in fields if kinds.get(field.name) == "Audio"]
    others = {name for name, kind in kinds.items() if kind in {"Image", "Video", "Pdf", "Value"}}
    structs = [field.name for field in fields if pa.types.is_struct(field.type) and field.name not in others]
    plain = [field.name for field in fields if field.name in _AUDIO_NAMES and not pa.types.is_struct(field.type)]
    for names in (declared, structs, plain):
        if len(names) == 1:
            return str(names[0])
        named = [name for name in _AUDIO_NAMES if name in names]
        if named:
            return named[0]
    return ""


def find_recordings(schema: pa.Schema, audio_column: str = "") -> FoundColumns:
    """Return the columns of recordings and ids of a file, which may have no labels.

    Raises:
        UserError: no column is recognised as recordings. The text names all columns and their types.
    """
    names = schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"has several columns {shorten(twice[0])}; give each column a name of its own.")
    audio = find_audio_column(schema, audio_column)
    if not audio:
        raise UserError(
            "has no column that is recognised as recordings: name a binary column, or a struct with a binary field "
            f"bytes, with --data.audio-column; {describe(schema)}"
        )
    field = schema.field(audio)
    clip_id = next((name for name in _ID_NAMES if name in names and _is_id(schema.field(name).type)), "")
    return FoundColumns(audio, _content_path(field), _stored_path(field), clip_id=clip_id)


def find_columns(schema: pa.Schema, columns: Columns, group: str = "", audioset: bool = False) -> FoundColumns:
    """Return what the columns of a file hold.

    Args:
        schema: the file's schema.
        columns: columns that the user names.
        group: column of the clips' groups, if the file has it.
        audioset: whether the file must be of the AudioSet copy.

    Raises:
        UserError: a named column does not exist or has the wrong type, or the recordings or labels cannot be
            recognised. The text names all columns and their types.
    """
    names = schema.names
    for option, column in columns.named:
        if column not in names:
            raise UserError(f"has no column {column!a}, which {option} names; {describe(schema)}")
    found = find_recordings(schema, columns.audio)
    label = columns.label or _find_label_column(schema)
    if not label:
        raise UserError(
            "has no column that is recognised as labels: name one of text, integers or lists of them with "
            f"--data.label-column; {describe(schema)}"
        )
    human = HUMAN_LABELS if audioset and HUMAN_LABELS in names and _is_texts(schema.field(HUMAN_LABELS).type) else ""
    if audioset and VIDEO_ID not in names:
        raise UserError(f"has no column video_id, which the AudioSet copy has; {describe(schema)}")
    split = columns.split or ("split" if "split" in names and not audioset else "")
    if split:
        _check_split_type(schema, split)
    found = dataclasses.replace(
        found,
        label=label,
        label_kind=_find_label_kind(schema, label, audioset),
        human=human,
        split=split,
        clip_id=VIDEO_ID if audioset else found.clip_id,
        group=group if group in names else "",
        times=() if audioset else tuple(name for name in _TIME_NAMES if name in names),
        class_names=read_class_names(schema, label),
        split_names=read_class_names(schema, split) if split else None,
    )
    read = {path.partition(".")[0] if path == found.stored_path else path for path in found.read}
    return dataclasses.replace(found, unread=tuple(name for name in names if name not in {*read, found.audio}))


def is_audioset_copy(schema: pa.Schema, name: str) -> bool:
    """Return whether a file is of the Parquet copy of AudioSet.

    It has recordings, a column `video_id` and lists of texts as labels, and `human_labels` or the name of a split.

    Args:
        schema: the file's schema.
        name: its path below the source's folder.
    """
    names = set(schema.names)
    return (
        bool(find_audio_column(schema))
        and {VIDEO_ID, "labels"} <= names
        and _is_texts(schema.field("labels").type)
        and (HUMAN_LABELS in names or bool(find_audioset_split(name)))
    )


def read_class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Return the names of a column's integers by Hugging Face's metadata, also of lists of them; None without names.

    Raises:
        UserError: the names are no list of different texts.
    """
    feature = _read_features(schema).get(column)
    for _ in range(4):
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and _kind(feature) in {"Sequence", "List", "LargeList"}:
            feature = feature.get("feature")
    if not isinstance(feature, dict) or _kind(feature) != "ClassLabel":
        return None
    names = feature.get("names")
    if not (isinstance(names, list) and names and all(isinstance(name, str) and name.strip() for name in names)):
        shown = shorten(str(names))
        raise UserError(f"has the names {shown} for the column {column!a} in its metadata; names are a list of texts.")
    try:
        for name in names:
            require_printable("class", name)
    except ValueError as error:
        raise UserError(f"has names for the column {column!a} in its metadata that cannot be used: {error}.") from error
    repeated = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if repeated is not None:
        raise UserError(f"names two classes {shorten(repeated)} in the metadata of the column {column!a}.")
    return tuple(names)


def describe(schema: pa.Schema) -> str:
    """Return the sentence that names the columns of a file with their types."""
    shown = [f"{make_printable(field.name)} ({field.type})" for field in schema]
    more = f" and {len(shown) - _MOST_SHOWN} more" if len(shown) > _MOST_SHOWN else ""
    return f"its columns are {', '.join(shown[:_MOST_SHOWN])}{more}."


def _read_features(schema: pa.Schema) -> dict[str, Any]:
    """Return the features by column that Hugging Face's metadata holds; the metadata is untrusted input."""
    try:
        value = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = value["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _kind(feature: Any) -> str:
    """Return the kind of a feature in the metadata; "" if it has none."""
    kind = feature.get("_type") if isinstance(feature, dict) else ""
    return kind if isinstance(kind, str) else ""


def _find_label_column(schema: pa.Schema) -> str:
    """Return the column of labels by its name, or the only one with names of classes in the metadata."""
    names = schema.names
    for name in _LABEL_NAMES:
        if name in names:
            return name
    classes = [name for name in names if _is_class_feature(schema, name)]
    if len(classes) == 1:
        return str(classes[0])
    return next((name for name in _WEAK_LABEL_NAMES if name in names), "") if not classes else ""


def _is_class_feature(schema: pa.Schema, name: str) -> bool:
    try:
        return read_class_names(schema, name) is not None
    except UserError:
        return True


def _find_label_kind(schema: pa.Schema, label: str, audioset: bool) -> str:
    """Return whether labels are texts or integers; UserError for any other type."""
    kind = schema.field(label).type
    item = _strip(kind.value_type) if _is_list(kind) else _strip(kind)
    if audioset and not _is_texts(kind):
        raise UserError(f"has labels of the type {kind}, but the AudioSet copy has lists of texts; {describe(schema)}")
    if not (_is_text(item) or pa.types.is_integer(item)):
        raise UserError(
            f"has labels of the type {kind} in the column {label!a}; labels are text, integers or lists of them: name "
            f"their column with --data.label-column; {describe(schema)}"
        )
    return "text" if _is_text(item) else "integer"


def _check_split_type(schema: pa.Schema, split: str) -> None:
    """Raise UserError unless the column of splits has texts or integers."""
    kind = _strip(schema.field(split).type)
    if not (_is_text(kind) or pa.types.is_integer(kind)):
        raise UserError(
            f"has splits of the type {kind} in the column {split!a}; splits are text or integers: name their column "
            f"with --data.split-column; {describe(schema)}"
        )


def _content_path(field: pa.Field[Any]) -> str:
    """Return the path of a column's bytes; "" if the column has none."""
    if _is_binary(field.type):
        return str(field.name)
    inner = _child(field, "bytes")
    return f"{field.name}.bytes" if inner is not None and _is_binary(inner.type) else ""


def _stored_path(field: pa.Field[Any]) -> str:
    inner = _child(field, "path")
    return f"{field.name}.path" if inner is not None and _is_text(inner.type) else ""


def _child(field: pa.Field[Any], name: str) -> pa.Field[Any] | None:
    place = field.type.get_field_index(name) if pa.types.is_struct(field.type) else -1
    return field.type.field(place) if place >= 0 else None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _strip(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a dictionary, or the type itself."""
    return kind.value_type if isinstance(kind, pa.DictionaryType) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_texts(kind: Any) -> bool:
    return _is_list(kind) and _is_text(_strip(kind.value_type))


def _is_id(kind: pa.DataType) -> bool:
    return _is_text(_strip(kind)) or bool(pa.types.is_integer(kind))
