"""Embed the listed clips of a data set that have no embedding yet, and collect those that can be used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ast_core.dataset.clips import Clip, Manifest
from ast_core.errors import require
from ast_core.storage.file_systems import is_uri
from ast_core.storage.json_files import read_json, write_json
from pipeline.embedding.embed_clips import EmbedModel, Workers, embed_clips
from pipeline.probing.clip_embeddings import read_embeddings
from pipeline.probing.probe_clips import ProbeClips, collect_clips

SOURCE_NOTE = "_source.json"
"""File next to stored embeddings that says which data set they are of: two data sets may have clips of one name."""
MOST_REASONS = 5
"""Reasons of rejects that the screen shows."""


def embed_listed(
    manifest: Manifest, splits: Sequence[str], place: str, model: EmbedModel, workers: Workers, scratch: Path
) -> ProbeClips:
    """Return the usable clips of some splits with their embeddings, after those without a row were embedded.

    Args:
        manifest: the data set.
        splits: splits to take.
        place: folder or URI of the stored embeddings.
        model: model, and which of its embeddings.
        workers: where the model runs.
        scratch: folder of a temporary file for many embeddings.

    Raises:
        UserError: the stored embeddings are of another model, or a recording cannot be read because of the disk or the
            store.
    """
    listed: list[Clip] = [clip for clip in manifest.clips if clip.path and clip.split in splits]
    counts = embed_clips(listed, place, model, workers, audio_column=manifest.audio_column, option="--embeddings")
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{counts.listed} clips = {counts.embedded} embedded + {counts.refused} refused + {counts.known} with a row in "
        f"{place}", markup=False,
    )  # fmt: skip
    names = [clip.clip_id for clip in listed]
    found = collect_clips(manifest, splits, listed, read_embeddings(place, names, model.size, scratch))
    for reason, count in found.reasons.most_common(MOST_REASONS):
        console.print(f"rejected {count}: {reason}", markup=False)
    return found


def note_source(place: str, root: str) -> None:
    """Note in a local folder of embeddings which data set they are of, or refuse those of another one."""
    if is_uri(place):
        return
    path = Path(place) / SOURCE_NOTE
    known = read_json(path, "Note of the data set") if path.is_file() else {"source": root}
    require(
        isinstance(known, dict) and known.get("source") == root,
        f"{place} holds embeddings of the data set {str(known)[:200]}, not of {root}. Give --embeddings another "
        f"folder, or remove {path} if the recordings are the same.",
    )
    if not path.is_file():
        write_json(path, {"source": root})
