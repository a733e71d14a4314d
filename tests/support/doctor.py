"""`mirror doctor`, run as a command."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.command import mirror


class Doctor:
    """Findings by what was looked at: level, text and advice."""

    def __init__(self, *words: str | Path) -> None:
        done = mirror("doctor", *words, "--json")
        self.code, self.said = done.status, done.out + done.err
        listed = json.loads(done.out) if done.out else []
        self.findings = {one["what"]: (one["level"], one["text"], one["advice"]) for one in listed}

    def level(self, what: str) -> str:
        """`ok`, `warning` or `problem`."""
        return str(self.findings[what][0])
