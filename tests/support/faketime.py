"""The clock of a process that a test starts, moved while it runs (libfaketime)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

#: Python sleeps until a moment of the steady clock (clock_nanosleep). libfaketime moves that moment as well, so the
#: call fails (EINVAL) or lasts a year. It leaves a wait of so many seconds as it is.
_SLEEP: Final = """
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""


class FakeTime:
    """The wall clock alone: what counts steadily goes on as it does, as on a machine whose clock is set."""

    def __init__(self, directory: Path) -> None:
        """The offset lies in a file of `directory`."""
        self._file = directory / "offset"
        (directory / "sitecustomize.py").write_text(_SLEEP)
        found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        assert found, "faketime is not installed; tests/run installs every program that the tests need"
        self.environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # the times of files are the disk's own
            "NO_FAKE_STAT": "1",
            # where Python looks for the file above when it starts
            "PYTHONPATH": os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")])),
        }
        self.set(0)

    def set(self, days: int) -> None:
        """So many days ahead of the machine's clock, from the next look at it on."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(f"{days:+d}d\n")
        os.replace(fresh, self._file)
