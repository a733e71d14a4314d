"""`mirror doctor`, run as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


class Doctor:
    """Findings by what was looked at: level, text and advice."""

    def __init__(self, *words: str | Path) -> None:
        command = [sys.executable, "-m", "mirror", "doctor", *map(str, words), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        self.code, self.said = done.returncode, done.stdout + done.stderr
        listed = json.loads(done.stdout) if done.stdout else []
        self.findings = {one["what"]: (one["level"], one["text"], one["advice"]) for one in listed}

    def level(self, what: str) -> str:
        """`ok`, `warning` or `problem`."""
        return str(self.findings[what][0])
