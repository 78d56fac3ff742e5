"""Commands and blocks of code in README, examples and docs: which test runs each, or why none does.

A command of a stage is always parsed by the stage's own parser. Stages that start neither Ray nor a server are run.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli.main import STAGES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IN_THE_TEST = {"check", "predict", "embed", "export"}
"""Stages that the test of the documents runs as the documents say."""
TESTED = {
    "run": "tests/pipeline/test_run.py",
    "prepare": "tests/pipeline/test_prepare.py",
    "train": "tests/pipeline/test_train.py",
    "combine": "tests/pipeline/test_combine.py",
    "evaluate": "tests/pipeline/test_evaluate.py",
    "calibrate": "tests/pipeline/test_calibrate.py",
    "probe": "tests/pipeline/test_probe.py",
    "register": "tests/pipeline/test_register.py",
    "serve": "tests/pipeline/test_serve.py",
    "listen": "tests/pipeline/test_listen.py",
    "report": "tests/pipeline/test_report.py",
    "cross-validate": "tests/pipeline/test_cross_validate.py",
    "search": "tests/tune/test_search.py",
    "ensemble": "tests/tune/test_search.py",
}
"""Tests that run the other stages, on small data; the flags of the documents are parsed."""
RUN_BY = {
    r"tail -n \+2 \S+ \| sha256sum": "tests/test_document_commands.py",
    r"\S*python -m pip|(\S*/)?pip install": "tests/test_wheel.py",
    r"(\S*/)?python benchmarks/|make bench": "tests/test_benchmarks.py",
    r"make docs": "tests/test_site.py",
    r"make manifests": "tests/kubernetes/test_values.py",
    r"make pipelines": "tests/kubernetes/test_kubeflow.py",
    r"(\S*/)?python k8s/kubeflow/pipelines.py --here": "tests/kubernetes/test_kubeflow.py",
    r"(\S*/)?python examples/|.*jupyter ": "tests/test_examples.py",
    r"ray start": "tests/cluster/test_nodes.py",
    r"(\S*/)?mlflow server": "tests/kubernetes/test_mlflow_server.py",
    r"(\S*/)?mlflow models serve": "tests/reliability/test_load.py",
}
"""Tests that run the other commands, by a pattern of the command's beginning."""
NOT_RUN = {
    r"git clone|cd ": "the test is in a clone already",
    r"make( demo)?( [A-Z]+=\S+)*$": "it installs all packages first; a test runs its stages, which are those of `run`",
    r"make test-kubernetes|apt-get install containerd": "it makes a cluster as root",
    r"make (check|light|test|test-all|lint|style|types|imports|audit|lock|clean)": "this test is a part of it",
    r"export ": "it sets variables for the commands after it",
    r"docker |kind |kubectl |tar .*\| kubectl ": "it needs a container engine or a cluster; see tests/kubernetes",
    r"ffmpeg .*\| ast-pipeline listen": "it needs the program ffmpeg; tests/pipeline/test_listen.py writes such PCM",
    r"printf .*\| curl|curl ": "it needs a server that runs; tests/reliability/test_load.py sends such requests",
    r"(\S*/)?mlflow ui": "it is the program of `mlflow server`, and waits for a browser",
    r"mkdir -p crds|AST_CRDS=": "the definitions are a cluster's; see tests/kubernetes/test_definitions.py",
    r"pre-commit |\S*ruff |\S*mypy|\S*lint-imports": "it is a check of the source, and no part of the program",
}
"""Reasons why a command is not run, by a pattern of its beginning."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[str]:
        """Return the commands of a block of shell, without comments; a command may have several lines."""
        joined = re.sub(r"\\\n\s*|(?<=\|)\n\s*", " ", self.text)
        lines = (re.sub(r"(^|\s\s*)#\s.*$", "", line).strip() for line in joined.splitlines())
        return [re.sub(r"\s+", " ", line) for line in lines if line]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page. A block without a language holds commands, unless it holds JSON or a tree."""
    found = []
    for match in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", page.read_text(), re.MULTILINE | re.DOTALL):
        indent, language, text = match[1], match[2], match[3]
        line = page.read_text()[: match.start()].count("\n") + 1
        body = "\n".join(row.removeprefix(indent) for row in text.splitlines())
        found.append(Block(page, line, language or _guess(body), body))
    return found


def _guess(text: str) -> str:
    """Return the language of a block that names none."""
    if text.lstrip().startswith("{"):
        return "json"
    if re.match(r"\w+ = |\[\w+\]", text):
        return "toml"
    return "text" if re.match(r"work/", text) else "bash"


def stage_of(command: str) -> tuple[str, list[str]] | None:
    """Return stage and flags of a command that starts a stage, in any of the four ways; None for other commands."""
    words = shlex.split(re.split(r" [|>] ", command, maxsplit=1)[0])
    if words[:3] == ["ray", "job", "submit"] or "ray job submit" in command:
        words = words[words.index("--") + 1 :] if "--" in words else []
    while words and re.fullmatch(r"\w+=.*", words[0]):
        del words[0]
    if words and Path(words[0]).name == "ast-pipeline":
        return (words[1], words[2:]) if len(words) > 1 and words[1] in STAGES else None
    if len(words) > 1 and Path(words[0]).name in {"python", "python3"}:
        module = re.fullmatch(r"(?:pipeline|tune)/(\w+)\.py", words[1])
        own = module[1].replace("_", "-") if module else ""
        return (own, words[2:]) if own in STAGES else None
    return None


def treatment(command: str) -> str:
    """Return what happens to a command in the tests: a test's file, or the reason why it is not run; "" if unknown."""
    stage = stage_of(command)
    if stage is not None and "ray job submit" in command:
        return "tests/pipeline/ray_runtime/test_ray_jobs.py"
    if stage is not None:
        return "tests/test_document_commands.py" if stage[0] in IN_THE_TEST else TESTED[stage[0]]
    if re.fullmatch(r"(\S*/)?ast-pipeline( --help| --version)", command):
        return "tests/pipeline/cli/test_main.py"
    known = {**RUN_BY, **NOT_RUN}
    return next((own for pattern, own in known.items() if re.match(pattern, command)), "")
