"""Files that GitHub, pre-commit and citation tools read agree with the Makefile, the lock and pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = re.compile(r"[\w./-]+@[0-9a-f]{40}")
"""Name of an action with the commit that it is pinned to: a tag can move."""


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_each_job_of_the_workflow_calls_an_existing_target_and_pinned_actions() -> None:
    jobs = load(".github/workflows/ci.yml")["jobs"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(jobs) == {"lint", "check", "test", "docs"}
    for name, job in jobs.items():
        assert [step["run"] for step in job["steps"] if "run" in step] == [f"make {name}"]
        assert name in targets
        assert all(PINNED.fullmatch(step["uses"]) for step in job["steps"] if "uses" in step)


def test_hooks_run_before_each_commit_what_make_lint_runs() -> None:
    hooks = [hook for repo in load(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    programs = {hook["entry"].split()[0] for hook in hooks if "entry" in hook}
    makefile = (ROOT / "Makefile").read_text().replace("$(BIN)", ".venv/bin")
    assert programs == {".venv/bin/ruff", ".venv/bin/mypy", ".venv/bin/lint-imports"}
    assert all(program in makefile for program in programs)
    assert {"end-of-file-fixer", "trailing-whitespace", "ruff", "ruff-format"} <= {hook["id"] for hook in hooks}


def test_issue_forms_have_fields_with_unique_names() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"))
    assert len(forms) == 2
    for form in map(load, forms):
        names = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert form["name"]
        assert form["description"]
        assert len(names) == len(set(names)) > 1


def test_citation_names_this_version_and_the_paper() -> None:
    citation = load("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"]
    assert citation["message"]
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert f"## [{citation['version']}] - {citation['date-released']}" in (ROOT / "CHANGELOG.md").read_text()
    (paper,) = citation["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert [author["family-names"] for author in paper["authors"]] == ["Gong", "Chung", "Glass"]
