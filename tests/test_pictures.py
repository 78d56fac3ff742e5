"""The committed pictures are what their commands draw, and the example of CONTRIBUTING.md works."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import soundfile  # type: ignore[import-untyped]
from audio_files import RATE_HZ, tone
from bundles import write_run
from matplotlib.image import imread

from ast_core.errors import UserError
from ast_core.model import transformer

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
FORBIDDEN = {"name": "no ray", "type": "forbidden", "source_modules": ["low"], "forbidden_modules": ["ray"]}


def test_architecture_picture_shows_the_import_contracts(tmp_path: Path) -> None:
    out = tmp_path / "architecture.svg"
    subprocess.run([sys.executable, IMAGES / "draw_architecture.py", "--out", out], check=True)
    assert out.read_text() == (IMAGES / "architecture.svg").read_text(), (
        "The import contracts have changed: run `.venv/bin/python docs/images/draw_architecture.py`."
    )


def test_each_contract_is_in_the_picture() -> None:
    script = runpy.run_path(str(IMAGES / "draw_architecture.py"))
    layers = {"name": "down", "type": "layers", "layers": ["high", "low"]}
    inside = {"name": "inside", "type": "layers", "containers": ["low"], "layers": ["model | shards", "errors : words"]}
    only = {**FORBIDDEN, "name": "one", "source_modules": ["high.*"], "ignore_imports": ["high.cli.** -> tyro"]}
    high, low = script["read_packages"]([layers, inside, FORBIDDEN, only])
    assert (high.name, high.importers, high.layers) == ("high", [("high.cli", "tyro")], [])
    assert (low.forbidden, low.layers) == (["ray"], [(["model", "shards"], False), (["errors", "words"], True)])
    picture = script["draw"]([high, low])
    words = (
        "high",
        "low",
        "high.cli, the only importer of tyro",
        "model",
        "shards",
        "errors, words",
        "never imports ray",
    )
    assert all(f">{word}" in picture for word in words)


def test_contract_of_another_type_is_refused_by_name() -> None:
    script = runpy.run_path(str(IMAGES / "draw_architecture.py"))
    layers = {"name": "down", "type": "layers", "layers": ["high", "low"]}
    with pytest.raises(ValueError, match="twins: a contract of type independence is not drawn"):
        script["read_packages"]([layers, {"name": "twins", "type": "independence", "modules": ["high", "low"]}])


def test_recording_picture_shows_any_bundle(tmp_path: Path) -> None:
    script = runpy.run_path(str(IMAGES / "draw_recording.py"))
    write_run(tmp_path)
    soundfile.write(tmp_path / "short.wav", tone(4000), RATE_HZ)
    out = tmp_path / "recording.png"
    script["draw_recording"](tmp_path / "short.wav", tmp_path / "bundles" / "ensemble", out, "Zoé, CC0, $0")
    assert imread(out).shape[:2] == imread(IMAGES / "recording.png").shape[:2]


def test_example_of_contributing_fails_before_its_change_and_passes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (example,) = re.findall(r"^    ```python\n(.*?)^    ```", text, re.DOTALL | re.MULTILINE)
    (name, line) = re.findall(r"`\"(\w+)\": (Backbone\(.*?\)),`", text)[0]
    names: dict[str, Any] = dict(vars(transformer))
    exec(textwrap.dedent(example), names)
    (test,) = (value for key, value in names.items() if key.startswith("test_"))
    with pytest.raises(UserError, match=f"model.backbone '{name}' is unknown"):
        test()
    monkeypatch.setitem(transformer.BACKBONES, name, eval(line, {"Backbone": transformer.Backbone}))
    test()
