"""The command line: thin calls into what the rest can do. One file per group of commands.

A file that is imported adds its commands to the application. A run imports the one that has the command it was given:
to import all of them takes longer than most commands take to run.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

import typer

from mirror.cli import base

#: Which file has which commands; `--help` lists them in this order.
COMMANDS: Final = {
    "serving": ("serve", "worker", "check"),
    "status": ("status", "purge"),
    "storage": ("gc",),
    "prefetch": ("prefetch",),
    "sync": ("sync",),
    "tasks": ("jobs",),
    "tags": ("history", "freeze", "unfreeze", "freezes"),
    "pins": ("pin", "unpin", "pins"),
    "images": ("ls", "show", "verify", "misses"),
    "why": ("why",),
    "bundles": ("export", "inventory", "keygen"),
    "imports": ("import",),
    "nodes": ("configure",),
    "doctor": ("doctor",),
}


def main() -> None:
    """The entry of the `mirror` command."""
    given = sys.argv[1] if len(sys.argv) > 1 else ""
    having = [file for file, commands in COMMANDS.items() if given in commands]
    for file in having or COMMANDS:
        import_module(f"mirror.cli.{file}")
    base.main()


def every_command() -> typer.Typer:
    """The application with all its commands."""
    for file in COMMANDS:
        import_module(f"mirror.cli.{file}")
    return base.application
