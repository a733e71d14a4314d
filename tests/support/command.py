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
from mirror.store.local.layout import Layout
from tests.support.process import CommandFailed


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


def output(*words: str | Path) -> str:
    """What a command printed that succeeded. Raises `CommandFailed`, with all that it said."""
    done = mirror(*words)
    if done.status:
        raise CommandFailed(f"mirror {words[0]}: exit code {done.status}\n{done.out}{done.err}")
    return done.out


class CommandSite:
    """A configuration and the place of a store, in a folder; no mirror runs there. `template` is TOML in which `{root}`
    is the store, and whose audit log, if it has one, is `{root}/../audit.log`.
    """

    def __init__(self, folder: Path, template: str, **more: str) -> None:
        self.config, self.root = folder / "mirror.toml", folder / "store"
        self.config.write_text(template.format(root=self.root, **more))
        self.layout = Layout(self.root)

    def run(self, *words: str) -> Done:
        """Run a command with this configuration."""
        return mirror(*words, "--config", self.config)

    def audit(self) -> list[dict[str, Any]]:
        """The lines of the audit log."""
        return [json.loads(line) for line in (self.root.parent / "audit.log").read_text().splitlines()]
