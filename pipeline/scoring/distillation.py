"""Distillation: the teacher's probabilities of the training clips, and the comparison with its student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import filelock
import rich.table

from ast_core.evaluation.metrics import evaluate_scores, headline_metric
from ast_core.evaluation.stored_scores import identity_of, read_scores
from ast_core.model.cost import model_cost
from ast_core.serialization import to_dict
from ast_core.shards.reader import ShardReader
from ast_core.storage.atomic_files import sha256_of
from ast_core.storage.json_files import write_json
from ast_core.weights import huggingface
from ast_core.weights.bundle import DESCRIPTION, Bundle, write_bundle
from ast_core.weights.bundle_description import BundleFacts, Entry, read_description
from ast_core.weights.ensemble_mean import mean_probabilities
from ast_core.weights.hub.hub_address import is_hub_address
from pipeline.cli.stages import EvaluateSettings, TrainSettings
from pipeline.run_folder import sync
from pipeline.run_folder.downloads import download_files
from pipeline.run_folder.layout import ALL_TEACHER, RunFolder
from pipeline.run_folder.pinned_models import fetch_pinned
from pipeline.scoring.bundle_scores import DescribedBundle, bundle_scores, describe_bundle, member_scores
from pipeline.scoring.results import EvaluationResult, from_json_numbers, to_json_numbers
from pipeline.tracking.model_choice import fetch_model_folder


@dataclass(frozen=True)
class ComparisonRow:
    """Score and cost of one model in `evaluation/distillation.json`."""

    name: str
    macs: int
    """Multiply-accumulate operations for one clip, all members together."""
    parameters: int
    score: float
    """Headline metric on the test clips."""


def score_teacher(settings: TrainSettings, make_room: Callable[[], None] | None = None) -> Path | None:
    """Score the training clips with the recipe's teacher, once for all members of a run.

    Args:
        settings: settings of the student's training.
        make_room: function that frees the CPUs and GPUs of the training before; called only if scores are missing.

    Returns:
        The file of the probabilities; None if the recipe has no teacher.

    Raises:
        UserError: the teacher does not exist, or its labels or its front end differ from those of the shards.
    """
    if not settings.distil.teacher:
        return None
    folder = RunFolder.of(settings).teacher
    path = folder / "teacher-scores.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    sync.download_inputs(settings, settings.data.train_splits, [ALL_TEACHER])
    with filelock.FileLock(folder / ".lock"):  # members of one run may be trained at the same time
        reader = ShardReader(settings.shards, settings.data.train_splits)
        teacher = describe_bundle(_fetch_teacher(settings), reader)
        if read_scores(path, identity_of(teacher.digest, reader)) is None:
            if make_room is not None:
                make_room()
            bundle_scores(settings, {"teacher": teacher}, reader, folder)
    return path


def compare_with_teacher(
    settings: EvaluateSettings, reader: ShardReader, results: Mapping[str, EvaluationResult]
) -> rich.table.Table:
    """Return a table of the score and cost of the teacher, its members and this run's bundles on the same clips.

    The rows are also written to `evaluation/distillation.json`.
    """
    run, teacher = RunFolder.of(settings), describe_bundle(_fetch_teacher(settings), reader)
    by_member = member_scores(settings, [teacher], reader)
    single, labels_NC = reader.index.single_label, reader.labels_NC
    key = headline_metric(single)
    rows = []
    if len(teacher.places) > 1:
        for place, entry in zip(teacher.places, teacher.members, strict=True):
            value = evaluate_scores(by_member[place.sha256], labels_NC, single)[key]
            rows.append(_make_row(f"teacher's {entry.name}", [entry], value))
    ensemble_NC = mean_probabilities([by_member[place.sha256] for place in teacher.places])
    rows.append(_make_row("teacher", teacher.members, evaluate_scores(ensemble_NC, labels_NC, single)[key]))
    for name, result in results.items():
        own = describe_bundle(run.bundle(name), reader)
        if own.facts.role in {"member", "ensemble"}:
            rows.append(_make_row(f"student {name}", own.members, from_json_numbers(result.metrics)[key]))
    write_json(
        run.distillation,
        {"metric": key, "rows": [{**to_dict(row), **to_json_numbers({"score": row.score})} for row in rows]},
    )
    return _make_table(key, rows, teacher, reader)


def _fetch_teacher(settings: TrainSettings | EvaluateSettings) -> Path:
    """Return the bundle of the teacher, which every node can read."""
    teacher, run = settings.distil.teacher, RunFolder.of(settings)
    if is_hub_address(teacher):
        folder = fetch_pinned(teacher, run.path).folder
    else:
        folder = fetch_model_folder(teacher, settings.tracking)
    if huggingface.is_folder(folder):
        return _write_teacher(folder, run.teacher / "bundle")
    return sync.share_bundle(folder, run.path)


def _write_teacher(folder: Path, copy: Path) -> Path:
    """Write a teacher in Hugging Face's format as a bundle, unless that is done; return the bundle."""
    download_files(copy, ["*"])
    made_of = f"Hugging Face's format, {folder.name}, SHA-256 {sha256_of(folder / huggingface.WEIGHTS)}"
    if (copy / DESCRIPTION).is_file() and read_description(copy).facts.made_of == made_of:
        return copy
    own = Bundle.load(folder)
    member = own.members[0]
    identity = {
        "labels": list(own.labels),
        "model": to_dict(member.config),
        "front_end": to_dict(member.front_end),
        "mean": member.mean,
        "std": member.std,
        "loss": member.loss,
    }
    write_bundle(
        copy, [("teacher", member.model.state_dict(), identity)], own.single_label, BundleFacts(made_of=made_of)
    )
    return copy


def _make_row(name: str, entries: Sequence[Entry], score: float) -> ComparisonRow:
    costs = [model_cost(*entry.configs, 1) for entry in entries]
    macs, parameters = sum(one.macs for one in costs), sum(one.parameters for one in costs)
    return ComparisonRow(name, macs, parameters, score)


def _make_table(key: str, rows: list[ComparisonRow], teacher: DescribedBundle, reader: ShardReader) -> rich.table.Table:
    title = f"distilled from {teacher.folder.name}, on {len(reader)} clips of {'+'.join(reader.splits)}"
    table = rich.table.Table("model", title=title)
    for heading in ("GMAC per clip", "M parameters", key):
        table.add_column(heading, justify="right")
    for row in rows:
        size = (f"{row.macs / 1e9:.3g}", f"{row.parameters / 1e6:.3g}")
        table.add_row(row.name, *size, f"{row.score:.4f}", style="bold" if "student" in row.name else "")
    return table
