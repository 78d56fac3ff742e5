"""Find the clips of a run's data set whose labels look wrong, and write them as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from ast_core.dataset.clips import Manifest
from ast_core.errors import require
from ast_core.probing.label_review import LabelReview, review_labels
from ast_core.probing.linear_probe import ProbeData
from ast_core.probing.probe_folds import place_in_folds
from ast_core.probing.probe_head import compute_head_input
from ast_core.storage.json_files import sha256_of_json
from ast_core.storage.places import root_of
from pipeline.embedding.embed_clips import EmbedModel, Workers, load_embed_model
from pipeline.probing.embedded_clips import embed_listed, note_source
from pipeline.probing.probe_clips import ProbeClips, choose_loss
from pipeline.reviewing.review_table import SuspectRow, make_row, write_review
from pipeline.run_folder.layout import RunFolder
from pipeline.tracking.model_choice import fetch_model_folder

if TYPE_CHECKING:
    from pipeline.cli.stages import ReportSettings


@dataclass(frozen=True)
class ReviewedLabels:
    """What the page says about the review: counts, which balance, and the listed suspects.

    clips = judged + unjudged + rejected + missing.
    """

    rows: tuple[SuspectRow, ...]
    """The listed suspects, the most suspicious first."""
    found: int
    """All suspects."""
    clips: int
    """Clips of the reviewed splits."""
    judged: int
    unjudged: int
    """Clips whose label no other clip has in the folds that judge it."""
    rejected: int
    """Clips whose recording cannot be used."""
    missing: int
    """Clips without a file."""
    splits: tuple[str, ...]
    model: str
    """What the embeddings are of."""
    folds: int
    k: int
    """Number of neighbours."""
    table: str
    """Path of the table."""


def find_suspects(settings: ReportSettings, run: RunFolder, manifest: Manifest, source: str) -> ReviewedLabels:
    """Embed the clips of the run's splits, judge their labels, write the table, and print the counts.

    Args:
        settings: of `report`.
        run: folder of the run.
        manifest: the data set.
        source: its folder, file or URI.

    Raises:
        UserError: the run has no bundle and no other model is given; the model does not fit; no split has clips; or
            nothing can be held out.
    """
    model = _choose_model(settings, run)
    own = {clip.split for clip in manifest.clips}
    named = [*settings.data.train_splits, settings.data.validation_split, settings.data.test_split]
    splits = tuple(dict.fromkeys(split for split in named if split in own))
    require(bool(splits), f"{source} has none of the splits {', '.join(filter(None, named))}, so nothing is reviewed.")
    place = run.review / f"embeddings-{sha256_of_json(model.identity)[:12]}"
    note_source(str(place), root_of(source))
    workers = Workers(settings.gpus, settings.workers, settings.address)
    clips = embed_listed(manifest, splits, str(place), model, workers, run.review)
    review = _judge(clips, splits, model, settings.review_clips)
    rows = tuple(
        make_row(suspect, clips.clips[suspect.row], manifest.labels, manifest.audio_column)
        for suspect in review.suspects
    )
    write_review(run.review_table, rows)
    uses = [clips.uses[split] for split in splits]
    found = ReviewedLabels(
        rows=rows,
        found=review.found,
        clips=sum(use.listed for use in uses),
        judged=review.judged,
        unjudged=review.unjudged,
        rejected=sum(use.rejected for use in uses),
        missing=sum(use.missing for use in uses),
        splits=splits,
        model=f"{model.member} of {model.bundle.digest[:12]}",
        folds=review.folds,
        k=review.k,
        table=str(run.review_table),
    )
    balanced = found.clips == found.judged + found.unjudged + found.rejected + found.missing
    require(balanced, f"The counts of the review do not balance: {found.clips} clips. Run the same command again.")
    _show(found)
    return found


def _choose_model(settings: ReportSettings, run: RunFolder) -> EmbedModel:
    """Return the model of `--review-model`, else a member of the bundle that stands for the run."""
    if settings.review_model:
        folder = fetch_model_folder(settings.review_model, settings.tracking)
        return load_embed_model(folder, settings.review_member or None)
    bundles = dict(run.described_bundles())
    require(
        bool(bundles),
        f"{run.bundles} holds no bundle whose embeddings the review could compare; train or probe first, or give "
        "--review-model.",
    )
    folder = run.bundle(run.main_bundle())
    return load_embed_model(folder, settings.review_member or bundles[folder].members[0].name)


def _judge(clips: ProbeClips, splits: tuple[str, ...], model: EmbedModel, most: int) -> LabelReview:
    embeddings, manifest, member = clips.embeddings, clips.manifest, model.chosen
    data = ProbeData(
        lambda rows_B: compute_head_input(member.model, embeddings.read(rows_B)),
        clips.labels, manifest.labels, manifest.single_label, choose_loss("auto", manifest),
    )  # fmt: skip
    rows_N = clips.rows(splits)
    names = [clips.clips[row].split for row in rows_N]
    fold_N = place_in_folds(rows_N, clips.labels, names, clips.groups(rows_N))
    return review_labels(data, embeddings.read, rows_N, fold_N, balanced=True, most=most)


def _show(found: ReviewedLabels) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{found.clips} clips of {', '.join(found.splits)} = {found.judged} judged + {found.unjudged} that cannot be "
        f"judged + {found.rejected} rejected + {found.missing} without a file",
        markup=False,
    )
    console.print(
        f"{found.found} labels look wrong to a probe and the {found.k} nearest neighbours on {found.folds} folds, by "
        f"the embeddings of {found.model}. The first {len(found.rows)}: {found.table}",
        markup=False,
    )
