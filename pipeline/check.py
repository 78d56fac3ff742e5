"""List all problems of a data set without preparing it: exit status 1 if clips would be lost, or the set refused.

ast-pipeline check FOLDER
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == "__main__":  # the flags are parsed before the imports below, which take seconds
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from pipeline.cli.main import main as start

    start(["check", *sys.argv[1:]])
    sys.exit()


import torch
from rich.console import Console
from rich.progress import Progress

from ast_core.audio.decoder import Decoder
from ast_core.dataset.clips import Clip, Manifest
from ast_core.dataset.contents.clip_contents import Content, describe_recording, read_contents, recording_of
from ast_core.dataset.manifest import read_manifest
from ast_core.dataset.problems import Problems, shorten
from ast_core.dataset.source_options import options_of
from ast_core.errors import ClipError, require
from ast_core.storage.atomic_files import sha256_of
from pipeline.cli.command_line import parse_settings
from pipeline.cli.program import run_stage
from pipeline.cli.stages import CheckSettings
from pipeline.preparation.part_cuts import cut_clips
from pipeline.preparation.part_writer import compute_fbanks, decode_contents
from pipeline.reporting.class_counts import classes_table, order_splits, warn_of_empty_classes
from pipeline.run_folder.listed_clips import missing_splits

_AT_A_TIME = 16
"""Clips that a decoder reads at a time, or a row group of a Parquet file. Segments of one recording that follow each
other are read in one pass."""
Hashes = dict[tuple[str, tuple[int, int] | None], str]
"""SHA-256 of recordings, by what `recording_of` returns for their clips."""


def check(settings: CheckSettings) -> None:
    """Print the problems of the lists and of every recording, the clips of each class and split, and warnings.

    Raises:
        UserError: prepare would lose clips or refuse the data set; or the source does not exist or has no known layout.
    """
    data, source, problems = settings.data, settings.source, Problems(sys.maxsize)
    manifest = read_manifest(source, problems, data.layout, options_of(data))
    if not manifest.clips:
        problems.add(source, None, "no clip can be read from this source")
    elif sentence := missing_splits(data, source, {clip.split for clip in manifest.clips}):
        problems.add(source, None, sentence)
    hashes: Hashes = {}
    kept = _decode(settings, manifest, problems, hashes)
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{source} ({manifest.layout}): {len(manifest.clips)} clips, {len(kept)} can be used; "
        f"{len(manifest.labels)} classes",
        markup=False,
    )
    for note in [*manifest.notes, *(counts.sentence for counts in manifest.unlisted)]:
        console.print(note, markup=False)
    counts = order_splits(_count_classes(manifest, kept), data)
    console.print(classes_table(manifest.labels, counts))
    for text in problems.texts:
        console.print(f"Problem: {text}", markup=False)
    for sentence in [
        *warn_of_empty_classes(manifest.labels, counts, data),
        *_unlabelled(kept),
        *_duplicates(kept, hashes),
    ]:
        console.print(f"Warning: {sentence}", markup=False)
    count = len(problems.texts)
    require(not count, f"{source} has {count} problem(s): prepare would lose these clips or refuse the data set.")
    console.print("Every listed clip can be used.")


def _decode(settings: CheckSettings, manifest: Manifest, problems: Problems, hashes: Hashes) -> list[Clip]:
    """Read every clip as `prepare` does, each thread with a decoder's process; return the clips that can be used.

    The hashes of recordings that are not local files are added to `hashes`, since they are read only here.
    """
    torch.set_num_threads(1)
    own = threading.local()

    def find_faults(clips: Sequence[Clip]) -> list[str]:
        if not hasattr(own, "decoder"):
            own.decoder = Decoder(settings.prepare.decode_limit_s)
        contents = _note_hashes(read_contents(clips, manifest.audio_column), hashes)
        waveforms = decode_contents(clips, contents, settings.front_end, own.decoder)
        found = (result for _, result in compute_fbanks(waveforms, settings.front_end))
        return [str(result) if isinstance(result, ClipError | OSError) else "" for result in found]

    kept, clips = [], manifest.clips
    portions = cut_clips(clips, _AT_A_TIME, manifest.audio_column)
    pool = ThreadPoolExecutor(settings.workers or os.cpu_count() or 1)
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("check", total=len(clips))
            for portion, faults in zip(portions, pool.map(find_faults, portions), strict=True):
                progress.advance(task, len(portion))
                for clip, fault in zip(portion, faults, strict=True):
                    if fault:
                        place = describe_recording(clip, manifest.audio_column)
                        problems.add(place or clip.clip_id, None, fault)
                    else:
                        kept.append(clip)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, too
    return kept


def _count_classes(manifest: Manifest, kept: Sequence[Clip]) -> dict[str, list[int]]:
    """Return the usable clips of each label, by split."""
    found: dict[str, Counter[int]] = {clip.split: Counter() for clip in manifest.clips}
    for clip in kept:
        found[clip.split].update(clip.labels)
    return {split: [own[label] for label in range(len(manifest.labels))] for split, own in found.items()}


def _unlabelled(kept: Sequence[Clip]) -> list[str]:
    names = [clip.clip_id for clip in kept if not clip.labels]
    return [f"{len(names)} clips have no label, e.g. {shorten(names[0])}."] if names else []


def _note_hashes(contents: Iterator[tuple[Clip, Content]], hashes: Hashes) -> Iterator[tuple[Clip, Content]]:
    """Yield the contents, and note the hash of each one that is bytes."""
    for clip, content in contents:
        if isinstance(content, bytes):
            hashes[recording_of(clip)] = hashlib.sha256(content).hexdigest()
        yield clip, content


def _duplicates(kept: Sequence[Clip], hashes: Hashes) -> Iterator[str]:
    """Yield a sentence for each set of different recordings with the same bytes."""
    clips = {recording_of(clip): clip for clip in kept}
    sizes: dict[int, list[str]] = defaultdict(list)
    same: dict[str, list[Clip]] = defaultdict(list)
    for name, clip in clips.items():
        if name in hashes:
            same[hashes[name]].append(clip)
        else:
            sizes[Path(clip.path).stat().st_size].append(clip.path)
    for paths in sizes.values():
        for path in paths if len(paths) > 1 else ():
            same[sha256_of(Path(path))].append(clips[path, None])
    for copies in same.values():
        if len(copies) > 1:
            names = ", ".join(shorten(clip.clip_id) for clip in copies)
            splits = sorted({clip.split for clip in copies})
            faults = ["different labels"] if len({clip.labels for clip in copies}) > 1 else []
            faults += [f"the splits {' and '.join(splits)}"] if len(splits) > 1 else []
            yield f"{names} are identical files" + (f" with {' in '.join(faults)}" if faults else "") + "."


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage as a program."""
    run_stage(lambda: check(parse_settings(CheckSettings, __doc__, argv)))
