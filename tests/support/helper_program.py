"""A credential helper as a user would install it: a program in a folder of the PATH, which notes how it was run.

helper = HelperProgram(tmp_path, "cloud")
helper.answers("user", "secret")
DockerConfig(path, ["a.io"], environment=helper.environment)
assert helper.runs == ["a.io"]
"""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path


class HelperProgram:
    """`docker-credential-<name>` below `directory`; what it does may be changed between two runs."""

    def __init__(self, directory: Path, name: str) -> None:
        self._folder = directory / "bin"
        self._folder.mkdir(exist_ok=True)
        self._runs = directory / f"{name}-runs"
        self._seen = directory / f"{name}-environment"
        self._program = self._folder / f"docker-credential-{name}"
        self.environment = {"PATH": f"{self._folder}:{os.environ['PATH']}", "HOME": str(directory)}
        self.does("exit 1")

    def does(self, script: str) -> None:
        """Shell commands after those that note the run."""
        lines = [
            "#!/bin/sh",
            '[ "$1" = get ] || exit 64',
            "server=$(cat)",
            f'echo "$server" >> {shlex.quote(str(self._runs))}',
            f"env > {shlex.quote(str(self._seen))}",
            script,
        ]
        fresh = self._program.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.chmod(0o700)
        fresh.replace(self._program)

    def answers(self, username: str, secret: str) -> None:
        """The program's output, as the protocol of credential helpers defines it."""
        self.does(f"echo {shlex.quote(json.dumps({'ServerURL': 'x', 'Username': username, 'Secret': secret}))}")

    @property
    def runs(self) -> list[str]:
        """The server that each run was given."""
        return self._runs.read_text().splitlines() if self._runs.exists() else []

    @property
    def seen(self) -> set[str]:
        """Names of the variables that the last run had."""
        return {line.partition("=")[0] for line in self._seen.read_text().splitlines()}
