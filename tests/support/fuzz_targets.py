"""Every reader of untrusted bytes, good inputs for each to begin with, and how these are changed."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import parquet_recordings as parquet_files
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
import torch
import webdataset_archives
from audio_files import encode
from fuzzing import mutated, mutated_json, mutated_text
from prepared import BINS, FRAMES, FRONT_END, LABELS, read_split, write_shards
from safetensors.torch import save

from ast_core.audio.waveform import load_waveform
from ast_core.config import ModelConfig
from ast_core.dataset.clip_list import read_ids
from ast_core.dataset.manifest import load_manifest
from ast_core.evaluation.stored_scores import identity_in, read_scores, write_scores
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.shards.clip_index import CLIP_INDEX, read_clip_index, write_clip_index
from ast_core.shards.clip_table import ClipIds
from ast_core.shards.reader import ShardReader
from ast_core.storage.json_files import SELF_HASH, sha256_of_json, write_hashed_json
from ast_core.weights import checkpoint
from ast_core.weights.bundle import Bundle, write_bundle
from ast_core.weights.bundle_description import BundleFacts
from ast_core.weights.decisions import Decisions
from ast_core.weights.hub.hub_address import parse_hub_address
from ast_core.weights.huggingface import HuggingFaceModel, write_folder
from ast_core.weights.pretrained import initialise, load_exactly
from pipeline.cli.command_line import parse_settings
from pipeline.cli.stages import TrainSettings
from pipeline.run_folder.pinned_models import find_pinned
from pipeline.tracking.pyfunc import Tagger
from pipeline.tracking.serving_requests import RequestError

MODEL = ModelConfig(backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch")
SQUARE = ModelConfig(backbone="deit_tiny_distilled_patch16_224", freq_stride=16, time_stride=16, init="scratch")
RECIPES = Path(__file__).resolve().parents[2] / "pipeline" / "recipes"
Mutate = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Target:
    """A reader, good inputs, and how they are changed."""

    seeds: list[bytes]
    mutate: Mutate
    read: Callable[[bytes], object]


class Group(Protocol):
    """Targets that share a folder and a process."""

    __name__: str

    def __call__(self, folder: Path) -> dict[str, Target]:
        """Return the targets by name."""


def tone(kind: str, subtype: str | None = None, channels: int = 1) -> bytes:
    out = io.BytesIO()
    samples = 0.3 * np.sin(2 * np.pi * 440 * np.arange(1600)[:, None] / 16_000) * np.ones((1, channels))
    soundfile.write(out, samples, 16_000, format=kind, subtype=subtype)
    return out.getvalue()


def audio(folder: Path) -> dict[str, Target]:
    plain = [tone(kind) for kind in ("WAV", "WAVEX", "RF64", "W64", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF")]
    others = [
        tone("WAV", "FLOAT", 2),
        tone("WAV", "IMA_ADPCM"),
        tone("OGG", "OPUS"),
        *map(tone, ("NIST", "VOC", "AVR")),
    ]
    wave_N = 0.3 * np.sin(2 * np.pi * 440 * np.arange(4410) / 44_100).astype(np.float32)
    pairs = (("ipod", "aac"), ("adts", "aac"), ("matroska", "aac"), ("mpegts", "aac"), ("wav", "libmp3lame"))
    containers = [encode(form, codec, wave_N, 44_100) for form, codec in pairs]
    seeds = [*plain, *others, *containers, *(2 * content for content in plain)]

    def read(data: bytes) -> None:
        path = folder / "clip"
        path.write_bytes(data)
        assert np.isfinite(load_waveform(path, 16_000, 1.0)).all()

    return {"audio": Target(seeds, mutated, read)}


def manifests(folder: Path) -> dict[str, Target]:
    rows = [
        {"path": f"{n}.wav", "labels": "a;b" if n % 2 else "c", "clip_id": f"clip {n}", "split": "train"}
        for n in range(6)
    ]
    for n in range(6):
        (folder / f"{n}.wav").write_bytes(b"x")
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table)
    head = "path,labels,clip_id,split\n"
    tables: dict[str, tuple[bytes, Mutate]] = {
        "csv": ((head + "".join(",".join(row.values()) + "\n" for row in rows)).encode(), mutated_text),
        "json": (json.dumps(rows).encode(), mutated_json),
        "jsonl": ("\n".join(map(json.dumps, rows)).encode(), mutated_text),
        "parquet": (table.getvalue(), mutated),
    }

    def reader(path: Path, source: Path, layout: str) -> Callable[[bytes], object]:
        def read(data: bytes) -> None:
            path.write_bytes(data)
            load_manifest(source, layout)  # type: ignore[arg-type]

        return read

    found = {}
    for ending, (seed, mutate) in tables.items():
        path = folder / f"list.{ending}"
        found[f"manifest.{ending}"] = Target([seed], mutate, reader(path, path, "manifest"))
    for name in ("segments", "labels", "esc50", "speech"):
        (folder / name / "meta").mkdir(parents=True)
        (folder / name / "yes").mkdir()
        (folder / name / "yes" / "a.wav").write_bytes(b"x")
    labels = b'index,mid,display_name\n0,/m/a,"Speech, male"\n1,/m/b,Music\n'
    segments = b'# Segments csv\nYTID-0_abcde, 0.000, 10.000, "/m/a,/m/b"\nanother_one, 30.000, 40.500, "/m/b"\n'
    (folder / "segments" / "class_labels_indices.csv").write_bytes(labels)
    (folder / "labels" / "eval_segments.csv").write_bytes(segments)
    esc50 = b"filename,fold,target,category\n1-1-A-0.wav,1,0,dog\n1-2-A-1.wav,2,1,rooster\n"
    places = {
        "segments": (segments, "eval_segments.csv", "audioset"),
        "labels": (labels, "class_labels_indices.csv", "audioset"),
        "esc50": (esc50, "meta/esc50.csv", "esc50"),
        "speech": (b"yes/a.wav\nyes/b.wav\nno/c.wav\n", "testing_list.txt", "speech_commands"),
    }
    for name, (seed, place, layout) in places.items():
        read = reader(folder / name / place, folder / name, layout)
        found[f"manifest.{name}"] = Target([seed], mutated_text, read)
    return found


def parquet_recordings(folder: Path) -> dict[str, Target]:
    """Return the readers of Parquet files with recordings inside, of their metadata, and of lists of classes."""
    ids = [f"video-{n}" for n in range(7)]
    audio = [parquet_files.recording(n) if n != 2 else {"bytes": None, "path": "gone"} for n in range(7)]
    mids = [["/m/a"], ["/m/a", "/m/b"], []] * 2 + [["/m/b"]]
    names = [["Speech, male"], ["Speech, male", "Music"], []] * 2 + [["Music"]]
    copy = {"video_id": ids, "audio": audio, "labels": mids, "human_labels": names}
    classes = parquet_files.features(audio={"_type": "Audio"}, label=parquet_files.class_label("a", "b"))
    numbers = {"audio": audio, "label": [n % 2 for n in range(7)], "split": ["train", "test", None] * 2 + ["x"]}
    paths = {
        "copy": parquet_files.write(folder / "copy" / "eval" / "0.parquet", copy),
        "classes": parquet_files.write(folder / "classes" / "train.parquet", numbers, metadata=classes),
    }
    good = {name: path.read_bytes() for name, path in paths.items()}
    listed = folder / "names.csv"

    def read(path: Path) -> Callable[[bytes], object]:
        def read(data: bytes) -> None:
            path.write_bytes(data)
            load_manifest(path)

        return read

    def read_metadata(data: bytes) -> None:
        table = pq.read_table(io.BytesIO(good["classes"])).replace_schema_metadata({"huggingface": data})
        pq.write_table(table, paths["classes"])
        load_manifest(paths["classes"])

    def read_names(data: bytes) -> None:
        listed.write_bytes(data)
        paths["copy"].write_bytes(good["copy"])
        load_manifest(paths["copy"], label_names=str(listed))

    lines = b'index,mid,display_name\n0,/m/a,"Speech, male"\n1,/m/b,Music\n'
    return {
        "parquet.copy": Target([good["copy"]], mutated, read(paths["copy"])),
        "parquet.classes": Target([good["classes"]], mutated, read(paths["classes"])),
        "parquet.metadata": Target([classes["huggingface"].encode()], mutated_json, read_metadata),
        "class names": Target([lines], mutated_text, read_names),
    }


def mutated_tar(data: bytes, chance: random.Random) -> bytes:
    """Change some bytes of one header and correct its checksum; sometimes change the archive blindly."""
    starts = [start for start in range(0, len(data), 512) if data[start + 257 : start + 262] == b"ustar"]
    if chance.random() < 0.3 or not starts:
        return mutated(data, chance)
    start = chance.choice(starts)
    header = bytearray(data[start : start + 512])
    for _ in range(chance.randint(1, 3)):
        place = chance.choice((chance.randrange(512), 156, chance.randrange(124, 136)))
        header[place] = chance.choice((*b"\0\x80\xff01257SLKxgX /.", chance.randrange(256)))
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return data[:start] + bytes(header) + data[start + 512 :]


def webdataset(folder: Path) -> dict[str, Target]:
    """Return the readers of archives, and of the labels in them."""
    members = [
        *webdataset_archives.sample("k", ["a", "b"]),
        *webdataset_archives.sample(f"{'long' * 40}", ["a"]),
        ("x.flac", b"fLaC"),
        ("x.cls", b"1"),
    ]
    seeds = [webdataset_archives.pack(members, form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    path = folder / "train.tar"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        load_manifest(path, "webdataset")

    def read_labels(data: bytes) -> None:
        read(webdataset_archives.pack([*members, ("y.wav", b"RIFF"), ("y.json", data)], tarfile.GNU_FORMAT))

    labels = json.dumps({"labels": ["a", 1, 2.0], "human_labels": ["A", "B", "C"]}).encode()
    return {
        "webdataset": Target(seeds, mutated_tar, read),
        "webdataset.json": Target([labels, b'{"label": "a;b"}'], mutated_json, read_labels),
    }


def recipes(folder: Path) -> dict[str, Target]:
    seeds = [(RECIPES / f"{name}.toml").read_bytes() for name in ("demo", "esc50", "audioset_patchout")]

    def read(data: bytes) -> None:
        path = folder / "own.toml"
        path.write_bytes(data)
        try:
            parse_settings(TrainSettings, "", ["--recipe", str(path), "--run-dir", str(folder / "run")])
        except SystemExit as error:
            if error.code != 2:
                raise

    return {"recipe": Target(seeds, mutated_text, read)}


def weights(config: ModelConfig = MODEL) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return AST(config, BINS, FRAMES, len(LABELS)).state_dict()


def identity() -> dict[str, Any]:
    return {
        "model": to_dict(MODEL),
        "front_end": to_dict(FRONT_END),
        "labels": list(LABELS),
        "loss": "bce",
        "mean": -6.0,
        "std": 4.0,
    }


def small() -> dict[str, torch.Tensor]:
    """Return few bytes, so that changes hit the header."""
    return {"pos_embed": torch.zeros(1, 10, 4), "norm.bias": torch.zeros(4)}


def write_signed(path: Path, data: bytes) -> None:
    """Change one of our files as an attacker would: with a hash that matches, if it is an object."""
    try:
        values = json.loads(data)
        values.pop(SELF_HASH, None)
        write_hashed_json(path, values)
    except (ValueError, TypeError, AttributeError, RecursionError):
        path.write_bytes(data)


def checkpoints(folder: Path) -> dict[str, Target]:
    model = AST(MODEL, BINS, FRAMES, len(LABELS))
    step = folder / "step-00000001"
    checkpoint.save(step, {"model": weights()}, {"identity": identity(), "step": 1})
    good = (step / "model.safetensors").read_bytes()

    def marker(data: bytes) -> None:
        write_signed(step / checkpoint.MARKER, data)
        checkpoint.newest(folder)
        initialise(model, replace(MODEL, init=str(step)), LABELS)

    def tensors(data: bytes) -> None:
        (folder / "other").mkdir(exist_ok=True)
        (folder / "other" / "model.safetensors").write_bytes(data)
        load_exactly(model, checkpoint.read_tensors(folder / "other", "model"), "other")

    return {
        "checkpoint.marker": Target([(step / checkpoint.MARKER).read_bytes()], mutated_json, marker),
        "checkpoint.safetensors": Target([save(small()), good], mutated, tensors),
    }


def shards(folder: Path) -> dict[str, Target]:
    write_shards(folder, {"train": 20})
    index, part = folder / "index.json", folder / "train" / "part-00000.parquet"
    good_index, good_part = index.read_bytes(), part.read_bytes()

    def read() -> None:
        reader = ShardReader(folder, ["train"])
        if len(reader):
            reader.read(np.arange(min(len(reader), 20)))

    def read_index(data: bytes) -> None:
        part.write_bytes(good_part)
        write_signed(index, data)
        read()

    def read_part(data: bytes) -> None:
        index.write_bytes(good_index)
        part.write_bytes(data)
        read()

    clip_index = folder / "train" / CLIP_INDEX
    write_clip_index(clip_index, read_split(folder, "train"))

    def read_clips(data: bytes) -> None:
        """Read a clip index with the hash that fits; with another one nothing of it would be read."""
        clip_index.write_bytes(data)
        clips = read_clip_index(clip_index, hashlib.sha256(data).hexdigest(), 20, len(LABELS))
        assert len(list(ClipIds(clips.ids))) == len(clips.labels.rows(np.arange(20))) == 20

    return {
        "shards.index": Target([good_index], mutated_json, read_index),
        "shards.part": Target([good_part], mutated, read_part),
        "shards.clips": Target([clip_index.read_bytes()], mutated, read_clips),
    }


def initial_weights(folder: Path) -> dict[str, Target]:
    model = AST(MODEL, BINS, FRAMES, len(LABELS))
    zipped, old, whole = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({f"v.{key}": value for key, value in small().items()}, zipped)
    torch.save({"model": small()}, old, _use_new_zipfile_serialization=False)
    torch.save(weights(), whole)

    def read(ending: str) -> Callable[[bytes], object]:
        def read(data: bytes) -> None:
            path = folder / f"own.{ending}"
            path.write_bytes(data)
            initialise(model, replace(MODEL, init=str(path)), LABELS)

        return read

    return {
        "weights.pth": Target([zipped.getvalue(), old.getvalue(), whole.getvalue()], mutated, read("pth")),
        "weights.safetensors": Target([save(small()), save(weights())], mutated, read("safetensors")),
    }


def bundles(folder: Path) -> dict[str, Target]:
    own = write_bundle(folder, [("seed-0", weights(), identity())], False, BundleFacts(role="member"))
    Decisions(own, {"data_hash": "d"}, False, (1.0,) * 3, (0.0,) * 3, (0.5,) * 3).write(folder)
    description, decisions = folder / "bundle.json", folder / "decisions.json"
    good, good_decisions = description.read_bytes(), decisions.read_bytes()
    scores_BC = np.full((2, 3), 0.5, np.float32)

    def read(data: bytes) -> None:
        decisions.unlink(missing_ok=True)
        write_signed(description, data)
        Bundle.load(folder)

    def read_decisions(data: bytes) -> None:
        description.write_bytes(good)
        write_signed(decisions, data)
        found = Bundle.load(folder).decisions
        assert found is not None
        found.decide(scores_BC)

    def honest(data: bytes, chance: random.Random) -> bytes:
        """Change the input and its digest; with a wrong digest nothing else would be read."""
        changed = mutated_json(data, chance)
        try:
            values = json.loads(changed)
            values["digest"] = sha256_of_json({key: values[key] for key in ("labels", "single_label", "members")})
            return json.dumps(values).encode()
        except (ValueError, TypeError, KeyError, RecursionError):
            return changed

    return {"bundle": Target([good], honest, read), "decisions": Target([good_decisions], mutated_json, read_decisions)}


def hugging_face(folder: Path) -> dict[str, Target]:
    write_folder(folder, HuggingFaceModel(SQUARE, FRONT_END, -6.0, 4.0, LABELS, True, weights(SQUARE)))
    targets = {}
    for name in ("config.json", "preprocessor_config.json"):
        good = (folder / name).read_bytes()

        def read(data: bytes, name: str = name, good: bytes = good) -> None:
            (folder / name).write_bytes(data)
            try:
                Bundle.load(folder)
            finally:
                (folder / name).write_bytes(good)

        targets[f"huggingface.{name.removesuffix('.json')}"] = Target([good], mutated_json, read)
    return targets


def hub_models(folder: Path) -> dict[str, Target]:
    note = folder / "hub-models.json"
    values = {"models": [{"address": "hf:a/b", "pinned": f"hf:a/b@{'0f' * 20}", "sha256": {"config.json": "0f" * 32}}]}
    write_hashed_json(note, values)
    good = note.read_bytes()

    def read_note(data: bytes) -> None:
        write_signed(note, data)
        found = find_pinned("hf:a/b", folder)
        if found is not None:
            parse_hub_address(found.pinned)

    addresses = [b"hf:MIT/ast-finetuned-audioset-10-10-0.4593", b"hf:a/b@refs/pr/1"]
    return {
        "hub.note": Target([good], mutated_json, read_note),
        "hub.address": Target(addresses, mutated_text, lambda data: parse_hub_address(data.decode(errors="replace"))),
    }


def lists_and_scores(folder: Path) -> dict[str, Target]:
    reader = ShardReader(write_shards(folder / "shards", {"test": 9}), ["test"])
    table = folder / "scores.parquet"
    write_scores(table, {"a": "b"}, np.ones((9, 3), np.float32), reader)

    def read_list(data: bytes) -> None:
        (folder / "list").write_bytes(data)
        read_ids(folder / "list")

    def read_table(data: bytes) -> None:
        table.write_bytes(data)
        identity_in(table)
        read_scores(table, {"a": "b"})

    listed = b"# a comment\nclip_id,start\nabcdefghijk,0.0,10.0\n--abcdefghi, 30, 40\nplain.wav\n"
    return {
        "clip list": Target([listed], mutated_text, read_list),
        "scores": Target([table.read_bytes()], mutated, read_table),
    }


def serving(folder: Path) -> dict[str, Target]:
    write_bundle(folder, [("seed-0", weights(), identity())], False)
    tagger = Tagger(folder)
    wave = [0.1, -0.1] * 400
    rows = [
        {"waveform": wave, "sample_rate_hz": 16_000},
        {"audio": base64.b64encode(tone("WAV")).decode()},
        {"waveform": wave},
    ]

    def read(data: bytes) -> None:
        try:
            values = json.loads(data)
            frame = pd.DataFrame(values)
        except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
            return  # MLflow's own answer
        with contextlib.suppress(RequestError):
            tagger.predict(frame)

    return {"serving": Target([json.dumps(rows).encode(), json.dumps(rows[:1]).encode()], mutated_json, read)}


GROUPS: tuple[Group, ...] = (
    audio,
    manifests,
    parquet_recordings,
    webdataset,
    recipes,
    checkpoints,
    shards,
    initial_weights,
    bundles,
    hugging_face,
    hub_models,
    lists_and_scores,
    serving,
)
