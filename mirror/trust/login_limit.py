"""Limits how many different credentials are tried at one registry from one client address: of one user name, and of
all names.

    asked ── the registry has accepted these credentials ───────────────────────────────> upstream is asked
      ├── too many others, of this name or in all, from this client, are being asked about ─> `TooManyLogins`
      ├── too many others, likewise, were refused within the last minute ───────────────────> `TooManyLogins`
      └── upstream is asked ──┬── refused ───> noted for a minute
                              └── accepted ──> remembered

Without these limits, clients could guess passwords through the mirror: upstream sees the mirror's address, and locks
out the account or, whatever the names, the mirror. The same wrong password counts once, however often it is sent. Robot
accounts share user names (`AWS`, `oauth2accesstoken`), so credentials that the registry has accepted once are neither
counted nor refused, whatever else is tried under the same name: their holder is not guessing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

from mirror.aio.caches import LruCache
from mirror.errors import TooManyLogins
from mirror.oci.authorization import CallerCredentials

#: Seconds for which a refusal counts.
_FOR: Final = 60.0
#: How many refusals of one name may count at a time, and how many questions about it may be under way.
_EACH: Final = 10
_AT_ONCE: Final = 32
#: The same of all names: there may be many clients behind one address.
_EACH_CLIENT: Final = 100
_CLIENT_AT_ONCE: Final = 128
#: Names and credentials that are remembered; the least recent ones are dropped.
_MOST: Final = 10_000

#: Registry, client address, user name; None: all names.
_Key: TypeAlias = tuple[str, str, str | None]


class LoginLimiter:
    """The limiter of one process. `now` is monotonic, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._noted: LruCache[_Key, dict[str, float]] = LruCache(_MOST, name="failed logins")
        self._accepted: LruCache[tuple[str, str], bool] = LruCache(_MOST, name="accepted logins")
        self._asking: dict[_Key, Counter[str]] = {}

    def __repr__(self) -> str:
        return f"<LoginLimiter {len(self._noted)} names with refusals, {len(self._asking)} asking>"

    @contextmanager
    def asking(self, registry: str, own: CallerCredentials) -> Iterator[None]:
        """Counts a question to the registry about these credentials as under way. Raises `TooManyLogins`."""
        if (registry, own.fingerprint) in self._accepted:
            yield
            return
        mine, keys = own.fingerprint, _keys(registry, own)
        for key, (each, at_once) in zip(keys, ((_EACH, _AT_ONCE), (_EACH_CLIENT, _CLIENT_AT_ONCE)), strict=True):
            noted, others = self._lately(key), self._asking.get(key, Counter())
            if mine not in noted and mine not in others and (len(noted) >= each or len(others) >= at_once):
                whose = "of this name" if key[2] is not None else "from this address"
                raise TooManyLogins(f"too many passwords {whose} were refused lately, or are being tried; ask again")
        for key in keys:
            self._asking.setdefault(key, Counter())[mine] += 1
        try:
            yield
        finally:
            for key in keys:
                self._leave(key, mine)

    def _leave(self, key: _Key, mine: str) -> None:
        asking = self._asking[key]
        asking[mine] -= 1
        if not asking[mine]:
            del asking[mine]
        if not asking:
            del self._asking[key]

    def answered(self, registry: str, own: CallerCredentials, *, accepted: bool) -> None:
        """Records whether the registry accepted these credentials."""
        if accepted:
            self._accepted[registry, own.fingerprint] = True
        elif (registry, own.fingerprint) not in self._accepted:
            for key in _keys(registry, own):
                self._noted[key] = {**self._lately(key), own.fingerprint: self._now()}

    def _lately(self, key: _Key) -> dict[str, float]:
        noted = self._noted.get(key, {})
        return {fingerprint: at for fingerprint, at in noted.items() if self._now() - at < _FOR}


def _keys(registry: str, own: CallerCredentials) -> tuple[_Key, _Key]:
    return (registry, own.client, own.username), (registry, own.client, None)
