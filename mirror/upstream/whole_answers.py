"""Whether an upstream sends the whole of a blob when it is asked for a part: it ignores ranges, or refuses them.

    asked for parts ── the rest from an offset was asked for, and the whole has come ──> asked for wholes
          ^                                                                                   │
          └── the time has passed, or a whole has broken off: a part may come after all ──────┘

The time is ten minutes; but if the part was refused by a 429, or by a 503 with `Retry-After`, only as long as that asks
for: the upstream has said that it wants fewer requests now, not that it refuses ranges, though some mean that.
A refused part costs further requests each time (`http/download.py`), which are saved like this. A request from the
first byte on changes nothing: whoever made it can use the whole as well. Small parts are asked for in any case: whoever
asks for them cannot use the whole, and remembers for how long no more are asked for (`fills/lazy_pulls.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from mirror.ports import Body, SaysStop

#: Seconds for which the whole is asked for at once, unless the upstream has named others.
_REMEMBERED: Final = 600.0


class WholeAnswers:
    """What one endpoint has sent lately when it was asked for parts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._until = float("-inf")

    def __repr__(self) -> str:
        return f"<WholeAnswers {'expected' if self.expected else 'not expected'}>"

    @property
    def expected(self) -> bool:
        """True if the whole should be asked for in place of a part."""
        return self._clock() < self._until

    def came(self, start: int, throttled: float | None = None) -> None:
        """The whole has come in place of a part from `start` on. `throttled` are the seconds for which the upstream
        wanted fewer requests when it refused the part; None if it did not say so.
        """
        if start:
            self._until = self._clock() + (_REMEMBERED if throttled is None else throttled)

    def broke_off(self) -> None:
        """A body has broken off: whoever goes on should not begin anew."""
        self._until = float("-inf")


def is_whole(body: Body, start: int, stop: int | None) -> bool:
    """True if this is the whole blob, and only bytes from `start` up to `stop` (None: the end) were asked for."""
    if start:
        return body.start == 0
    ends = body.stop if isinstance(body, SaysStop) else None
    return stop is not None and (ends is None or ends > stop)
