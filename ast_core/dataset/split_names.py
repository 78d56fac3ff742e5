"""Read the split of a file that holds many recordings from its name and its folders' names."""

from __future__ import annotations

import re

from ast_core.dataset.loose.class_folders import SPLIT_FOLDERS

_PART = re.compile(r"(?P<split>.+?)[-_.]\d+[-_]of[-_]\d+(?:-[0-9a-f]+)?", re.IGNORECASE)
"""A part in Hugging Face's layout, such as `train-00000-of-00010`."""
_BEGINS = re.compile(rf"({'|'.join(SPLIT_FOLDERS)})(?:[-_.]?\d+|[-_.].*)?", re.IGNORECASE)
"""A name that begins with a split's, such as `train`, `train-0001` and `test_part_2`."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_AUDIOSET = {
    "bal_train": "balanced_train",
    "balanced_train": "balanced_train",
    "balanced_train_segments": "balanced_train",
    "unbal_train": "unbalanced_train",
    "unbalanced_train": "unbalanced_train",
    "unbalanced_train_segments": "unbalanced_train",
    "eval": "eval",
    "eval_segments": "eval",
    "evaluation": "eval",
}
"""Names of folders and files of AudioSet's copies, and the split in Google's lists."""


def find_split(name: str) -> str:
    """Return the split that a file's path below its source says; "" if it says none.

    The file's own name counts first: `train-00000-of-00010.parquet`, or one that begins with a name of
    `SPLIT_FOLDERS`. Then its folders count, the innermost first: a name of `SPLIT_FOLDERS`, or `split=NAME`.
    """
    *folders, file = name.split("/")
    stem = file.rpartition(".")[0] or file
    part = _PART.fullmatch(stem)
    if part and _NAME.fullmatch(part["split"]):
        return SPLIT_FOLDERS.get(part["split"].lower(), part["split"])
    begins = _BEGINS.fullmatch(stem)
    if begins:
        return SPLIT_FOLDERS[begins[1].lower()]
    for folder in reversed(folders):
        text = folder.removeprefix("split=")
        if text.lower() in SPLIT_FOLDERS:
            return SPLIT_FOLDERS[text.lower()]
        if text != folder and _NAME.fullmatch(text):
            return text
    return ""


def find_audioset_split(name: str) -> str:
    """Return the split of AudioSet's lists that a file of a copy belongs to, by its folders and its name; "" if none.

    Args:
        name: path of the file below its source.
    """
    *folders, file = name.split("/")
    stem = file.rpartition(".")[0] or file
    part = _PART.fullmatch(stem)
    for text in (*reversed(folders), part["split"] if part else stem.rstrip("0123456789").rstrip("-_.")):
        split = _AUDIOSET.get(text.lower())
        if split:
            return split
    return ""
