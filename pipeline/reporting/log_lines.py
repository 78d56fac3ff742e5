"""Log lines of workers in logfmt, which say whose they are."""

from __future__ import annotations

import json
import logging
import os
import sys

from pipeline.reporting.prometheus import LOG


def label_log_lines(labels: dict[str, str]) -> None:
    """Let `ast_core`'s log lines of this process say whose they are, in logfmt: `run=... rank=0 msg="..."`.

    The environment's AST_LOG_LEVEL says from which level on there are lines; at DEBUG there is one a step.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Logfmt(labels))
    LOG.handlers = [handler]
    LOG.setLevel(os.environ.get("AST_LOG_LEVEL", "INFO").upper())
    LOG.propagate = False


class _Logfmt(logging.Formatter):
    def __init__(self, labels: dict[str, str]) -> None:
        super().__init__()
        self._labels = "".join(
            f" {key}={json.dumps(value) if ' ' in value else value}" for key, value in labels.items()
        )

    def format(self, record: logging.LogRecord) -> str:
        when = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        message = json.dumps(record.getMessage(), ensure_ascii=False)
        return f"time={when} level={record.levelname.lower()}{self._labels} msg={message}"
