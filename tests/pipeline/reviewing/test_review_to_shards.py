"""The complete way of a wrong label: listed by a review on Ray, corrected, and prepared again with the right label."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
from conftest import NewStore
from tones import write_tone

from ast_core.shards.index import ShardIndex
from ast_core.shards.reader import ShardReader
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import PrepareSettings, ReportSettings
from pipeline.prediction.chunk_task import FEW
from pipeline.prepare import prepare
from pipeline.report import report

CLIPS = FEW + 8
"""So many that Ray's workers embed them."""
NAMES = ("low", "middle", "high")
WRONG = {4: "high", 30: "middle", 50: "low", 67: "low"}
"""Labels given to clips, one in twenty, that have another one."""
SPLITS = ("train", "validation", "test")


def read_labels(shards: Path) -> dict[str, tuple[str, list[str]]]:
    """Return split and labels of each clip of shards."""
    names, found = ShardIndex.load(shards).labels, {}
    for split in SPLITS:
        reader = ShardReader(shards, [split])
        for clip_id, row_C in zip(reader.clip_ids, reader.labels_NC, strict=True):
            assert clip_id not in found
            found[clip_id] = split, [name for name, has in zip(names, row_C, strict=True) if has]
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(400)
def test_corrected_labels_reach_the_shards_and_nothing_else_changes(
    tmp_path: Path, trained_bundle: Path, new_store: NewStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = trained_bundle.parents[1], tmp_path / "data"
    rows = ["path,labels,split"]
    for number in range(CLIPS):
        name = write_tone(data / f"{number}.wav", number % 3, number).name
        rows.append(f"{name},{WRONG.get(number, NAMES[number % 3])},{SPLITS[number // 3 % 3]}")
    (data / "list.csv").write_text("\n".join(rows) + "\n")
    common = ["--recipe", "own", "--tracking", new_store(tmp_path)]
    source = ["--data.source", str(data / "list.csv")]
    prepare(parse_settings(PrepareSettings, "", [*common, *source, "--run-dir", str(tmp_path / "first")]))
    shards = ["--shards", str(tmp_path / "first" / "shards"), "--run-dir", str(run)]
    review = [*common, *source, *shards]
    report(parse_settings(ReportSettings, "", [*review, "--review", "--gpus", "no"]))

    table = run / "review" / "clips.csv"
    listed = list(csv.DictReader(table.open(newline="")))
    assert {row["clip_id"] for row in listed[: len(WRONG)]} == {f"{number}.wav" for number in WRONG}
    for row in listed[: len(WRONG)]:
        row["corrected_labels"] = NAMES[int(row["clip_id"].removesuffix(".wav")) % 3]
    with table.open("w", newline="", encoding="utf-8-sig") as file:  # as a spreadsheet saves it
        writer = csv.DictWriter(file, list(listed[0]), lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(listed)
    capsys.readouterr()
    new = ["--corrections", str(table), "--manifest", str(tmp_path / "lists" / "new.csv")]
    report(parse_settings(ReportSettings, "", [*review, *new]))
    (flags,) = re.findall("^Use it with a new run folder: (.+)$", capsys.readouterr().out, re.MULTILINE)
    prepare(parse_settings(PrepareSettings, "", [*common, *shlex.split(flags), "--run-dir", str(tmp_path / "second")]))

    before, after = read_labels(tmp_path / "first" / "shards"), read_labels(tmp_path / "second" / "shards")
    assert after == {f"{number}.wav": (before[f"{number}.wav"][0], [NAMES[number % 3]]) for number in range(CLIPS)}
    assert {name for name, found in before.items() if after[name] != found} == {f"{number}.wav" for number in WRONG}
