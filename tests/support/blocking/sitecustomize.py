"""Imported by every Python program that has this folder in its path: a mirror's worker then has a handler that blocks.

While the file that `BLOCK_WHEN` names is there, the next answer to `GET /v2/` takes it away and stands still, as a
handler would that calls something slow without a thread.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any


def _block_when(there: Path) -> None:
    from mirror.server.registry import pull

    before = pull.base

    def base() -> Any:
        try:
            there.unlink()
        except FileNotFoundError:
            return before()
        while True:
            time.sleep(3600)

    pull.base = base


if "worker" in sys.orig_argv and "BLOCK_WHEN" in os.environ:
    _block_when(Path(os.environ["BLOCK_WHEN"]))
