"""R4: a truncated file or one with a flipped bit is noticed, named with both hashes, and not used."""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from forked_trainings import job_in
from prepared import FRONT_END, write_shards
from safetensors.torch import load_file

from ast_core.dataset.manifest import Clip
from ast_core.errors import DamagedError
from ast_core.shards.index import ShardIndex
from ast_core.storage.json_files import SELF_HASH, read_hashed_json, read_json
from ast_core.training.trainer import fit
from ast_core.weights import checkpoint
from ast_core.weights.bundle import Bundle
from ast_core.weights.decisions import Decisions
from pipeline.preparation.part_writer import write_shard_part
from pipeline.ray_runtime.shard_part import ShardMetadata, ShardPart, is_complete

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CUTS = FLIPS = 64


def damages(paths: Sequence[Path], rng: random.Random, cuts: int, flips: int) -> Iterator[tuple[Path, bytes]]:
    """Cut a random file at a random byte or flip a random bit, yield it with its original bytes, then restore it."""
    for number in range(cuts + flips):
        path = rng.choice(paths)
        whole = path.read_bytes()
        place = rng.randrange(len(whole))
        flipped = bytes([whole[place] ^ 1 << rng.randrange(8)])
        damaged = whole[:place] + (b"" if number < cuts else flipped + whole[place + 1 :])
        assert damaged != whole
        path.write_bytes(damaged)
        yield path, whole
        path.write_bytes(whole)


def hashes(path: Path) -> tuple[str, str]:
    """Return the hash that an error names, and for a hashed JSON file its first line.

    The hash is of the file, or of the lines below the first in a hashed JSON file.
    """
    content = path.read_bytes()
    if path.suffix != ".json":
        return hashlib.sha256(content).hexdigest(), ""
    first, _, lines = content.partition(b"\n")
    return hashlib.sha256(lines).hexdigest(), first.decode(errors="backslashreplace")


@pytest.mark.timeout(120)
def test_a_damaged_checkpoint_is_noticed_and_the_previous_one_used(tmp_path: Path, fault_seed: int, measured) -> None:
    job = job_in(tmp_path, epochs=1)
    fit(job, 0, 1, CPU)
    folder = job.folder / "checkpoints"
    before, last = sorted(folder.iterdir())
    files, seen = sorted(last.iterdir()), Counter[str]()
    assert {path.name for path in files} == {"COMMITTED.json", "model.safetensors", "optimizer.safetensors"}
    for path, whole in damages(files, random.Random(fault_seed), CUTS, FLIPS):
        chosen, passed_over = checkpoint.newest(folder)
        assert chosen == before
        (sentence,) = passed_over
        assert str(path) in sentence
        found, noted = hashes(path)
        assert found in sentence
        assert (
            repr(noted) if noted else "says" if path.suffix == ".json" else hashlib.sha256(whole).hexdigest()
        ) in sentence
        seen[path.name] += 1
    assert checkpoint.newest(folder) == (last, [])
    measured("R4", cut=CUTS, flipped=FLIPS, noticed=seen.total(), of_these_in_the_marker=seen["COMMITTED.json"])
    assert seen.total() == CUTS + FLIPS
    assert all(seen[path.name] for path in files)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["optimizer.safetensors", checkpoint.MARKER])
def test_training_resumes_from_the_previous_checkpoint_and_ends_with_the_same_bits(
    tmp_path: Path, name: str, caplog
) -> None:
    job = job_in(tmp_path, epochs=1)
    fit(job, 0, 1, CPU)
    epoch = job.folder / "epochs" / "epoch-0001" / "model.safetensors"
    whole = load_file(epoch)
    damaged = max((job.folder / "checkpoints").iterdir()) / name
    bits = bytearray(damaged.read_bytes())
    bits[-9] ^= 1
    damaged.write_bytes(bits)
    with caplog.at_level(logging.INFO, logger="ast_core"):
        fit(job, 0, 1, CPU)
    again = load_file(epoch)
    assert all(torch.equal(value, again[key]) for key, value in whole.items())
    assert f"{damaged} is damaged" in caplog.text
    assert "Resumed at step 2" in caplog.text


@pytest.mark.timeout(120)
def test_a_bundle_with_any_file_damaged_is_refused(trained_bundle: Path, fault_seed: int, measured) -> None:
    own = Bundle.load(trained_bundle)
    ones = (1.0,) * len(own.labels)
    Decisions(own.digest, {"split": "validation"}, True, ones, ones, ones).write(trained_bundle)
    Bundle.load(trained_bundle)
    files, seen = sorted(trained_bundle.iterdir()), Counter[str]()
    assert {path.name for path in files} == {"bundle.json", "decisions.json", "member-0.safetensors"}
    for path, _ in damages(files, random.Random(fault_seed), CUTS // 4, FLIPS // 4):
        with pytest.raises(DamagedError, match="sha256") as caught:
            Bundle.load(trained_bundle)
        assert str(path) in str(caught.value)
        seen[path.name] += 1
    Bundle.load(trained_bundle)
    measured("R4", bundles_damaged=(CUTS + FLIPS) // 4, noticed=seen.total())


@pytest.mark.timeout(120)
def test_every_bit_of_the_shards_index_counts(tmp_path: Path, measured) -> None:
    """Check every byte, since the index holds the mean and standard deviation that a model is trained with."""
    index = write_shards(tmp_path, {"train": 3, "test": 3}) / "index.json"
    whole = index.read_bytes()
    for place in range(len(whole)):
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        with pytest.raises(DamagedError, match=str(index)):
            ShardIndex.load(tmp_path)
    index.write_bytes(whole)
    ShardIndex.load(tmp_path)
    measured("R4", bytes_of_an_index_flipped=len(whole), noticed=len(whole))


HOSTILE = {"too deep": b"[" * 100_000, "not UTF-8": b'{"a": "\xff"}', "cut": b'{"a": ', "empty": b""}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_is_not_json_is_refused_with_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"Result is damaged: .*a.json is not JSON"):
        read_json(path, "Result")
    with pytest.raises(DamagedError, match=r"Result .*a.json is damaged: .* sha256"):
        read_hashed_json(path, "Result")
    own_hash = f'{{"{SELF_HASH}": "{hashlib.sha256(content).hexdigest()}",\n'
    path.write_bytes(own_hash.encode() + content)  # a writer of a wrong file can also write its hash
    with pytest.raises(DamagedError, match=r"a.json is damaged: it is not JSON"):
        read_hashed_json(path, "Result")


@pytest.mark.timeout(120)
def test_a_part_is_incomplete_if_it_or_its_marker_is_damaged(
    tmp_path: Path, save_tone, fault_seed: int, measured
) -> None:
    clip = Clip("a", str(save_tone(tmp_path / "audio" / "a.wav")), (0,), "train")
    metadata = ShardMetadata(FRONT_END, ("low",), single_label=True)
    part = ShardPart(str(tmp_path / "train"), "part-00000", "train", (clip,), str(tmp_path / "audio"), metadata)
    assert write_shard_part(part) == []
    assert is_complete(part)
    seen = Counter[str]()
    files = [part.marker, part.marker.with_suffix(".parquet")]
    for path, _ in damages(files, random.Random(fault_seed), CUTS, FLIPS):
        assert not is_complete(part)
        seen[path.suffix] += 1
    assert is_complete(part)
    measured("R4", parts_damaged=CUTS + FLIPS, noticed=seen.total(), of_these_in_the_marker=seen[".json"])
