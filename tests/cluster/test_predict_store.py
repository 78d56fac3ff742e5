"""Prediction and embedding from object store to object store: loose recordings and Parquet files in, data sets out."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import servers
from conftest import SaveTone

from ast_core.errors import UserError
from ast_core.storage.file_systems import open_filesystem
from pipeline.cli.stages import EmbedSettings, PredictSettings
from pipeline.embed import embed
from pipeline.predict import predict


def upload(client, place: str, name: str, content: bytes) -> None:
    """Put an object below the URI of this test."""
    client.put_object(Bucket=servers.BUCKET, Key=f"{place.rpartition('/')[2]}/{name}", Body=content)


@pytest.mark.timeout(120)
def test_recordings_of_a_store_are_predicted_and_embedded_into_the_store(
    s3_store, place: str, tmp_path: Path, save_tone: SaveTone, trained_bundle: Path
) -> None:
    local = [save_tone(tmp_path / "in" / f"{number} é.wav", 0.4, 300 + 100 * number) for number in range(5)]
    container = io.BytesIO()
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in local]
    pq.write_table(pa.table({"audio": cells}), container)
    with servers.s3(s3_store) as client:
        for path in local:
            upload(client, place, f"in/a/{path.name}", path.read_bytes())
        upload(client, place, "in/clips.parquet", container.getvalue())
        upload(client, place, "in/notes.txt", b"no audio")
        upload(client, place, "in/b/broken.wav", b"RIFF")
    output = f"{place}/predictions"
    settings = PredictSettings(inputs=(f"{place}/in",), model=str(trained_bundle), output=output, gpus="no")
    summary = predict(settings)
    assert (summary.listed, summary.predicted, summary.refused) == (11, 10, 1)
    filesystem, base = open_filesystem(output, "--output")
    rows = {row["path"]: row for row in pq.read_table(base, filesystem=filesystem).to_pylist()}
    assert len(rows) == 11
    own = PredictSettings(inputs=tuple(map(str, local)), model=str(trained_bundle), gpus="no")
    for path, scores_C in predict(own).probabilities.items():
        name = Path(path).name
        for row in (rows[f"{place}/in/a/{name.replace(' é', '%20%C3%A9')}"], rows[f"{place}/in/clips.parquet/{name}"]):
            assert row["probabilities"] == scores_C.tolist()
    with servers.s3(s3_store) as client:
        upload(client, place, "in/a/new.wav", local[0].read_bytes())
    again = predict(settings)
    assert (again.known, again.predicted) == (11, 1)
    some = PredictSettings(inputs=(f"{place}/in/*/*.wav",), model=str(trained_bundle), gpus="no")
    assert predict(some).listed == 7
    embeddings = EmbedSettings((f"{place}/in",), f"{place}/embeddings", str(trained_bundle), gpus="no")
    counts = embed(embeddings)
    assert (counts.listed, counts.embedded, counts.refused) == (12, 11, 1)
    assert embed(embeddings).known == 12


def test_places_that_cannot_be_used_are_refused_in_one_sentence(s3_store, place: str, trained_bundle: Path) -> None:
    model = str(trained_bundle)
    with pytest.raises(UserError, match="does not exist; give a file or a folder"):
        predict(PredictSettings(inputs=(f"{place}/nothing",), model=model))
    with pytest.raises(UserError, match="is a table in an object store"):
        predict(PredictSettings(inputs=(f"{place}/in",), model=model, output=f"{place}/out.parquet"))
    with pytest.raises(UserError, match="nowhere"):
        predict(PredictSettings(inputs=(f"{place}/in",), model=model, output="nowhere://bucket/out/"))
