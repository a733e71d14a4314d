"""The command line: thin calls into what the rest can do. One file per group of commands.

A file adds its commands to the application when it is imported. A run imports only the file with the command on its
command line, because importing all of them takes longer than most commands take to run.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Final

import typer

from mirror.cli import base
from mirror.imports import without_collecting

#: Which file has which commands; `--help` lists them in this order.
COMMANDS: Final = {
    "serving": ("serve", "worker", "check", "schema"),
    "status": ("status", "purge", "evict"),
    "prefetch_command": ("prefetch",),
    "sync_command": ("sync",),
    "job_commands": ("jobs",),
    "hosted_commands": ("delete", "undelete", "gc", "release", "backup"),
    "hosting.retention_command": ("retention",),
    "hosting.copy_command": ("copy",),
    "hosting.event_commands": ("events",),
    "hosting.replicate_command": ("replicate",),
    "hosting.migrate_command": ("migrate",),
    "tags": ("history", "freeze", "unfreeze", "freezes"),
    "pin_commands": ("pin", "unpin", "pins"),
    "image_commands": ("ls", "show", "verify", "misses"),
    "why": ("why",),
    "bundles": ("export", "inventory", "keygen"),
    "imports": ("import",),
    "access_commands": ("account", "token"),
    "nodes": ("configure",),
    "doctor": ("doctor",),
}


def main() -> None:
    """The entry of the `mirror` command."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    files = [file for file, commands in COMMANDS.items() if command in commands]
    # the version is said by what all commands share
    with without_collecting():
        for file in files or (() if command == "--version" else COMMANDS):
            import_module(f"mirror.cli.{file}")
    base.main()


def every_command() -> typer.Typer:
    """The application with all its commands."""
    for file in COMMANDS:
        import_module(f"mirror.cli.{file}")
    return base.application
