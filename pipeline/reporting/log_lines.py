"""Log lines of workers in logfmt, labelled with run, member and rank."""

from __future__ import annotations

import json
import logging
import os
import sys

from pipeline.reporting.prometheus import LOG


def label_log_lines(labels: dict[str, str]) -> None:
    """Label the log lines of `ast_core` in this process, in logfmt: `run=... rank=0 msg="..."`.

    The environment variable AST_LOG_LEVEL sets the lowest level that is logged; at DEBUG each step logs a line.
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
