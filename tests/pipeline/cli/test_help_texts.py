"""`--help` of every stage breaks its texts at the width of the terminal, not where the source does."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import os
import subprocess
import sys
import textwrap
import typing
from collections.abc import Iterator

import pytest

from pipeline.cli.command_line import parse_settings
from pipeline.cli.main import STAGES

TERMINAL = "10000"
"""Columns of the terminal."""
FIT = 250
"""Letters that the column of texts has room for at least; longer texts are wrapped."""


def texts_of(kind: type) -> Iterator[str]:
    """Yield the docstrings of the attributes of a class, its bases and its sections."""
    texts: dict[str, str] = {}
    for own in reversed(kind.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(own))).body
        for node, follower in itertools.pairwise(tree.body):
            if isinstance(node, ast.AnnAssign) and isinstance(follower, ast.Expr):
                texts[node.target.id] = follower.value.value
    yield from texts.values()
    for section in typing.get_type_hints(kind).values():
        if dataclasses.is_dataclass(section):
            yield from texts_of(section)


@pytest.mark.parametrize("stage", STAGES)
def test_each_text_is_one_paragraph(stage: str, monkeypatch, capsys) -> None:
    kind = STAGES[stage].load_settings_class()
    monkeypatch.setenv("COLUMNS", TERMINAL)
    with pytest.raises(SystemExit) as end:
        parse_settings(kind, "", ["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    texts = [text for text in texts_of(kind) if len(text) < FIT]
    assert any("\n" in text for text in texts)
    assert [text for text in texts if " ".join(text.split()) not in shown] == []


def test_help_whose_reader_has_ended_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does after its last line
    command = [sys.executable, "-m", "pipeline.cli.main", "run", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
