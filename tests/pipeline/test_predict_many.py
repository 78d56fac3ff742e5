"""Prediction of many recordings: chunks, data sets that a run completes, one table, and what the user sees."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SaveTone

from ast_core.dataset.clips import Clip
from ast_core.errors import UserError
from ast_core.weights.bundle import Bundle, read_members, write_bundle
from pipeline.cli.stages import PredictSettings
from pipeline.predict import predict
from pipeline.prediction.recording_chunks import Chunk, ChunkResult, chunk_clips, chunk_size
from pipeline.prediction.row_folder import PREDICTIONS, RowFolder

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, signal, sys
from pipeline.cli.stages import PredictSettings
from pipeline.predict import predict
from pipeline.prediction.row_folder import RowFolder
recordings, model, output = sys.argv[1:]
write = RowFolder.write_part
written = 0
def write_twice(self, name, content):
    global written
    if written == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    written += 1
    write(self, name, content)
RowFolder.write_part = write_twice
predict(PredictSettings(inputs=(recordings,), model=model, output=output))
"""
"""Program that is killed between its second and its third output file."""


@pytest.fixture
def recordings(tmp_path: Path, save_tone: SaveTone) -> Path:
    """Write 58 good recordings and two broken ones."""
    for number in range(58):
        save_tone(tmp_path / "in" / f"{number % 3}" / f"{number:02d}.wav", 0.2 + 0.02 * number, 200 + 50 * number)
    (tmp_path / "in" / "1" / "broken.wav").write_bytes(b"RIFF")
    (tmp_path / "in" / "2" / "empty.wav").touch()
    return tmp_path / "in"


def settings(recordings: Path, bundle: Path, output: Path | str | None = None, **more: Any) -> PredictSettings:
    return PredictSettings(
        inputs=(str(recordings),), model=str(bundle), output=None if output is None else str(output), gpus="no", **more
    )


def rows_of(folder: Path) -> dict[str, dict[str, object]]:
    """Return the rows of a data set by path, after checking that no path has two."""
    rows = pq.read_table(folder).to_pylist()
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def test_a_folder_is_a_data_set_with_a_row_for_each_recording(
    recordings: Path, trained_bundle: Path, tmp_path: Path
) -> None:
    summary = predict(settings(recordings, trained_bundle, tmp_path / "out"))
    assert (summary.listed, summary.predicted, summary.refused, summary.known) == (60, 58, 2, 0)
    rows = rows_of(tmp_path / "out")
    assert rows.keys() == {str(path) for path in recordings.rglob("*.wav")}
    assert {Path(name).name for name, row in rows.items() if row["error"]} == {"broken.wav", "empty.wav"}
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert all(name.endswith(".parquet") or name[0] in "._" for name in names)
    assert sum(name.endswith(".parquet") for name in names) == 4
    assert summary.labels.total() == 58
    assert summary.reasons.total() == 2


def test_a_killed_run_is_completed_to_the_same_files(recordings: Path, trained_bundle: Path, tmp_path: Path) -> None:
    predict(settings(recordings, trained_bundle, tmp_path / "whole"))
    arguments = [str(recordings), str(trained_bundle), str(tmp_path / "out")]
    ended = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.parquet")}
    assert len(before) == 2
    summary = predict(settings(recordings, trained_bundle, tmp_path / "out"))
    assert (summary.known, summary.predicted + summary.refused) == (32, 28)
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.name[0] != "."}
        for name in ("whole", "out")
    ]
    assert contents[0] == contents[1]
    assert before.items() <= contents[1].items()


def test_a_second_run_predicts_only_new_recordings(
    recordings: Path, trained_bundle: Path, tmp_path: Path, save_tone: SaveTone, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"{tmp_path}/out/"
    predict(settings(recordings, trained_bundle, output))
    before = rows_of(tmp_path / "out")
    save_tone(recordings / "0" / "new.wav", 1.0)
    capsys.readouterr()
    summary = predict(settings(recordings, trained_bundle, output))
    assert (summary.known, summary.predicted, summary.refused) == (60, 1, 0)
    assert "61 files = 1 predicted + 0 refused + 60 with a row already" in capsys.readouterr().out
    after = rows_of(tmp_path / "out")
    assert after.keys() - before.keys() == {str(recordings / "0" / "new.wav")}
    assert before.items() <= after.items()
    again = predict(settings(recordings, trained_bundle, output))
    assert (again.known, again.predicted) == (61, 0)


def test_rows_of_another_model_or_option_are_refused(recordings: Path, trained_bundle: Path, tmp_path: Path) -> None:
    one = recordings / "0" / "00.wav"
    predict(settings(one, trained_bundle, tmp_path / "out"))
    with pytest.raises(UserError, match=r"another top_k: top_k 5, not 2\. Give --output a new folder"):
        predict(settings(one, trained_bundle, tmp_path / "out", top_k=2))
    name, weights, identity = read_members(trained_bundle)[0]
    write_bundle(tmp_path / "other", [(name, {key: value + 1 for key, value in weights.items()}, identity)], True)
    with pytest.raises(UserError, match="predictions with another model"):
        predict(settings(one, tmp_path / "other", tmp_path / "out"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes.txt, but no _predictions.json"):
        predict(settings(one, trained_bundle, tmp_path / "mine"))
    (tmp_path / "out" / PREDICTIONS.note).write_text("[")
    with pytest.raises(UserError, match="is damaged"):
        predict(settings(one, trained_bundle, tmp_path / "out"))


def test_a_damaged_output_file_is_named_and_predicted_again_once_removed(
    recordings: Path, trained_bundle: Path, tmp_path: Path
) -> None:
    predict(settings(recordings / "0" / "00.wav", trained_bundle, tmp_path / "out"))
    part = next((tmp_path / "out").glob("*.parquet"))
    content = part.read_bytes()
    part.write_bytes(content[:-9])
    with pytest.raises(UserError, match=f"{part.name} cannot be read"):
        predict(settings(recordings / "0" / "00.wav", trained_bundle, tmp_path / "out"))
    pq.write_table(pa.table({"x": [1]}), part)
    with pytest.raises(UserError, match=f"{part.name} cannot be read: it has no column path"):
        predict(settings(recordings / "0" / "00.wav", trained_bundle, tmp_path / "out"))
    part.unlink()
    predict(settings(recordings / "0" / "00.wav", trained_bundle, tmp_path / "out"))
    assert part.read_bytes() == content


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_a_table_of_a_stopped_run_is_completed(
    recordings: Path, trained_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    predict(settings(recordings, trained_bundle, tmp_path / f"whole{suffix}"))
    write, written = RowFolder.write_part, []

    def write_one(self: RowFolder, name: str, content: bytes) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(name)
        write(self, name, content)

    output = tmp_path / f"out{suffix}"
    with monkeypatch.context() as patch:
        patch.setattr(RowFolder, "write_part", write_one)
        with pytest.raises(KeyboardInterrupt):
            predict(settings(recordings, trained_bundle, output))
    assert not output.exists()
    summary = predict(settings(recordings, trained_bundle, output))
    assert summary.known == 16
    assert output.read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not list(tmp_path.glob(".out*"))


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_rows_that_a_stopped_run_with_other_options_left_are_not_in_the_table(
    recordings: Path, trained_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out.parquet"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.predict.OutputPlace.finish", interrupt)
        with pytest.raises(KeyboardInterrupt):
            predict(settings(recordings, trained_bundle, output))
    summary = predict(settings(recordings / "0", trained_bundle, output, top_k=1))
    assert (summary.known, summary.listed) == (0, 20)
    assert [len(labels) for labels in pq.read_table(output)["labels"].to_pylist()] == [1] * 20


def test_the_screen_shows_twenty_rows_and_a_summary(
    recordings: Path, trained_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(settings(recordings, trained_bundle, top_k=1))
    shown = capsys.readouterr().out
    assert len(re.findall(r"│ \d\d\.wav", shown)) == 20
    assert "most probable label" in shown
    assert "reason of refusal" in shown
    assert "hours of audio/s" in shown
    assert "60 files = 58 predicted + 2 refused" in shown


def test_labels_are_limited_by_number_and_probability(recordings: Path, trained_bundle: Path, tmp_path: Path) -> None:
    one = recordings / "0" / "00.wav"
    scores_C = predict(settings(one, trained_bundle)).probabilities[str(one)]
    least = float(np.sort(scores_C)[-2])
    predict(settings(one, trained_bundle, tmp_path / "out.parquet", min_probability=least))
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    classes = Bundle.load(trained_bundle).labels
    assert row["labels"] == [classes[c] for c in np.argsort(-scores_C)[:2]]
    assert len(row["probabilities"]) == len(classes)


def test_patterns_and_overlapping_inputs_list_each_recording_once(
    recordings: Path, trained_bundle: Path, tmp_path: Path
) -> None:
    inputs = (f"{recordings}/*/0?.wav", str(recordings / "0"), f"{recordings}/**/broken.wav")
    summary = predict(
        PredictSettings(inputs=inputs, model=str(trained_bundle), output=str(tmp_path / "out"), gpus="no")
    )
    wanted = {str(path) for path in [*recordings.glob("*/0?.wav"), *(recordings / "0").iterdir()]}
    assert rows_of(tmp_path / "out").keys() == wanted | {str(recordings / "1" / "broken.wav")}
    assert summary.listed == len(wanted) + 1
    with pytest.raises(UserError, match="No audio file matches"):
        predict(settings(Path(f"{recordings}/*.flac"), trained_bundle))


def test_containers_are_predicted_as_their_recordings_are(
    recordings: Path, trained_bundle: Path, tmp_path: Path
) -> None:
    files = sorted((recordings / "0").iterdir())[:3]
    inside = tmp_path / "containers"
    inside.mkdir()
    cells = [{"bytes": path.read_bytes(), "path": "same.wav"} for path in files]
    pq.write_table(pa.table({"audio": cells}), inside / "clips.parquet")
    pq.write_table(pa.table({"path": list(map(str, files))}), inside / "list.parquet")
    with tarfile.open(inside / "clips.tar", "w") as archive:
        for path in files:
            archive.add(path, f"a/{path.name}")
    loose = [own.probabilities_C for own in predict(settings(recordings / "0" / "0[0-6].wav", trained_bundle)).first]
    predict(settings(inside, trained_bundle, tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    parquet, tar = f"{inside}/clips.parquet", f"{inside}/clips.tar"
    names = [f"{parquet}/same.wav", f"{parquet}/same.wav#2", f"{parquet}/same.wav#3"]
    assert list(rows) == names + [f"{tar}/a/{path.name}" for path in files]
    assert [row["probabilities"] for row in rows.values()] == [scores_C.tolist() for scores_C in loose + loose]
    with pytest.raises(UserError, match="holds no recordings"):
        predict(settings(inside / "list.parquet", trained_bundle))


def test_pictures_are_refused_with_workers_and_for_other_than_files(
    recordings: Path, trained_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="leave out --workers"):
        predict(settings(recordings, trained_bundle, timeline=tmp_path / "times", workers=2))


def test_chunks_keep_their_recordings_and_depend_on_places_alone() -> None:
    clips = [(place, Clip(f"{place}\udcff", f"/{place}", (), "", member=(place, 1))) for place in range(40_000)]
    chunks = list(chunk_clips(clips))
    assert [clip for chunk in chunks for clip in chunk.clips] == [clip for _, clip in clips]
    assert [len(chunk.clips) for chunk in chunks[:-1]] == [chunk_size(chunk.number) for chunk in chunks[:-1]]
    assert (len(chunks[0].clips), max(len(chunk.clips) for chunk in chunks)) == (16, 256)
    assert Chunk.unpack(chunks[9].pack()) == chunks[9]
    gone = {clip.clip_id for clip in chunks[7].clips}
    assert list(chunk_clips(entry for entry in clips if entry[1].clip_id in gone)) == [chunks[7]]
    result = ChunkResult(3, "a", 2, 1, 0.5, rows=b"PAR1")
    result.labels["dog"] += 1
    assert ChunkResult.from_row(result.to_row()) == result
    assert json.loads(result.to_row()["facts"])["recordings"] == 2
    assert os.sep not in chunks[7].file_name
