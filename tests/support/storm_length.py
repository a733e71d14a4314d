"""How long a storm lasts: some rounds in the suite; by the environment more of them, or as a soak so many seconds.

MIRROR_FAULTS_<name>_ROUNDS, MIRROR_FAULTS_<name>_SECONDS     no round begins any more after so many seconds
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from itertools import count, islice


class StormLength:
    """The length of one storm."""

    def __init__(self, name: str, rounds: int, *, limit: int) -> None:
        """`rounds` and `limit`, the most seconds of the test, are those of the suite."""
        self._seconds = os.environ.get(f"MIRROR_FAULTS_{name}_SECONDS")
        asked = os.environ.get(f"MIRROR_FAULTS_{name}_ROUNDS")
        self._rounds = int(asked) if asked is not None else None if self._seconds is not None else rounds
        #: For `pytest.mark.timeout`, which wins over the command line; 0: none, because a soak test ends by itself.
        self.limit = 0 if asked is not None or self._seconds is not None else limit

    def __repr__(self) -> str:
        return f"<StormLength of {self._rounds} rounds, {self._seconds} seconds>"

    def rounds(self) -> Iterator[int]:
        """Their numbers. The time runs from here on."""
        ends_at = time.monotonic() + float(self._seconds or "inf")
        for number in islice(count(), self._rounds):
            if time.monotonic() > ends_at:
                break
            yield number
