"""The report is one file without network access, and shows the numbers of the evaluation."""

from __future__ import annotations

import csv
import dataclasses
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import NewStore
from prepared import write_shards
from tones import write_tone

from ast_core.dataset.manifest import load_source
from ast_core.dataset.source_options import options_of
from ast_core.errors import UserError
from ast_core.storage.json_files import read_hashed_json, write_hashed_json
from ast_core.weights.bundle import read_members, write_bundle
from ast_core.weights.bundle_description import BundleFacts
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import DataConfig, EvaluateSettings, PrepareSettings, ReportSettings
from pipeline.evaluate import evaluate
from pipeline.report import report
from pipeline.reporting.hard_clips import clip_losses, confusion_matrix, most_confused_pairs

HOSTILE = "<script>alert('x')</script> & \"co\""


@pytest.fixture
def run_dir(tmp_path: Path, trained_bundle: Path, new_store: NewStore) -> Path:
    """Write a run of one member, with a label that a page without escaping would run as code."""
    new_store(tmp_path)
    write_shards(tmp_path / "shards", {"train": 6, "test": 9})
    path = tmp_path / "shards" / "index.json"
    index = read_hashed_json(path, "index")
    labels = [HOSTILE, *index["labels"][1:]]
    write_hashed_json(path, index | {"labels": labels})
    name, weights, identity = read_members(trained_bundle)[0]
    write_bundle(trained_bundle, [(name, weights, {**identity, "labels": labels})], True, BundleFacts(role="member"))
    return tmp_path


def settings_of(run_dir: Path, kind, source: str = "clips"):
    values = {"run_dir": run_dir, "shards": run_dir / "shards", "experiment": "test", "workers": 1}
    return kind(**values, tracking=f"sqlite:///{run_dir}/mlflow.db", data=DataConfig(source=source))


@pytest.mark.slow
def test_the_page_is_one_file_with_the_numbers_of_the_evaluation(run_dir: Path, without_ray) -> None:
    results = evaluate(settings_of(run_dir, EvaluateSettings))
    page = report(settings_of(run_dir, ReportSettings)).read_text()
    assert f"accuracy {results['seed-0']['accuracy']:.3f}" in page
    assert f"{results['seed-0']['mAP']:.4f}" in page
    assert page.count("<img") == 10  # clips, classes, confusion; no curves without a history
    assert HOSTILE not in page
    assert "&lt;script&gt;" in page
    sources = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", page)
    for section in ("Data", "Hardest clips", "Confusion matrix", "Curves and classes"):
        assert section in page
    assert page.count('class="card"') == 8
    assert page.count("No player: ") == 8  # the data set does not exist
    assert "<audio" not in page

    rows = [f"{write_tone(run_dir / 'data' / f'{n}.wav', n % 3, n).name},a,test-{n},test" for n in range(9)]
    (run_dir / "data" / "list.csv").write_text("\n".join(["path,labels,clip_id,split", *rows]) + "\n")
    settings = settings_of(run_dir, ReportSettings, str(run_dir / "data" / "list.csv"))
    page = report(settings).read_text()
    players = re.findall(
        r'<audio controls preload="none" aria-label="sound of (test-\d)" src="data:audio/mpeg;base64,', page
    )
    assert sorted(players) == sorted(set(re.findall(r"<b>(test-\d)</b>", page)))
    assert len(players) == 8
    assert "No player" not in page
    assert "http" not in re.sub(r"data:[a-z/]*;base64,[^\"]*", "", page)
    assert "<audio" not in report(dataclasses.replace(settings, players=False)).read_text()


@pytest.fixture
def mislabelled(run_dir: Path) -> ReportSettings:
    """Write recordings of three pitches, two of them with a wrong label, and return settings that review them."""
    rows = ["path,labels,split"]
    for n in range(36):
        name = write_tone(run_dir / "data" / f"{n}.wav", n % 3, n).name
        label = {4: "low", 30: HOSTILE}.get(n, ("low", "middle", HOSTILE)[n % 3])
        quoted = label.replace('"', '""')
        rows.append(f'{name},"{quoted};",{"test" if n > 24 else "train"}')
    (run_dir / "data" / "list.csv").write_text("\n".join(rows) + "\n")
    settings = settings_of(run_dir, ReportSettings, str(run_dir / "data" / "list.csv"))
    return dataclasses.replace(settings, review=True, review_clips=5, gpus="no", workers=0)


def test_wrong_labels_are_listed_with_players_and_corrections_make_a_new_manifest(
    mislabelled: ReportSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, folder = mislabelled.run_dir, mislabelled.run_dir / "data"
    before = (folder / "list.csv").read_bytes()
    page = report(mislabelled).read_text()
    table = run_dir / "review" / "clips.csv"
    rows = list(csv.DictReader(table.open(newline="")))
    assert {row["clip_id"] for row in rows[:2]} == {"4.wav", "30.wav"}
    assert {row["clip_id"]: row["suggested_labels"] for row in rows[:2]} == {"4.wav": "middle", "30.wav": "low"}
    assert page.count("<audio controls") == len(rows) <= 5
    assert "36 clips of train, test = 36 judged + 0 that cannot be judged" in page
    assert HOSTILE not in page

    for row in rows[:2]:
        row["corrected_labels"] = row["suggested_labels"]
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    capsys.readouterr()
    new = run_dir / "corrected.csv"
    settings = dataclasses.replace(mislabelled, review=False, corrections=table, manifest=new)
    assert report(settings) == new
    shown = capsys.readouterr().out
    assert f"{len(rows)} rows of {table} = 2 with other labels + 0 left out + 0 with the labels" in shown
    assert f"36 clips in {new} = 36 of {folder / 'list.csv'} - 0 left out - 0 without a file" in shown
    flags = re.findall("^Use it with a new run folder: (.+)$", shown, re.MULTILINE)
    data = parse_settings(PrepareSettings, "", shlex.split(flags[0].replace("audioset_full", "own"))).data
    after = load_source(data.source, data.layout, options_of(data), 0)
    own = {clip.clip_id: after.labels[clip.labels[0]] for clip in after.clips}
    assert [own[f"{n}.wav"] for n in range(36)] == ["low", "middle", HOSTILE] * 12
    assert (folder / "list.csv").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--corrections", "a.csv"], "--corrections is a.csv and --manifest is None; give both"),
        (["--manifest", "a.csv"], "--corrections is None and --manifest is a.csv; give both"),
        (["--review", "--corrections", "a.csv", "--manifest", "b.csv"], "give one of them"),
        (["--review", "--review-clips", "0"], "--review-clips is 0; give 1 or more"),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(flags: list[str], text: str) -> None:
    with pytest.raises(UserError, match=re.escape(text)):
        parse_settings(ReportSettings, "", ["--recipe", "own", "--data.source", "x", *flags])


def test_a_review_without_a_model_or_clips_says_what_to_do(mislabelled: ReportSettings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train or probe first, or give --review-model"):
        report(dataclasses.replace(mislabelled, run_dir=tmp_path / "other"))
    path = Path(mislabelled.data.source)
    path.write_text(path.read_text().replace(",train", ",fold1").replace(",test", ",fold2"))
    with pytest.raises(UserError, match="none of the splits train, test"):
        report(mislabelled)


def test_a_split_that_does_not_exist_is_an_error(run_dir: Path) -> None:
    settings = settings_of(run_dir, ReportSettings)
    with pytest.raises(UserError, match="There is no split fold5; there are test, train"):
        report(dataclasses.replace(settings, data=dataclasses.replace(settings.data, test_split="fold5")))


def test_before_any_training_the_page_shows_the_data_only(run_dir: Path) -> None:
    page = report(dataclasses.replace(settings_of(run_dir, ReportSettings), run_dir=run_dir / "nothing")).read_text()
    assert "<td>train</td>" in page
    assert "Hardest" not in page


def test_the_page_shows_clips_of_each_class_and_split_and_names_classes_without_test_clips(run_dir: Path) -> None:
    path = run_dir / "shards" / "index.json"
    index = read_hashed_json(path, "Index")
    for number, split in enumerate(index["splits"].values()):
        split["classes"] = [90 + number, 80 + number, 0]
    write_hashed_json(path, index)
    page = report(dataclasses.replace(settings_of(run_dir, ReportSettings), run_dir=run_dir / "nothing")).read_text()
    assert "Clips of each class and split" in page
    assert "<td>90</td><td>91</td>" in page
    assert "1 of 3 classes" in page
    assert "are without test clips" in page


def test_losses_and_confusion_of_a_known_table_are_correct() -> None:
    scores_NC = np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.5, 0.4, 0.1]], np.float32)
    labels_NC = np.eye(3, dtype=np.float32)[[0, 1, 2, 1]]
    np.testing.assert_allclose(clip_losses(scores_NC, labels_NC, True), -np.log([0.8, 0.3, 0.6, 0.4]), rtol=1e-5)
    both = -(np.log(0.8) + 2 * np.log(0.9)) / 3
    assert clip_losses(scores_NC, labels_NC, False)[0] == pytest.approx(both, rel=1e-5)
    matrix_CC = confusion_matrix(scores_NC, labels_NC)
    np.testing.assert_array_equal(matrix_CC, [[1, 0, 0], [2, 0, 0], [0, 0, 1]])
    pair = most_confused_pairs(matrix_CC, ("a", "b", "c"))
    assert [(one.true, one.taken_for, one.clips, one.of) for one in pair] == [("b", "a", 2, 2)]
