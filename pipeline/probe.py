"""Learn the classes of a data set from the embeddings of a model that exists: a linear probe, and nearest neighbours.

ast-pipeline probe --model models:/NAME@champion --recipe own --data.source FOLDER --run-dir work/probe

The result is a bundle: the model with a new head. It predicts, and can be evaluated, registered and exported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["probe", *sys.argv[1:]])
    sys.exit()


import numpy as np
from rich.console import Console

from ast_core.dataset.clips import Manifest
from ast_core.errors import require
from ast_core.evaluation.metrics import headline_metric
from ast_core.probing.linear_probe import ProbeData
from ast_core.probing.probe_head import compute_head_input, replace_head
from ast_core.serialization import to_dict
from ast_core.shards.index import INDEX, ShardIndex
from ast_core.storage.places import root_of
from ast_core.weights.bundle import write_bundle
from ast_core.weights.bundle_description import BundleFacts
from ast_core.weights.ensemble_mean import Member
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import ProbeSettings
from pipeline.embedding.embed_clips import EmbedModel, Workers, load_embed_model
from pipeline.probing import probe_result as results_of
from pipeline.probing.embedded_clips import embed_listed, note_source
from pipeline.probing.probe_clips import ProbeClips, check_counts, choose_loss, choose_splits
from pipeline.probing.probe_fit import FittedProbe, ProbeInputs, fit_probe
from pipeline.probing.probe_result import FoldResult, ProbeFolds, ProbeResult
from pipeline.probing.window_hint import suggest_window
from pipeline.run_folder.layout import ALL_EMBEDDINGS, ALL_EVALUATION, PROBE, RunFolder
from pipeline.run_folder.listed_clips import (
    check_missing,
    describe_listing,
    find_folds,
    find_source,
    list_clips,
    missing_splits,
)
from pipeline.run_folder.opened import opened
from pipeline.tracking import mlflow_store, runs
from pipeline.tracking.model_choice import fetch_model_folder
from pipeline.tracking.run_note import read_run_note, write_run_note

READS = (ALL_EMBEDDINGS, ALL_EVALUATION)
"""Files of the run that this stage reads."""


def probe(settings: ProbeSettings) -> ProbeResult:
    """Embed the clips that have no embedding yet, fit and test a probe, and write it as a bundle.

    Returns:
        Counts, choices and metrics.

    Raises:
        UserError: the data set, the model or the stored embeddings do not fit, too many clips are broken, or a class
            cannot be learned.
    """
    with opened(settings, READS, exclusive="probe") as run:
        runs.open_experiment(settings.tracking, settings.experiment)
        folder = fetch_model_folder(settings.model, settings.tracking)
        model = load_embed_model(folder, settings.member or None, target_frames=settings.target_frames)
        member = model.chosen
        source = find_source(settings.data, run)
        manifest, _ = list_clips(settings.data, source, run.shards, run.archive_listings)
        _require_fitting_run(run, manifest, member)
        splits = _check_listing(settings, manifest, source)
        loss = choose_loss(settings.loss, manifest)
        clips = _embed(settings, run, model, manifest, splits, source)
        data = ProbeData(
            lambda rows_B: compute_head_input(member.model, clips.embeddings.read(rows_B)),
            clips.labels, manifest.labels, manifest.single_label, loss,
        )  # fmt: skip
        inputs = ProbeInputs(clips, data, clips.embeddings.read, settings.class_weights == "balanced")
        fitted = fit_probe(inputs, settings.data.train_splits, settings.data.validation_split)
        result = _finish(settings, run, model, member, inputs, fitted)
        _log(settings, run, result)
    _show(result, settings, suggest_window(clips.embeddings.lengths_N, member))
    return result


def _require_fitting_run(run: RunFolder, manifest: Manifest, member: Member) -> None:
    """Refuse a run folder whose shards do not fit the probe: `evaluate` would refuse all bundles in it."""
    if not (run.shards / INDEX).is_file():
        return
    index = ShardIndex.load(run.shards)
    fits = index.labels == manifest.labels and index.front_end == to_dict(member.front_end)
    require(
        fits,
        f"{run.shards} has shards of other classes, or of another front end than that of {member.name}, so the probe "
        "cannot be evaluated next to the other bundles of this run. Give --run-dir a new folder.",
    )


def _check_listing(settings: ProbeSettings, manifest: Manifest, source: str) -> tuple[str, ...]:
    """Print what the data set holds besides clips; return the splits that the probe takes."""
    for sentence in (*manifest.notes, *describe_listing(manifest)):
        Console(soft_wrap=True, highlight=False).print(sentence, markup=False)
    own = list(dict.fromkeys(clip.split for clip in manifest.clips))
    if settings.cross_validate:
        find_folds(manifest, source)
    sentence = missing_splits(settings.data, source, own)
    require(not sentence, sentence)
    check_missing(manifest, settings.data, settings.prepare)
    return choose_splits(settings.data, own, settings.cross_validate)


def _embed(
    settings: ProbeSettings, run: RunFolder, model: EmbedModel, manifest: Manifest, splits: Sequence[str], source: str
) -> ProbeClips:
    """Return the usable clips with their embeddings, after those without a row were embedded."""
    place = settings.embeddings or str(run.embeddings)
    note_source(place, root_of(source))
    workers = Workers(settings.gpus, settings.workers, settings.address)
    found = embed_listed(manifest, splits, place, model, workers, run.path)
    check_counts(found, splits, settings.prepare)
    return found


def _finish(
    settings: ProbeSettings, run: RunFolder, model: EmbedModel, member: Member, inputs: ProbeInputs, fitted: FittedProbe
) -> ProbeResult:
    """Test the probe, write bundle and results, and cross-validate if that is wanted."""
    clips, test = inputs.clips, settings.data.test_split
    test_N = clips.rows([test])
    require(len(test_N) > 0, f"The split {test} has no usable clip to test on.")
    scores_NC = fitted.linear_scores(inputs, test_N)
    linear = inputs.score(scores_NC, test_N, settings.bootstrap)
    nearest = inputs.score(fitted.neighbour_scores(inputs, test_N), test_N, settings.bootstrap)
    folds = _cross_validate(settings, inputs) if settings.cross_validate else None
    training_hash = clips.hash_of(fitted.training_N)
    weights, identity = replace_head(member, fitted.probe, clips.manifest.labels)
    made_of = f"linear probe on {model.member} of {model.bundle.digest[:12]}, windows of {model.target_frames} frames"
    facts = BundleFacts(settings.experiment, training_hash, (), made_of, PROBE, ())
    digest = write_bundle(run.bundle(PROBE), [(PROBE, weights, identity)], clips.manifest.single_label, facts)
    result = ProbeResult(
        model=model.bundle.digest,
        member=model.member,
        target_frames=model.target_frames,
        bundle_digest=digest,
        layout=clips.manifest.layout,
        loss=inputs.data.loss,
        balanced=inputs.balanced,
        splits=clips.uses,
        reasons=dict(clips.reasons),
        longer_than_window=_count_long(clips, member),
        trained_on=settings.data.train_splits,
        training_clips=len(fitted.training_N),
        tested_on=test,
        chosen_on=fitted.chosen_on,
        strength=fitted.strength,
        neighbours=fitted.neighbours,
        linear=linear,
        nearest=nearest,
        folds=folds,
    )
    result.write(run.probe_result)
    scores_identity = {"bundle_digest": digest, "data_hash": training_hash, "split": test}
    listed = clips.uses[test].listed
    results_of.write_evaluation(run, clips, test_N, scores_NC, scores_identity, listed, linear, settings.bootstrap)
    return result


def _cross_validate(settings: ProbeSettings, inputs: ProbeInputs) -> ProbeFolds:
    """Hold each split out once. Everything is chosen and fitted on the other splits."""
    names = sorted(inputs.clips.uses)
    folds, parts = {}, []
    for name in names:
        fitted = fit_probe(inputs, [other for other in names if other != name], "")
        rows_N = inputs.clips.rows([name])
        both = fitted.linear_scores(inputs, rows_N), fitted.neighbour_scores(inputs, rows_N)
        linear, nearest = (inputs.score(own_NC, rows_N, 0).metrics for own_NC in both)
        folds[name] = FoldResult(fitted.strength.value, int(fitted.neighbours.value), linear, nearest)
        parts.append((rows_N, *both))
    rows_N, linear_NC, nearest_NC = (np.concatenate(own) for own in zip(*parts, strict=True))
    together = (inputs.score(own_NC, rows_N, settings.bootstrap) for own_NC in (linear_NC, nearest_NC))
    return results_of.summarise_folds(headline_metric(inputs.data.single_label), folds, *together)


def _count_long(clips: ProbeClips, member: Member) -> int:
    """Return how many clips have a second window in `predict`: the rest is half a window or more."""
    return int((clips.embeddings.lengths_N >= 1.5 * member.front_end.clip_s).sum())


def _log(settings: ProbeSettings, run: RunFolder, result: ProbeResult) -> None:
    mlflow_store.open_store(settings.tracking)
    tags = {"stage": "probe", "run_dir": str(run.path), "model": result.model, "bundle": result.bundle_digest}
    params = {
        "model": settings.model, "member": result.member, "target_frames": result.target_frames,
        "loss": result.loss, "balanced": result.balanced,
        "train_splits": ", ".join(result.trained_on), "split": result.tested_on, "chosen_on": result.chosen_on,
        "strength": result.strength.value, "neighbours": result.neighbours.value,
    }  # fmt: skip
    with runs.start_run(settings.experiment, f"{settings.experiment}-probe", params, tags) as run_id:
        if not read_run_note(run.evaluation):  # the run of `evaluate`, to which the report is added
            write_run_note(run.evaluation, run_id)
        runs.log_metrics(run_id, results_of.to_metrics(result))
        runs.log_artifacts(run_id, run.probe)


def _show(result: ProbeResult, settings: ProbeSettings, hint: str) -> None:
    console = Console(soft_wrap=True, highlight=False)
    taken = choose_splits(settings.data, list(result.splits), settings.cross_validate)
    Console().print(results_of.splits_table(result.splits, taken))
    others = {split: use.listed for split, use in result.splits.items() if split not in taken}
    if others:
        console.print(
            f"{sum(others.values())} clips are in splits that the probe does not take: {', '.join(others)}.",
            markup=False,
        )
    if result.longer_than_window:
        console.print(
            f"{result.longer_than_window} clips are longer than the model's window: the probe learned from the mean of "
            "their windows' embeddings, and the bundle predicts the mean of their windows' probabilities."
        )
    if hint:
        console.print(hint, markup=False)
    Console().print(results_of.result_table(result))
    if result.folds is not None:
        Console().print(results_of.folds_table(result.folds))
    console.print(f"Wrote {RunFolder.of(settings).bundle(PROBE)}", markup=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: probe(parse_settings(ProbeSettings, __doc__, argv)))
