"""A folder in which the commands and the Python lines of the documents run: it has the files that they name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from bundles import write_run
from local_hub import LocalHub, write_model

from ast_core.config import FrontEndConfig
from ast_core.dataset.manifest import load_manifest
from ast_core.dataset.stratified_split import TENTHS_OF_CLASSES
from ast_core.weights.hub.hub_address import is_hub_address, parse_hub_address
from pipeline.cli.stages import ExportSettings, RegisterSettings
from pipeline.export import export
from pipeline.preparation.part_writer import write_shard_part
from pipeline.ray_runtime.shard_part import ShardMetadata, ShardPart
from pipeline.register import register
from pipeline.run_folder.shard_folder import ShardFolder

AUDIO = (".wav", ".flac", ".ogg", ".mp3", ".m4a")
LABELS = ("dog", "rain")


class Sandbox:
    """The folder, and what can be put into it."""

    def __init__(self, folder: Path, save_tone: Callable[..., Path], new_store: Callable[[Path], str]) -> None:
        self.folder = folder
        self._save_tone = save_tone
        self._tracking = new_store(folder / "work")
        self._registered: set[str] = set()
        self.hub = LocalHub()
        """The hub that answers while a page is tested."""

    def provide(self, name: str, is_model: bool = False) -> None:
        """Make what a document names, unless it is there.

        Args:
            name: model of the hub or of the registry, bundle, list, recipe, recording, file of weights, or folder.
            is_model: whether a folder that is not a bundle is a model in Hugging Face's format, and not recordings.
        """
        if is_hub_address(name):
            self.hub.add(parse_hub_address(name).name).commit_folder(write_model(self.folder / "of-the-hub"))
            return
        if name.startswith("models:/"):
            self._register(name.removeprefix("models:/").partition("@")[0])
            return
        path = self.folder / name
        if path.exists() or not name or name.startswith(("-", "/")):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if "bundles" in path.parts:
            _write_bundle(path)
        elif path.suffix in AUDIO:
            self._save_tone(path, seconds=1.0)
        elif path.suffix in {".csv", ".json"}:
            self._write_list(path)
        elif path.suffix == ".toml":
            shutil.copy(Path(__file__).resolve().parents[2] / "pipeline" / "recipes" / "own.toml", path)
        elif path.suffix:
            path.touch()
        elif is_model:
            self.provide("work/other/bundles/seed-0")
            export(ExportSettings(output=path, model=str(self.folder / "work/other/bundles/seed-0")))
        else:
            self._write_class_folders(path)

    def write_shards(self) -> None:
        """Write shards of two classes to `work/demo/shards`, in the splits `train` and `eval`, with their index."""
        source, shards = self.folder / "demo.csv", self.folder / "work" / "demo" / "shards"
        rows = [(f"demo/{split}-{label}.wav", label, split) for split in ("train", "eval") for label in LABELS]
        for name, *_ in rows:
            self._save_tone(self.folder / name)
        source.write_text("path,labels,split\n" + "".join(",".join(row) + "\n" for row in rows))
        manifest = load_manifest(source)
        front_end = FrontEndConfig(target_frames=64)
        metadata = ShardMetadata(front_end, manifest.labels, manifest.single_label)
        parts = []
        for split in ("train", "eval"):
            clips = tuple(clip for clip in manifest.clips if clip.split == split)
            parts.append(ShardPart(str(shards / split), "part-00000", split, clips, str(source), metadata))
            write_shard_part(parts[-1])
        folder = ShardFolder(shards, parts)
        folder.write_index(manifest, front_end, folder.count()[0], TENTHS_OF_CLASSES)

    def _register(self, model: str) -> None:
        if model in self._registered:
            return
        self._registered.add(model)
        run_dir = self.folder / "registered" / model
        write_run(run_dir, seeds=(0,))
        register(RegisterSettings(run_dir=run_dir, tracking=self._tracking, experiment="docs", model_name=model))

    def _write_class_folders(self, folder: Path) -> None:
        for label in LABELS:
            for number in range(5):
                self._save_tone(folder / label / f"{number}.wav", pitch_hz=300.0 + 50 * number, seed=number)

    def _write_list(self, path: Path) -> None:
        rows = [(f"listed/{label}/{number}.wav", label) for label in LABELS for number in range(5)]
        if not (self.folder / "listed").exists():
            self._write_class_folders(self.folder / "listed")
        if path.suffix == ".csv":
            path.write_text("path,labels\n" + "".join(f"{name},{label}\n" for name, label in rows))
        else:
            path.write_text(json.dumps({"data": [{"wav": name, "labels": label} for name, label in rows]}))


def _write_bundle(path: Path) -> None:
    """Write the bundles of a run, and a copy of a member's under another name, such as that of `probe`."""
    write_run(path.parents[1])
    if not path.exists():
        shutil.copytree(path.parent / "seed-0", path)
