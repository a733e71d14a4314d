"""Whether the body of a client's request arrives fast enough."""

from __future__ import annotations


class UploadPace:
    """Measures one body. Only the time spent waiting for the client counts, not our own.

    `lowest` is in bytes a second, averaged over `window` seconds of waiting; 0: a body may be as slow as it likes.
    """

    def __init__(self, lowest: float, window: float) -> None:
        self._lowest = lowest
        self._window = window
        self._bytes = 0
        self._waited = 0.0

    def __repr__(self) -> str:
        return f"<UploadPace {self._bytes} bytes in {self._waited:.1f} s, at least {self._lowest:g} a second>"

    @property
    def patience(self) -> float | None:
        """How many seconds the next wait may take; None: for ever."""
        return max(self._window - self._waited, 0.0) if self._lowest > 0 else None

    def keeps_up(self, count: int, waited: float) -> bool:
        """Notes `count` bytes for which we waited so many seconds. False if the body is too slow."""
        self._bytes += count
        self._waited += waited
        if self._lowest <= 0 or self._waited < self._window:
            return True
        fast_enough = self._bytes >= self._lowest * self._waited
        self._bytes, self._waited = 0, 0.0
        return fast_enough

    @property
    def demand(self) -> str:
        """What is demanded, for messages."""
        return f"{self._lowest:g} bytes a second over {self._window:g} s"
