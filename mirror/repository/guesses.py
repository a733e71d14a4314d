"""How many credentials of one name are tried at an upstream, from one place.

    asked ── `at_once` of this name, from this client, are being asked about ──> `TooManyLogins`
      └── as many as `most` were refused lately ────────────────────────────────> `TooManyLogins`, for a minute
      └── upstream is asked ── refused ──> noted for a minute

A mirror that asks on behalf of others would otherwise guess for them: upstream sees its address, and locks out the
account, or the mirror. Whoever was let in before is not held up, and one who comes with one password again and again is
one. Robots share names (`AWS`, `oauth2accesstoken`), so those that are right are not counted.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from mirror.errors import TooManyLogins
from mirror.oci.authorization import Presented

__all__ = ["Guesses"]

#: Seconds that a refusal is noted for, how many may be, and how many may be under way.
_FOR: Final = 60.0
_EACH: Final = 10
_AT_ONCE: Final = 32
#: Names and places that are kept in mind, least recent ones leave.
_MOST: Final = 10_000


class Guesses:
    """Of one process. `now` is monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._noted: OrderedDict[tuple[str, str], dict[str, float]] = OrderedDict()
        self._asking: dict[tuple[str, str], Counter[str]] = {}

    @contextmanager
    def asking(self, own: Presented) -> Iterator[None]:
        """Inside it upstream is asked about these. Raises `TooManyLogins`."""
        key, mine = (own.client, own.username), own.fingerprint
        noted, others = self._lately(own), self._asking.get(key, Counter())
        if mine not in noted and mine not in others and (len(noted) >= _EACH or len(others) >= _AT_ONCE):
            raise TooManyLogins("too many passwords of this name were refused lately, or are being tried; ask again")
        self._asking.setdefault(key, Counter())[mine] += 1
        try:
            yield
        finally:
            self._leave(key, mine)

    def _leave(self, key: tuple[str, str], mine: str) -> None:
        asking = self._asking[key]
        asking[mine] -= 1
        if not asking[mine]:
            del asking[mine]
        if not asking:
            del self._asking[key]

    def refused(self, own: Presented) -> None:
        """Upstream said no."""
        key = own.client, own.username
        self._noted[key] = {**self._lately(own), own.fingerprint: self._now()}
        self._noted.move_to_end(key)
        if len(self._noted) > _MOST:
            self._noted.popitem(last=False)

    def _lately(self, own: Presented) -> dict[str, float]:
        noted = self._noted.get((own.client, own.username), {})
        return {fingerprint: at for fingerprint, at in noted.items() if self._now() - at < _FOR}
