"""The documentation site: complete, generated from the code, built without a warning, and without outside requests."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from documented import blocks

from ast_core.evaluation.metrics import evaluate_scores
from pipeline.cli.command_line import parse_settings
from pipeline.cli.main import STAGES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\ssrc=[\"']?(?:https?:)?//"
    r"|<link\b[^>]*\shref=[\"']?(?:https?:)?//|@import|url\([\"']?(?:https?:)?//"
)
"""What makes a browser ask another host while it shows a page; links that a reader follows are not among it."""


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    """Return the hook that makes the tables of the reference; MkDocs loads it as a file, too."""
    spec = importlib.util.spec_from_file_location("reference_tables", DOCS / "hooks" / "reference_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages_of(nav: Any) -> list[str]:
    """Return the files that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages_of(part)]


def test_the_navigation_has_every_page_once() -> None:
    pages = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    assert sorted(pages_of(CONFIG["nav"])) == pages


def test_the_configuration_asks_no_other_host() -> None:
    assert CONFIG["theme"]["font"] is False  # otherwise the fonts come from Google
    assert not re.findall(r"https?://\S+", (ROOT / "mkdocs.yml").read_text())
    assert not {"extra_javascript", "repo_url", "extra"} & CONFIG.keys()
    assert all((DOCS / name).is_file() for name in CONFIG["extra_css"])
    assert [plugin if isinstance(plugin, str) else next(iter(plugin)) for plugin in CONFIG["plugins"]] == [
        "search",
        "mkdocstrings",
    ]


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_a_page_shows_no_picture_of_another_host_and_no_diagram_that_needs_one(path: Path) -> None:
    assert not re.findall(r"!\[[^\]]*\]\(https?://|<img", path.read_text())
    assert "mermaid" not in {block.language for block in blocks(path)}  # its program would come from a CDN


@pytest.mark.parametrize("name", STAGES)
def test_the_reference_has_the_flags_that_help_prints(
    name: str, tables: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = STAGES[name].load_settings_class()
    with pytest.raises(SystemExit):
        parse_settings(kind, "", ["--help"])
    printed = set(re.findall(r"--[a-z][a-z0-9.-]*", capsys.readouterr().out))
    flags = tables.read_flags(kind)
    wanted = {flag.name for flag in flags.values() if flag.name.startswith("--")}
    for section in tables.sections_of(kind):
        keys = tables.read_flags(tables.SECTIONS[section])
        wanted |= {f"--{tables.dashed(section)}.{tables.dashed(key)}" for key in keys}
    unnamed = {flag for flag in printed - wanted if "no-" not in flag} - {"--help"}
    assert wanted <= printed
    assert not unnamed, f"the reference lacks {unnamed}"
    assert all(flag.doc for flag in flags.values())


def test_every_recipe_key_has_a_source(tables: ModuleType) -> None:
    keys = {section: list(tables.read_flags(kind)) for section, kind in tables.SECTIONS.items()}
    assert {section: list(own) for section, own in tables.SOURCES.items()} == keys


def test_the_page_of_metrics_names_those_of_the_code() -> None:
    labels_NC = np.eye(3)
    computed = evaluate_scores(labels_NC, labels_NC, single_label=True)
    text = (DOCS / "reference" / "metrics.md").read_text().partition("## Each epoch")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(computed)


def test_the_tables_of_prometheus_have_every_metric(tables: ModuleType) -> None:
    text = tables.prometheus()
    source = (ROOT / "pipeline" / "reporting" / "prometheus.py").read_text()
    names = re.findall(r'(?:Gauge|Counter|Histogram)\("(\w+)"', source)
    assert len(names) == 10
    assert all(f"`ray_{name}" in text for name in names)
    assert "| `ray_ast_restarts_total` | counter | Restarts of a member's workers | `run`, `member`, `cause` |" in text


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_site_is_built_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "WARNING" not in output
    built = [path for suffix in ("html", "css") for path in (tmp_path / "site").rglob(f"*.{suffix}")]
    asking = [f"{path.name}: {found[0]}" for path in built for found in LOADED.finditer(path.read_text())]
    assert len(built) > 20
    assert not asking
    assert "generate:" not in (tmp_path / "site" / "reference" / "stages.html").read_text()
