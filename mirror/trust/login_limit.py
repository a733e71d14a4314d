"""How many credentials of one user name are tried at one registry, from one client address.

    asked ── the registry has accepted these credentials ───────────────────────────────> upstream is asked
      ├── `_AT_ONCE` others of this name, from this client, are being asked about ──> `TooManyLogins`
      ├── `_EACH` others of this name were refused within the last minute ──────────> `TooManyLogins`
      └── upstream is asked ──┬── refused ───> noted for a minute
                              └── accepted ──> remembered

A mirror that asks on behalf of others would otherwise guess for them: upstream sees its address, and locks out the
account, or the mirror. The same wrong password counts once however often it comes. Robots share names (`AWS`,
`oauth2accesstoken`), so credentials that the registry has once accepted are never counted and never held up, whatever
else comes under their name: whoever has them is not guessing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

from mirror.aio.latest import put_latest
from mirror.errors import TooManyLogins
from mirror.oci.authorization import CallerCredentials

__all__ = ["LoginLimiter"]

#: Seconds that a refusal is noted for, how many may be, and how many may be under way.
_FOR: Final = 60.0
_EACH: Final = 10
_AT_ONCE: Final = 32
#: Names and credentials that are remembered; the least recent ones leave.
_MOST: Final = 10_000

#: Registry, client address, user name.
_Key: TypeAlias = tuple[str, str, str]


class LoginLimiter:
    """Of one process. `now` is monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._noted: OrderedDict[_Key, dict[str, float]] = OrderedDict()
        self._accepted: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._asking: dict[_Key, Counter[str]] = {}

    @contextmanager
    def asking(self, registry: str, own: CallerCredentials) -> Iterator[None]:
        """Inside it this registry is asked about these credentials. Raises `TooManyLogins`."""
        if (registry, own.fingerprint) in self._accepted:
            yield
            return
        key, mine = _key(registry, own), own.fingerprint
        noted, others = self._lately(key), self._asking.get(key, Counter())
        if mine not in noted and mine not in others and (len(noted) >= _EACH or len(others) >= _AT_ONCE):
            raise TooManyLogins("too many passwords of this name were refused lately, or are being tried; ask again")
        self._asking.setdefault(key, Counter())[mine] += 1
        try:
            yield
        finally:
            self._leave(key, mine)

    def _leave(self, key: _Key, mine: str) -> None:
        asking = self._asking[key]
        asking[mine] -= 1
        if not asking[mine]:
            del asking[mine]
        if not asking:
            del self._asking[key]

    def answered(self, registry: str, own: CallerCredentials, *, accepted: bool) -> None:
        """What the registry said about these credentials."""
        if accepted:
            put_latest(self._accepted, (registry, own.fingerprint), None, _MOST)
        elif (registry, own.fingerprint) not in self._accepted:
            key = _key(registry, own)
            put_latest(self._noted, key, {**self._lately(key), own.fingerprint: self._now()}, _MOST)

    def _lately(self, key: _Key) -> dict[str, float]:
        noted = self._noted.get(key, {})
        return {fingerprint: at for fingerprint, at in noted.items() if self._now() - at < _FOR}


def _key(registry: str, own: CallerCredentials) -> _Key:
    return registry, own.client, own.username
