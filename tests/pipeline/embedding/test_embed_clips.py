"""The engine of `embed`: rows of listed clips and their segments, counts, files that are complete, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from bundles import write_run

from ast_core.audio.waveform import load_waveform
from ast_core.dataset.clips import Clip
from ast_core.errors import UserError
from ast_core.evaluation.embedder import WindowEmbedding
from ast_core.evaluation.predictor import Predictor
from ast_core.weights.adapted_member import adapt_member
from ast_core.weights.bundle import Bundle
from pipeline.embedding import chunk_embedder
from pipeline.embedding.embed_clips import EmbedCounts, EmbedModel, Workers, embed_clips, load_embed_model

RATE_HZ = 16_000
HERE = Workers(gpus="no")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an ensemble of two members with random weights, and the bundle of each."""
    folder = tmp_path_factory.mktemp("run")
    write_run(folder)
    return folder / "bundles"


@pytest.fixture(scope="module")
def model(bundles: Path) -> EmbedModel:
    return load_embed_model(bundles / "seed-0")


def write_noise(path: Path, seconds: float, seed: int = 0) -> str:
    samples_N = np.random.default_rng(seed).normal(0, 0.1, int(RATE_HZ * seconds))
    soundfile.write(path, samples_N, RATE_HZ, subtype="FLOAT")
    return str(path)


def list_clips(folder: Path, count: int) -> list[Clip]:
    """Return good recordings of many lengths, of which the fourth is broken."""
    paths = [write_noise(folder / f"{n}.wav", 0.2 + 0.3 * n, n) for n in range(count)]
    (folder / "3.wav").write_bytes(b"RIFF")
    return [Clip(f"id-{n}", path, (), "") for n, path in enumerate(paths)]


def read_rows(folder: Path) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(folder).to_pylist()
    assert len({row["path"] for row in rows}) == len(rows)
    return {row["path"]: row for row in rows}


def balance(counts: EmbedCounts) -> tuple[int, int, int, int]:
    assert counts.balances
    return counts.listed, counts.known, counts.embedded, counts.refused


def test_each_clip_has_one_row_and_a_second_run_embeds_only_new_ones(bundles: Path, tmp_path: Path) -> None:
    clips, output, model = list_clips(tmp_path, 6), tmp_path / "out", load_embed_model(bundles / "seed-0")
    assert balance(embed_clips(clips[:5], str(output), model, HERE)) == (5, 0, 4, 1)
    counts = embed_clips(clips, str(output), model, HERE)
    assert balance(counts) == (6, 5, 1, 0)
    assert counts.length_s == pytest.approx(1.7)
    rows, predictor = read_rows(output), Predictor(Bundle.load(bundles / "seed-0"))
    assert rows.keys() == {clip.clip_id for clip in clips}
    for clip in clips:
        row = rows[clip.clip_id]
        if clip.clip_id == "id-3":
            assert row["error"].startswith("decode: ")
            assert (row["start_s"], row["end_s"], row["embedding"]) == (None, None, [None] * model.size)
        else:
            waveform_N = load_waveform(Path(clip.path), RATE_HZ)
            assert np.allclose(row["embedding"], predictor.embed(waveform_N).clip, rtol=0, atol=1e-5)
            assert (row["start_s"], row["end_s"]) == (0.0, pytest.approx(len(waveform_N) / RATE_HZ))
    note = json.loads((output / "_embeddings.json").read_text())
    which = {"model": model.bundle.digest, "member": "seed-0", "target_frames": 32, "layer": 4, "kind": "clips"}
    assert note == {"format": 1, **which}
    field = pq.read_table(output).schema.field("embedding")
    assert str(field.type) == "fixed_size_list<element: float>[96]"


def test_segments_are_embedded_as_recordings_of_their_own(model: EmbedModel, tmp_path: Path) -> None:
    path, other = write_noise(tmp_path / "a.wav", 5.0), write_noise(tmp_path / "b.wav", 1.0, 1)
    places = [(0.5, 1.5), (1.0, 2.0), (3.0, None), (0.25, 0.75), (4.9, 6.0)]
    clips = [Clip(f"{n}", path, (), "", start_s, end_s) for n, (start_s, end_s) in enumerate(places)]
    clips.insert(2, Clip("other", other, (), ""))
    assert balance(embed_clips(clips, str(tmp_path / "out"), model, HERE)) == (6, 0, 5, 1)
    rows, predictor, waveform_N = read_rows(tmp_path / "out"), Predictor(model.bundle), load_waveform(path, RATE_HZ)
    for n, (start_s, end_s) in enumerate(places[:4]):
        cut_N = waveform_N[int(start_s * RATE_HZ) : None if end_s is None else int(end_s * RATE_HZ)]
        assert np.allclose(rows[str(n)]["embedding"], predictor.embed(cut_N).clip, rtol=0, atol=1e-5)
        assert (rows[str(n)]["start_s"], rows[str(n)]["end_s"]) == (start_s, end_s or 5.0)
    assert rows["4"]["error"] == "segment: the segment ends at 6 s, the recording at 5 s"


def test_frames_are_rows_that_are_cut_into_files_between_recordings(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_embed_model(bundles / "seed-0", layer=2, frames=True)
    monkeypatch.setattr(chunk_embedder, "PART_BYTES", 6 * model.size * 4)
    clips, output = list_clips(tmp_path, 7), tmp_path / "out"
    assert balance(embed_clips(clips, str(output), model, HERE)) == (7, 0, 6, 1)
    tables = [pq.read_table(path).to_pydict() for path in sorted(output.glob("*.parquet"))]
    assert len(tables) > 2
    names = [set(table["path"]) for table in tables]
    assert sum(map(len, names)) == len(set().union(*names)) == 7
    predictor = Predictor(model.bundle)
    table = pq.read_table(output)
    for clip in clips[:3]:
        own = [row for row in table.to_pylist() if row["path"] == clip.clip_id]
        found = predictor.embed(load_waveform(Path(clip.path), RATE_HZ), layer=2)
        assert np.allclose([row["embedding"] for row in own], found.frames, rtol=0, atol=1e-5)
        assert [row["start_s"] for row in own] == found.starts_s.tolist()
        assert [row["end_s"] for row in own] == found.ends_s.tolist()
    assert balance(embed_clips(clips, str(output), model, HERE)) == (7, 7, 0, 0)


def test_rows_of_another_member_layer_or_kind_are_refused(bundles: Path, model: EmbedModel, tmp_path: Path) -> None:
    clips, output = [Clip("a", write_noise(tmp_path / "a.wav", 1.0), (), "")], str(tmp_path / "out")
    embed_clips(clips, output, model, HERE)
    with pytest.raises(UserError, match=r"embeddings with another layer: layer 4, not 3\. Give --embeddings a new"):
        embed_clips(clips, output, load_embed_model(bundles / "seed-0", layer=3), HERE, option="--embeddings")
    with pytest.raises(UserError, match="embeddings with another kind: kind clips, not frames"):
        embed_clips(clips, output, load_embed_model(bundles / "seed-0", frames=True), HERE)
    with pytest.raises(UserError, match="embeddings with another model, member"):
        embed_clips(clips, output, load_embed_model(bundles / "ensemble", "seed-1"), HERE)
    with pytest.raises(UserError, match="has 2 members, and each has embeddings of its own"):
        load_embed_model(bundles / "ensemble")
    with pytest.raises(UserError, match="this model has 4 blocks; give a number from 1 to 4"):
        load_embed_model(bundles / "seed-0", layer=9)


def test_windows_of_another_length_are_another_data_set_that_a_second_run_completes(
    bundles: Path, tmp_path: Path
) -> None:
    clips, output = list_clips(tmp_path, 6), str(tmp_path / "out")
    own, short = load_embed_model(bundles / "seed-0"), load_embed_model(bundles / "seed-0", target_frames=16)
    assert balance(embed_clips(clips[:4], output, short, HERE)) == (4, 0, 3, 1)
    with pytest.raises(UserError, match="embeddings with another target_frames: target_frames 16, not 32"):
        embed_clips(clips, output, own, HERE)
    assert balance(embed_clips(clips, output, short, HERE)) == (6, 4, 2, 0)
    adapted = adapt_member(own.chosen, 16)
    predictor = Predictor(replace(own.bundle, members=(adapted,)))
    for clip in (clips[0], clips[5]):
        found = predictor.embed(load_waveform(Path(clip.path), RATE_HZ))
        assert np.allclose(read_rows(tmp_path / "out")[clip.clip_id]["embedding"], found.clip, atol=1e-5)
    embed_clips(clips, str(tmp_path / "own"), load_embed_model(bundles / "seed-0", target_frames=32), HERE)
    assert balance(embed_clips(clips, str(tmp_path / "own"), own, HERE)) == (6, 6, 0, 0)
    with pytest.raises(UserError, match="another target_frames: target_frames 32, not 16"):
        embed_clips(clips, str(tmp_path / "own"), short, HERE)
    with pytest.raises(UserError, match="target-frames is 15, and the patches of member seed-0 are 16 frames wide"):
        load_embed_model(bundles / "seed-0", target_frames=15)


def test_a_member_of_an_ensemble_has_the_embeddings_of_its_own_bundle(bundles: Path, tmp_path: Path) -> None:
    clips = [Clip("a", write_noise(tmp_path / "a.wav", 1.0), (), "")]
    embed_clips(clips, str(tmp_path / "one"), load_embed_model(bundles / "ensemble", "seed-1"), HERE)
    embed_clips(clips, str(tmp_path / "two"), load_embed_model(bundles / "seed-1"), HERE)
    assert read_rows(tmp_path / "one") == read_rows(tmp_path / "two")


def test_a_recording_whose_embedding_is_not_finite_is_refused(
    model: EmbedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(WindowEmbedding):
        """Embedding of a model whose values overflow."""

        def __init__(self, clip_E: np.ndarray, frames_KE: np.ndarray, counts: bool) -> None:
            super().__init__(clip_E * np.float32(np.inf), frames_KE, counts)

    monkeypatch.setattr("ast_core.evaluation.embedder.WindowEmbedding", Broken)
    clips = [Clip("a", write_noise(tmp_path / "a.wav", 1.0), (), "")]
    counts = embed_clips(clips, str(tmp_path / "out"), model, HERE)
    assert balance(counts) == (1, 0, 0, 1)
    assert counts.reasons == {"model: an embedding is not finite": 1}


def test_nothing_to_embed_is_an_empty_run(model: EmbedModel, tmp_path: Path) -> None:
    assert balance(embed_clips([], str(tmp_path / "out"), model, HERE)) == (0, 0, 0, 0)
