"""One HTML page of a run, readable without a network: data, curves, results next to the paper's, classes, mistakes.

ast-pipeline report --recipe esc50 --run-dir work/esc50

With --review, it also lists clips whose labels look wrong. --corrections with --manifest takes that list back, filled
in, and writes a new manifest instead of the page.
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["report", *sys.argv[1:]])
    sys.exit()


import jinja2
import numpy as np
import pyarrow.parquet
from rich.console import Console

from ast_core.config import FrontEndConfig, OptimConfig
from ast_core.errors import UserError
from ast_core.evaluation.metrics import headline_metric
from ast_core.evaluation.stored_scores import identity_of, read_scores
from ast_core.redaction import without_secrets
from ast_core.serialization import from_dict
from ast_core.shards.index import INDEX, REJECTS, ShardIndex, SplitCounts
from ast_core.shards.reader import ShardReader
from ast_core.storage.json_files import read_json, write_text
from ast_core.training.early_stopping import describe_early_stop
from ast_core.training.member_folder import MemberFolder
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import ReportSettings
from pipeline.probing.probe_index import load_probe_index
from pipeline.reporting.class_counts import class_rows, order_splits, warn_of_empty_classes
from pipeline.reporting.front_end_comparison import compare_front_ends
from pipeline.reporting.hard_clips import confusion_matrix, hardest_clips, most_confused_pairs
from pipeline.reporting.history import read_history
from pipeline.reporting.paper_results import PAPER_RESULTS
from pipeline.reporting.plots import plot_confusion
from pipeline.reviewing.corrected_manifest import CorrectedManifest, write_corrected
from pipeline.reviewing.corrections import read_corrections
from pipeline.reviewing.listed_sounds import ListedSounds
from pipeline.run_folder.layout import (
    ALL_BUNDLES,
    ALL_CALIBRATION,
    ALL_EVALUATION,
    ALL_STUDIES,
    HISTORIES,
    SETTINGS_FILES,
    RunFolder,
)
from pipeline.run_folder.opened import opened
from pipeline.scoring.results import HEADLINES, EvaluationResult
from pipeline.tracking import mlflow_store, runs
from pipeline.tracking.run_note import read_run_note

MOST_DRAWN = 60
"""Largest number of classes whose confusion matrix is readable."""
MOST_REASONS = 12
"""Reasons of rejects that the page lists."""
READS = (SETTINGS_FILES, HISTORIES, ALL_BUNDLES, ALL_EVALUATION, ALL_CALIBRATION, *ALL_STUDIES)
"""Files of a run that the page shows."""


@dataclass(frozen=True)
class DataSection:
    """What the page says about the data."""

    source: str
    layout: str
    counts: dict[str, SplitCounts]
    """Numbers of clips, by split."""
    labels: int
    """Number of classes."""
    single_label: bool
    mean: float
    """Mean of the log-mel of the training splits; without shards, the one that the model normalises with."""
    std: float
    statistics_of: str
    """What mean and standard deviation are of, as the page says it."""
    hash: str
    front_end: dict[str, Any]
    """Settings of the front end, as `index.json` has them."""
    train: str
    """Names of the training splits."""
    test: str
    """Name of the test split."""
    unlisted: list[str]
    """Sentences about the files of the data set that are no clips."""


@dataclass(frozen=True)
class EnsembleGain:
    """Score of an ensemble, and the mean and the best score of its members."""

    name: str
    members: int
    metric: str
    score: float
    mean: float
    best: float


def report(settings: ReportSettings) -> Path:
    """Write the page of a run, or with `--corrections` a new manifest instead; return its path.

    Raises:
        UserError: as `write_page` or `correct`.
    """
    return write_page(settings) if settings.corrections is None else correct(settings).path


def write_page(settings: ReportSettings) -> Path:
    """Write `report.html` from the files of a run's stages and studies; sections without files are left out.

    A run folder of `probe` needs no shards; its page has no hardest clips and no confusion.

    The hardest clips, and with `--review` those whose labels look wrong, have players if the data set can be listed.

    Returns:
        The page.

    Raises:
        UserError: neither shards nor a probe exist, or a split does not; with `--review`, as `find_suspects`, or the
            data set does not exist.
    """
    with opened(settings, READS, [settings.data.test_split]) as run:
        has_shards = (run.shards / INDEX).is_file() or not run.probe_result.is_file()
        index = ShardIndex.load(run.shards) if has_shards else load_probe_index(run)
        summary = _json(run.summary)
        sounds = ListedSounds(settings, run)
        counts = order_splits(index.class_counts, settings.data)
        page = {
            "title": settings.experiment,
            "data": _data(settings, index, "the training splits" if has_shards else "the model"),
            "class_splits": list(counts),
            "class_counts": class_rows(index.labels, counts),
            "class_warnings": warn_of_empty_classes(index.labels, counts, settings.data),
            "rejects": _rejects(run.shards),
            "headlines": {key: name for key, name in HEADLINES.items() if any(key in row for row in summary.values())},
            "results": summary,
            "front_ends": compare_front_ends(index, settings.data),
            "gains": _gains(run),
            "published": PAPER_RESULTS.get(index.layout, ()),
            "distillation": _json(run.distillation),
            "calibration": _json(run.calibration / run.summary.name),
            "pictures": [_inline(path) for path in sorted(run.evaluation.glob("[lp]*.png"))],
            "studies": list(_studies(run.studies)),
            "early_stops": [stopped for member in run.members() if (stopped := _describe_early_stop(member))],
            "settings": next((_json(member.settings_file) for member in run.members()), {}),
            **_of_main_bundle(settings, run, index, sounds),
            **(_review(settings, run, index, sounds) if settings.review else {}),
        }
        write_text(run.report_page, _template().render(page))
    mlflow_store.open_store(settings.tracking)
    note = read_run_note(run.evaluation)
    runs.log_artifacts(note, run.report_page)
    if settings.review:
        runs.log_artifacts(note, run.review_table)
    Console(soft_wrap=True).print(f"Report: {run.report_page}", markup=False)
    return run.report_page


def _template() -> jinja2.Template:
    source = (Path(__file__).parent / "reporting" / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    environment.filters["pretty"] = lambda value: json.dumps(value, indent=1, default=str)
    return environment.from_string(source)


def _number(value: Any, digits: int = 4) -> str:
    """Return the text of a table's cell; empty for a missing number."""
    return "" if value is None or isinstance(value, jinja2.Undefined) or value == "" else f"{float(value):.{digits}f}"


def _data(settings: ReportSettings, index: ShardIndex, statistics_of: str) -> DataSection:
    index.require_splits([settings.data.test_split])
    mean, std = index.statistics(settings.data.train_splits)
    source = settings.data.source
    return DataSection(
        source="audio made by the project" if source == "synthetic" else Path(source).name,
        layout=index.layout,
        counts=index.splits,
        labels=len(index.labels),
        single_label=index.single_label,
        mean=mean,
        std=std,
        statistics_of=statistics_of,
        hash=index.data_hash,
        front_end=index.front_end,
        train=" + ".join(settings.data.train_splits),
        test=settings.data.test_split,
        unlisted=[counts.sentence for counts in index.unlisted],
    )


def _rejects(shards: Path) -> list[tuple[str, int]]:
    """Return the reasons of rejects and how many clips each has."""
    path = shards / REJECTS
    if not path.is_file():
        return []
    rows = pyarrow.parquet.read_table(path, columns=["stage", "reason"]).to_pylist()
    return Counter(f"{row['stage']}: {row['reason']}" for row in rows).most_common(MOST_REASONS)


def _of_main_bundle(
    settings: ReportSettings, run: RunFolder, index: ShardIndex, sounds: ListedSounds
) -> dict[str, Any]:
    """Return classes, hardest clips and confusion of the bundle that stands for the run."""
    name = run.main_bundle() if any(run.described_bundles()) else ""
    if not run.result(name).is_file():
        return {"main": "", "classes": {}}
    evaluation = EvaluationResult.load(run.result(name))
    found: dict[str, Any] = {
        "main": name,
        "classes": evaluation.per_class,
        "metrics": evaluation.metrics,
        "metric": headline_metric(index.single_label),
    }
    if not (run.shards / INDEX).is_file():
        return found
    reader = ShardReader(run.shards, [settings.data.test_split])
    scores_NC = read_scores(run.scores(name), identity_of(evaluation.bundle_digest, reader))
    if scores_NC is None:
        return found
    pictures = run.report_pictures
    cards = hardest_clips(reader, scores_NC, pictures)
    rate_hz, seen_s = int(index.front_end["sample_rate_hz"]), from_dict(FrontEndConfig, index.front_end).clip_s
    players = sounds.make_players([card.clip_id for card in cards], rate_hz, seen_s)
    found["hard"] = [
        {**dataclasses.asdict(card), "picture": _inline(card.picture), "player": player}
        for card, player in zip(cards, players, strict=True)
    ]
    return found | (_confusion(reader, scores_NC, pictures) if index.single_label else {})


def _review(settings: ReportSettings, run: RunFolder, index: ShardIndex, sounds: ListedSounds) -> dict[str, Any]:
    """Return the clips whose labels look wrong, with players."""
    from pipeline.reviewing.label_suspects import find_suspects  # noqa: PLC0415  # torch takes a second

    found = find_suspects(settings, run, sounds.manifest, sounds.source)
    names = [row.clip_id for row in found.rows]
    players = sounds.make_players(names, int(index.front_end["sample_rate_hz"]))
    return {"review": found, "suspects": list(zip(found.rows, players, strict=True))}


def _confusion(reader: ShardReader, scores_NC: np.ndarray, pictures: Path) -> dict[str, Any]:
    matrix_CC, labels = confusion_matrix(scores_NC, reader.labels_NC), reader.index.labels
    found: dict[str, Any] = {"confused": most_confused_pairs(matrix_CC, labels)}
    if len(labels) <= MOST_DRAWN:
        plot_confusion(pictures / "confusion.png", matrix_CC, labels)
        found["confusion"] = _inline(pictures / "confusion.png")
    return found


def _gains(run: RunFolder) -> list[EnsembleGain]:
    """Return each ensemble of a run with the mean and the best of its members."""
    summary = _json(run.summary)
    described = {folder.name: found for folder, found in run.described_bundles() if folder.name in summary}
    roles = {name: found.facts.role for name, found in described.items()}
    key = headline_metric(any("accuracy" in metrics for metrics in summary.values()))
    single = {name: summary[name][key] for name, role in roles.items() if role == "member"}
    rows = []
    for name in (name for name, role in roles.items() if role == "ensemble"):
        own = [single[entry.name] for entry in described[name].members if entry.name in single]
        if own:
            rows.append(EnsembleGain(name, len(own), key, summary[name][key], sum(own) / len(own), max(own)))
    return rows


def _describe_early_stop(member: MemberFolder) -> str:
    """Return a sentence about a member whose training stopped early; "" for any other member."""
    values = _json(member.settings_file).get("settings", {}).get("optim", {})
    if not values.get("early_stopping_epochs"):
        return ""
    stopped = describe_early_stop(from_dict(OptimConfig, values), read_history(member.history))
    return f"{member.name}: {stopped}" if stopped else ""


def _studies(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield tables, pictures and ensembles of the studies of a run."""
    for path in sorted(folder.glob("*/report/*.csv")):
        if path.stem != path.parents[1].name:
            continue
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        picture = path.with_suffix(".png")
        yield {
            "name": path.stem, "rows": rows, "gains": _gains(RunFolder(path.parents[1], Path())),
            "picture": _inline(picture) if picture.is_file() else "",
        }  # fmt: skip


def _inline(path: Path) -> str:
    """Return a picture as a data URI, so that the page is one file."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path, "Result") if path.is_file() else {}
    return found


def correct(settings: ReportSettings) -> CorrectedManifest:
    """Write the data set with the corrections of `--corrections` as the new manifest `--manifest`; print the counts.

    Raises:
        UserError: as `read_corrections` and `write_corrected`, or a setting is missing.
    """
    path, corrections_path = settings.manifest, settings.corrections
    if path is None or corrections_path is None:
        raise UserError("--corrections or --manifest is missing; give both.")
    with opened(settings) as run:
        sounds = ListedSounds(settings, run)
        corrections = read_corrections(corrections_path, sounds.manifest)
        done = write_corrected(path, sounds.manifest, corrections, settings.data, sounds.source)
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{corrections.rows} rows of {corrections_path} = {len(corrections.relabelled)} with other labels + "
        f"{done.left_out} left out + {corrections.same} with the labels that the clip has + {corrections.empty} empty\n"
        f"{done.clips} clips in {path} = {done.listed} of {without_secrets(sounds.source)} - {done.left_out} left out "
        f"- {done.missing} without a file\n"
        f"Use it with a new run folder: --recipe {settings.recipe} {without_secrets(done.flags)}",
        markup=False,
    )
    return done


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: report(parse_settings(ReportSettings, __doc__, argv)))
