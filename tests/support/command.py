"""The `mirror` command in this process: quick enough to be run hundreds of times in one test file."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import structlog

from mirror.cli import main


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed."""
        return json.loads(self.out)


def mirror(*words: str | Path) -> Done:
    """Run `mirror words…` to its end. Exceptions that the command does not report as errors are raised."""
    out, err = io.StringIO(), io.StringIO()
    logger = logging.getLogger()
    before = structlog.get_config(), list(logger.handlers), logger.level
    status = 0
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", ["mirror", *map(str, words)]),
        ):
            main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        configuration, handlers, level = before
        structlog.configure(**configuration)
        logger.handlers[:] = handlers
        logger.setLevel(level)
    return Done(status, out.getvalue(), err.getvalue())
