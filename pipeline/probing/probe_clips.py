"""The clips of a probe: which splits count, and what became of each listed clip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ast_core.config import DataConfig, Loss, PrepareConfig
from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.problems import make_printable
from ast_core.errors import require
from ast_core.evaluation.prediction_table import to_text
from ast_core.shards.sparse_labels import SparseLabels
from ast_core.storage.json_files import sha256_of_json
from pipeline.probing.clip_embeddings import ClipEmbeddings


@dataclass
class SplitUse:
    """What became of the clips of one split, which balances: listed = used + rejected + missing."""

    listed: int = 0
    used: int = 0
    rejected: int = 0
    """Clips whose recording cannot be used."""
    missing: int = 0
    """Clips without a file."""


@dataclass(frozen=True, eq=False)
class ProbeClips:
    """The usable clips of the splits that a probe takes, in the order of the data set, with their embeddings."""

    clips: tuple[Clip, ...]
    manifest: Manifest
    """Classes of the data set."""
    embeddings: ClipEmbeddings
    """Embeddings of `clips`, in their order."""
    labels: SparseLabels
    """Labels of `clips`."""
    uses: dict[str, SplitUse]
    """Counts of all clips of the data set, by split."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Rejected clips by reason."""

    def rows(self, splits: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the indices of the clips of some splits: split by split, in the order of the data set."""
        by_split = {split: [n for n, clip in enumerate(self.clips) if clip.split == split] for split in splits}
        return np.array([n for split in splits for n in by_split[split]], np.int64)

    def ids(self, rows_N: np.ndarray) -> list[str]:
        """Return the ids of some clips, as tables hold them."""
        return [to_text(self.clips[row].clip_id) for row in rows_N]

    def groups(self, rows_N: np.ndarray) -> list[str]:
        """Return what clips that must stay together share: their group, else the recording of segments, else the id."""
        own = (self.clips[row] for row in rows_N)
        return [
            f"group {clip.group}" if clip.group
            else f"recording {clip.path} {clip.member}" if clip.is_segment
            else f"clip {clip.clip_id}"
            for clip in own
        ]  # fmt: skip

    def hash_of(self, rows_N: np.ndarray) -> str:
        """Return the hash of some clips and their labels that `evaluate` has for the same clips in the same order."""
        labels = [self.labels.of_clip(int(row)).tolist() for row in rows_N]
        return sha256_of_json([self.ids(rows_N), labels, list(self.manifest.labels)])


def choose_splits(data: DataConfig, splits: Sequence[str], every: bool) -> tuple[str, ...]:
    """Return the splits whose clips are embedded: those that train, validate and test, or all of them.

    Raises:
        UserError: there is no test split, or it is a training split, too.
    """
    require(bool(data.test_split), "data.test-split is empty; name the split that the probe is tested on.")
    for split in {data.test_split, data.validation_split} & set(data.train_splits):
        require(
            False,
            f"The split {split} is in data.train-splits, and is also data.test-split or data.validation-split; a probe "
            "must not learn the clips that it is tested on. Leave it out of data.train-splits.",
        )
    named = [*data.train_splits, data.validation_split, data.test_split]
    return tuple(dict.fromkeys(splits if every else (split for split in named if split)))


def choose_loss(loss: str, manifest: Manifest) -> Loss:
    """Return the loss of `--loss`; `auto` is `cross_entropy` if every clip of the data set has exactly one label.

    Raises:
        UserError: the loss is `cross_entropy`, and a clip has several labels or none.
    """
    if loss != "cross_entropy":
        return "cross_entropy" if loss == "auto" and manifest.single_label else "bce"
    wrong = next((clip for clip in manifest.clips if len(clip.labels) != 1), None)
    if wrong is not None:
        count = sum(len(clip.labels) != 1 for clip in manifest.clips)
        require(
            False,
            f"--loss is cross_entropy, but {count} clips do not have exactly one label: "
            f"{make_printable(wrong.clip_id)} has {len(wrong.labels)}. Give --loss bce.",
        )
    return "cross_entropy"


def collect_clips(
    manifest: Manifest, splits: Sequence[str], listed: Sequence[Clip], embeddings: ClipEmbeddings
) -> ProbeClips:
    """Count every clip of the data set, and keep those that have an embedding.

    Args:
        manifest: the data set.
        splits: splits that the probe takes.
        listed: clips of these splits that have a file.
        embeddings: embedding, or error, of each of `listed`.
    """
    uses = {split: SplitUse() for split in splits}
    for clip in manifest.clips:
        use = uses.setdefault(clip.split, SplitUse())
        use.listed += 1
        use.missing += not clip.path and clip.split in splits
    for clip, error in zip(listed, embeddings.errors, strict=True):
        uses[clip.split].rejected += bool(error)
        uses[clip.split].used += not error
    kept = embeddings.without_errors()
    own = [clip for clip, error in zip(listed, embeddings.errors, strict=True) if not error]
    counts = np.array([len(clip.labels) for clip in own], np.int64)
    flat = np.array([label for clip in own for label in clip.labels], np.int32)
    labels = SparseLabels(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), flat, len(manifest.labels))
    reasons = Counter(error for error in embeddings.errors if error)
    return ProbeClips(tuple(own), manifest, kept, labels, uses, reasons)


def check_counts(found: ProbeClips, splits: Sequence[str], limits: PrepareConfig) -> None:
    """Raise UserError if a clip was lost, or more clips were rejected than the settings allow."""
    uses = [found.uses[split] for split in splits]
    for split, use in zip(splits, uses, strict=True):
        balanced = use.listed == use.used + use.rejected + use.missing
        require(balanced, f"The counts of {split} do not balance: {use}. Run the same command again.")
    rejected, present = sum(use.rejected for use in uses), sum(use.used + use.rejected for use in uses)
    most = found.reasons.most_common(1)
    require(
        rejected <= limits.max_reject_share * present,
        f"{rejected} of {present} clips were rejected, more than prepare.max-reject-share {limits.max_reject_share} "
        f"allows; the most frequent reason is: {most[0][0] if most else ''}. Fix the clips or raise the limit.",
    )
