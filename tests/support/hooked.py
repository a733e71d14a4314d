"""Something else that happens in the middle of an operation, at an exact point: before or after a call of a port."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any


class Hooked:
    """Stands for a port. At one of its calls, another process acts, once, or the disk fails."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._before: dict[str, Callable[[], None]] = {}
        self._after: dict[str, Callable[[], None]] = {}
        self._failing: dict[str, Exception] = {}
        #: How often each call was made.
        self.calls: Counter[str] = Counter()

    def before(self, call: str, act: Callable[[], None]) -> None:
        """Do this before the next call of that name."""
        self._before[call] = act

    def after(self, call: str, act: Callable[[], None]) -> None:
        """Do this after the next call of that name."""
        self._after[call] = act

    def fail(self, call: str, error: Exception | None) -> None:
        """Raise this from each call of that name; None: no longer."""
        if error is None:
            self._failing.pop(call, None)
        else:
            self._failing[call] = error

    @property
    def pending(self) -> list[str]:
        """What has not happened yet."""
        return [*self._before, *self._after]

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found) or name.startswith("_"):
            return found

        def call(*arguments: Any, **more: Any) -> Any:
            self.calls[name] += 1
            if act := self._before.pop(name, None):
                act()
            if error := self._failing.get(name):
                raise error
            result = found(*arguments, **more)
            if act := self._after.pop(name, None):
                act()
            return result

        return call
