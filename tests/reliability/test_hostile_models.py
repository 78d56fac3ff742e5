"""R6: model files as untrusted input: every function that reads one refuses it with the reason, and no code runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from prepared import BINS, FRAMES, FRONT_END, LABELS
from safetensors.torch import load_file, save_file

from ast_core.config import ModelConfig
from ast_core.errors import UserError
from ast_core.model.transformer import AST
from ast_core.serialization import to_dict
from ast_core.storage.atomic_files import sha256_of
from ast_core.storage.json_files import read_hashed_json, sha256_of_json, write_hashed_json
from ast_core.weights import checkpoint
from ast_core.weights.bundle import Bundle, read_members, write_bundle
from ast_core.weights.huggingface import HuggingFaceModel, write_folder
from ast_core.weights.pretrained import initialise, load_exactly
from pipeline.tracking import mlflow_store, registry, runs
from pipeline.tracking.pyfunc import Tagger

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
MODEL = ModelConfig(backbone="ast_micro", patch_freq=16, patch_time=8, freq_stride=16, time_stride=8, init="scratch")
SQUARE = ModelConfig(backbone="deit_tiny_distilled_patch16_224", freq_stride=16, time_stride=16, init="scratch")
IDENTITY = {"model": to_dict(MODEL), "front_end": to_dict(FRONT_END), "labels": list(LABELS), "loss": "bce"}
IDENTITY |= {"mean": -6.0, "std": 4.0}
MOST_BYTES = 1 << 30
"""Most memory that refusing a file may need, on top of what the tests hold."""
Weights = dict[str, torch.Tensor]


class Payload:
    """Object that creates the canary's folder when `pickle` loads it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """Return the call that pickle makes on loading."""
        return (os.mkdir, (str(self.canary),))


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """Yield the folder that a payload would create; check that plain pickle creates it, and that no test did."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Payload(path)))
    assert path.is_dir()
    path.rmdir()
    yield path
    assert not path.exists(), "a model's file ran code"


def weights(config: ModelConfig = MODEL) -> Weights:
    torch.manual_seed(0)
    return AST(config, BINS, FRAMES, len(LABELS)).state_dict()


def published_weights() -> Weights:
    """Return the same tensors under the names of a published `.pth`."""
    renamed = {}
    for key, value in weights().items():
        own = key.replace("patch_proj", "patch_embed.proj")
        own = own.replace("head_norm", "mlp_head.0").replace("head.", "mlp_head.1.")
        renamed[own if own.startswith("mlp_head") else f"v.{own}"] = value
    return renamed


def write_pickle(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps({"v.norm.weight": Payload(canary)}))


def write_zipped_pickle(path: Path, canary: Path) -> None:
    torch.save({**published_weights(), "v.more": Payload(canary)}, path)


def write_old_pickle(path: Path, canary: Path) -> None:
    torch.save({**published_weights(), "v.more": Payload(canary)}, path, _use_new_zipfile_serialization=False)


def write_torchscript(path: Path, canary: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))


def write_zip_slip(path: Path, canary: Path) -> None:
    torch.save(published_weights(), path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(f"../../../{canary.name}", "out")


def write_zip_bomb(path: Path, canary: Path) -> None:
    """Write a file whose tensors unpack to a gigabyte each, a thousand times their size."""
    content = io.BytesIO()
    torch.save({"v.pos_embed": torch.zeros(8)}, content)
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for entry in old.infolist():
            own = b"\0" * (1 << 30) if entry.filename.endswith("data/0") else old.read(entry)
            file.writestr(entry.filename, own)


def write_endless_view(path: Path, canary: Path) -> None:
    """Write one number that claims to be a terabyte, by strides of 0."""
    torch.save({**published_weights(), "v.pos_embed": torch.zeros(1).expand(1, 1 << 38, 1)}, path)


def write_tensor_without_bytes(path: Path, canary: Path) -> None:
    torch.save({**published_weights(), "v.pos_embed": torch.zeros(1, 1 << 38, 96, device="meta")}, path)


def write_terabyte_header(path: Path, canary: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


def write_terabyte_tensor(path: Path, canary: Path) -> None:
    head = json.dumps({"pos_embed": {"dtype": "F32", "shape": [1, 1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head)


def write_overlapping(path: Path, canary: Path) -> None:
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    head = json.dumps({"pos_embed": one, "cls_token": one}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"\0" * 8)


def write_list(path: Path, canary: Path) -> None:
    torch.save([1, 2, 3], path)


def change_weights(change: Callable[[Weights], object]) -> Callable[[Path, Path], None]:
    """Return a function that writes our weights as safetensors, with one thing wrong."""

    def write(path: Path, canary: Path) -> None:
        table = weights()
        change(table)
        save_file(table, path)

    return write


SHAPE = change_weights(lambda table: table.update(cls_token=torch.zeros(1, 1, 7)))
NOT_FINITE = change_weights(lambda table: table["norm.bias"].fill_(float("nan")))
MISSING = change_weights(lambda table: table.pop("blocks.0.attn.qkv.weight"))
EXTRA = change_weights(lambda table: table.update({"blocks.9.norm1.bias": torch.zeros(96)}))
WHOLE_NUMBERS = change_weights(lambda table: table.update({"norm.bias": torch.zeros(96, dtype=torch.int64)}))
CHANGED = {"wrong shape": SHAPE, "NaN": NOT_FINITE, "missing": MISSING, "extra": EXTRA, "integers": WHOLE_NUMBERS}
REASONS = {
    "wrong shape": "other shapes: cls_token",
    "NaN": "not finite: norm.bias",
    "missing": "missing: blocks.0.attn.qkv.weight",
    "extra": "unknown: blocks.9.norm1.bias",
    "integers": "not plain floating-point tensors",
}
FILES: dict[str, tuple[str, Callable[[Path, Path], None], str]] = {
    "pickle": ("a.pth", write_pickle, "was refused: UnpicklingError"),
    "pickle in a zip": ("a.pth", write_zipped_pickle, "was refused: UnpicklingError"),
    "pickle of old": ("a.pt", write_old_pickle, "was refused: UnpicklingError"),
    "pickle renamed": ("a.safetensors", write_pickle, "cannot be read"),
    "zip renamed": ("a.safetensors", write_zipped_pickle, "cannot be read"),
    "TorchScript": ("a.pth", write_torchscript, "is TorchScript, a program"),
    "zip slip": ("a.pth", write_zip_slip, "names files outside itself"),
    "zip bomb": ("a.pth", write_zip_bomb, "unpack to more than its size"),
    "a view without end": ("a.pth", write_endless_view, "not plain floating-point tensors"),
    "a tensor without bytes": ("a.pth", write_tensor_without_bytes, "not plain floating-point tensors"),
    "a header of a terabyte": ("a.safetensors", write_terabyte_header, "cannot be read"),
    "a tensor of a terabyte": ("a.safetensors", write_terabyte_tensor, "cannot be read"),
    "overlapping tensors": ("a.safetensors", write_overlapping, "cannot be read"),
    "not a table": ("a.pth", write_list, "not a flat table"),
    **{name: ("a.safetensors", write, REASONS[name]) for name, write in CHANGED.items()},
}


def assert_refused(load: Callable[[], object], reason: str) -> str:
    """Check that `load` raises a `UserError` with the reason, in little memory; return its text."""
    before = peak_bytes()
    with pytest.raises(UserError, match=reason) as caught:
        load()
    assert peak_bytes() - before < MOST_BYTES
    return str(caught.value)


def peak_bytes() -> int:
    """Return the largest memory that this process has held so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def initialise_from(path: Path) -> None:
    initialise(AST(MODEL, BINS, FRAMES, len(LABELS)), replace(MODEL, init=str(path)), LABELS)


def test_hostile_files_of_initial_weights_are_refused(tmp_path, canary, measured):
    good = tmp_path / "good.safetensors"
    save_file(weights(), good)
    initialise_from(good)
    for name, (file, write, reason) in FILES.items():
        path = tmp_path / name / file
        path.parent.mkdir()
        write(path, canary)
        assert str(path) in assert_refused(lambda path=path: initialise_from(path), reason), name
    measured("R6", hostile_files=len(FILES), refused=len(FILES), ran=0)


def edit(change: Callable[[dict[str, Any]], object], update_digest: bool = True) -> Callable[[Path, Path], None]:
    """Return a function that changes a bundle's description, and its digest accordingly."""

    def write(folder: Path, canary: Path) -> None:
        path = folder / "bundle.json"
        values = read_hashed_json(path, "Bundle")
        change(values)
        if update_digest:
            values["digest"] = sha256_of_json({key: values[key] for key in ("labels", "single_label", "members")})
        write_hashed_json(path, values)

    return write


def first_member(values: dict[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = values["members"][0]
    return own


def replace_member(write: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    """Return a function that gives a bundle a hostile file of weights, described with its correct hash."""

    def change(folder: Path, canary: Path) -> None:
        path = folder / "member-0.safetensors"
        write(path, canary)
        edit(lambda values: first_member(values).update(sha256=sha256_of(path)))(folder, canary)

    return change


def link_out(folder: Path, canary: Path) -> None:
    outside = folder.parent / "outside.safetensors"
    shutil.move(folder / "member-0.safetensors", outside)
    (folder / "member-0.safetensors").symlink_to(outside)


def move_out(folder: Path, canary: Path) -> None:
    shutil.move(folder / "member-0.safetensors", folder.parent / "outside.safetensors")
    edit(lambda values: first_member(values).update(file="../outside.safetensors"))(folder, canary)


def write_decisions_of_1000_classes(folder: Path, canary: Path) -> None:
    own = json.loads((folder / "bundle.json").read_text())["digest"]
    many = [1.0] * 1000
    values = {"bundle_digest": own, "fitted_on": {}, "one_label": False}
    write_hashed_json(folder / "decisions.json", {**values, "slope_C": many, "offset_C": many, "threshold_C": many})


def set_sizes(**sizes: int) -> Callable[[Path, Path], None]:
    """Return a function that describes a front end, or else a model, of these sizes."""

    def change(values: dict[str, Any]) -> None:
        for key, size in sizes.items():
            first_member(values)["front_end" if key in first_member(values)["front_end"] else "model"][key] = size

    return edit(change)


BUNDLES: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    **{name: (replace_member(write), REASONS[name]) for name, write in CHANGED.items()},
    "pickle": (replace_member(write_pickle), "cannot be read"),
    "a header of a terabyte": (replace_member(write_terabyte_header), "cannot be read"),
    "other weights": (lambda folder, canary: SHAPE(folder / "member-0.safetensors", canary), "is damaged: sha256"),
    "a file outside": (move_out, "outside its folder"),
    "a link out": (link_out, "is a link out of its folder"),
    "a device": (edit(lambda values: first_member(values).update(file="/dev/zero")), "outside its"),
    "an absurd input": (set_sizes(target_frames=1 << 40), "give 100000 or less"),
    "an absurd rate": (set_sizes(sample_rate_hz=1 << 40), "give 1000 to"),
    "absurd windows": (set_sizes(frame_length_ms=1 << 30), "give 4096 or less"),
    "absurd mel bins": (set_sizes(num_mel_bins=1 << 40), "give 1024 or less"),
    "a terabyte of positions": (set_sizes(target_frames=100_000, time_stride=1, num_mel_bins=1024), "pos_embed is"),
    "a larger model": (
        edit(lambda values: first_member(values)["model"].update(backbone="vit_large_patch16_384")), "missing: "
    ),
    "an unknown model": (edit(lambda values: first_member(values)["model"].update(backbone="../x")), "is unknown"),
    "labels that are numbers": (edit(lambda values: values.update(labels=[1, 2, 3])), r"labels\[0\] is 1"),
    "a label twice": (edit(lambda values: values.update(labels=["a", "a", "b"])), "appear more than once"),
    "no member": (edit(lambda values: values.update(members=[])), "no member"),
    "a member that is a number": (edit(lambda values: values.update(members=[7])), r"members\[0\] is 7"),
    "facts of text": (edit(lambda values: values.update(facts="member")), "facts is"),
    "a seed of text": (edit(lambda values: values["facts"].update(seeds=["0"])), r"seeds\[0\] is '0'"),
    "a mean of text": (edit(lambda values: first_member(values).update(mean="0")), "mean is"),
    "a mean of NaN": (edit(lambda values: first_member(values).update(mean=float("nan"))), "mean is nan"),
    "no spread": (edit(lambda values: first_member(values).update(std=0.0)), "standard deviation"),
    "an unknown loss": (edit(lambda values: first_member(values).update(loss="eval")), "loss is"),
    "a foreign setting": (edit(lambda values: first_member(values)["model"].update(code="x")), "does not know"),
    "another digest": (edit(lambda values: values.update(single_label=False), update_digest=False), "digest"),
    "a description that is a list": (lambda folder, _: (folder / "bundle.json").write_text("[]"), "is damaged"),
    "nested without end": (lambda folder, _: (folder / "bundle.json").write_text("[" * 200_000), "is damaged"),
    "decisions of other classes": (write_decisions_of_1000_classes, "classes, not of 3"),
}  # fmt: skip


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "good", [("seed-0", weights(), IDENTITY)], True)
    return tmp_path / "good"


def test_hostile_bundles_are_refused(tmp_path, canary, bundle, measured):
    # Predict, evaluate and export load a bundle; MLflow's loader serves it; combine and train read its members.
    for load in (Bundle.load, Tagger, read_members, initialise_from):
        load(bundle)
    for name, (change, reason) in BUNDLES.items():
        folder = tmp_path / "hostile" / name
        shutil.copytree(bundle, folder)
        change(folder, canary)
        for load in (Bundle.load, Tagger):
            assert_refused(lambda load=load, folder=folder: load(folder), reason)
        for load in (read_members, initialise_from):  # they build no model, so they may accept what only a model shows
            _refuses(load, folder)
    measured("R6", hostile_bundles=len(BUNDLES), refused=len(BUNDLES), ran=0)


def _refuses(load: Callable[[Path], object], folder: Path) -> bool:
    """Return whether `load` refuses a folder with a `UserError`; any other exception fails the test."""
    try:
        load(folder)
    except UserError:
        return True
    return False


def edit_json(file: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], None]:
    """Return a function that changes a JSON file of a folder."""

    def write(folder: Path, canary: Path) -> None:
        values = json.loads((folder / file).read_text())
        change(values)
        (folder / file).write_text(json.dumps(values))

    return write


def replace_weights(write: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    """Return a function that replaces a folder's weights by a hostile file."""
    return lambda folder, canary: write(folder / "model.safetensors", canary)


def remove_key(folder: Path, canary: Path) -> None:
    table = load_file(folder / "model.safetensors")
    del table["audio_spectrogram_transformer.encoder.layer.0.attention.attention.key.weight"]
    save_file(table, folder / "model.safetensors")


HUGGING_FACE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "pickle": (replace_weights(write_pickle), "cannot be read"),
    "a header of a terabyte": (replace_weights(write_terabyte_header), "cannot be read"),
    "another's tensors": (replace_weights(EXTRA), "does not fit|lacks"),
    "no key": (remove_key, "have no key"),
    "an absurd width": (edit_json("config.json", lambda values: values.update(hidden_size=1 << 40)), "no backbone"),
    "an absurd length": (edit_json("config.json", lambda values: values.update(max_length=1 << 40)), "or less"),
    "a large length": (edit_json("config.json", lambda values: values.update(max_length=99_999)), "pos_embed is"),
    "an absurd rate": (
        edit_json("preprocessor_config.json", lambda values: values.update(sampling_rate=1 << 50)), "give 1000 to"
    ),
    "a length of text": (edit_json("config.json", lambda values: values.update(max_length="x")), "target_frames is"),
    "a patch of nothing": (edit_json("config.json", lambda values: values.update(patch_size=0)), "give 1 or more"),
    "labels of numbers": (edit_json("config.json", lambda values: values.update(id2label={"0": 1})), "is of type int"),
    "labels that begin late": (
        edit_json("config.json", lambda values: values.update(id2label={"7": "a", "8": "b", "9": "c"})), "id2label"
    ),
    "a std of 0": (edit_json("preprocessor_config.json", lambda values: values.update(std=0)), "std is 0"),
    "another kind": (edit_json("config.json", lambda values: values.update(model_type="bert")), "model_type 'bert'"),
    "a config that is a list": (lambda folder, _: (folder / "config.json").write_text("[1]"), "not a JSON object"),
}  # fmt: skip


def test_hostile_hugging_face_folders_are_refused(tmp_path, canary, measured):
    good = tmp_path / "good"
    write_folder(good, HuggingFaceModel(SQUARE, FRONT_END, -6.0, 4.0, LABELS, True, weights(SQUARE)))
    Bundle.load(good)
    for name, (change, reason) in HUGGING_FACE.items():
        folder = tmp_path / "hostile" / name
        shutil.copytree(good, folder)
        change(folder, canary)
        assert_refused(lambda folder=folder: Bundle.load(folder), reason)
        assert _refuses(initialise_from, folder)
    measured("R6", hostile_hugging_face_folders=len(HUGGING_FACE), refused=len(HUGGING_FACE), ran=0)


def test_hostile_checkpoints_with_correct_hashes_are_refused(tmp_path, canary, measured):
    """Load each as an epoch to initialise from, and as a checkpoint to resume from."""
    model = AST(MODEL, BINS, FRAMES, len(LABELS))
    optimizer = torch.optim.Adam(model.parameters())
    refused = 0
    for name, write in {**CHANGED, "pickle": write_pickle, "a header of a terabyte": write_terabyte_header}.items():
        folder = tmp_path / name / "step-00000001"
        folder.mkdir(parents=True)
        path = folder / "model.safetensors"
        write(path, canary)
        marker = {"sha256": {path.name: sha256_of(path)}, "state": {"identity": IDENTITY}}
        write_hashed_json(folder / checkpoint.MARKER, marker)
        reason = REASONS.get(name, "cannot be read")
        assert_refused(lambda folder=folder: initialise_from(folder), reason)
        if name != "integers":
            assert_refused(
                lambda folder=folder: load_exactly(model, checkpoint.read_tensors(folder, "model"), "x"), reason
            )
        refused += 1
    for table in ({"0.exp_avg": torch.zeros(7)}, {"999.exp_avg": torch.zeros(7)}, {"x": torch.zeros(7)}):
        assert_refused(lambda table=table: checkpoint.restore_optimizer(optimizer, table), "belongs to another model")
        refused += 1
    measured("R6", hostile_checkpoints=refused, refused=refused, ran=0)


@pytest.mark.timeout(180)
def test_hostile_registry_entries_are_refused(tmp_path, canary, bundle, measured, new_store):
    """Check that a pickled model, which MLflow itself would run, and a bundle with other weights are refused."""
    uri = new_store(tmp_path)
    mlflow_store.open_store(uri)
    entries = {"good": bundle, "code": tmp_path / "code", "tampered": tmp_path / "tampered"}
    entries["code"].mkdir()
    write_pickle(entries["code"] / "python_model.pkl", canary)
    (entries["code"] / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n    python_model: python_model.pkl\n"
    )
    shutil.copytree(bundle, entries["tampered"])
    SHAPE(entries["tampered"] / "member-0.safetensors", canary)
    with runs.start_run("test", "hostile", {}, {}) as run_id:
        for name, folder in entries.items():
            runs.log_artifacts(run_id, folder, under=name)
    Bundle.load(registry.bundle_folder(f"runs:/{run_id}/good", uri))
    assert_refused(lambda: registry.bundle_folder(f"runs:/{run_id}/code", uri), "not a model of this pipeline")
    assert_refused(lambda: Bundle.load(registry.bundle_folder(f"runs:/{run_id}/tampered", uri)), "is damaged: sha256")
    measured("R6", hostile_registry_entries=2, refused=2, ran=0)
