"""How many credentials of one name are tried at an upstream, from one place.

    refused by upstream ── another password of this name, from this client ──> noted for a minute
                               └── as many as `most` ──> `TooManyLogins` until they are a minute old

A mirror that asks on behalf of others would otherwise guess for them: upstream sees its address, and locks out the
account, or the mirror. Whoever was let in before is not held up, and one who comes with one password again and again is
one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from mirror.errors import TooManyLogins
from mirror.oci.authorization import Presented

__all__ = ["Guesses"]

#: Seconds that a refusal is noted for, and how many may be.
_FOR: Final = 60.0
_EACH: Final = 10
#: Names and places that are kept in mind, least recent ones leave.
_MOST: Final = 10_000


class Guesses:
    """Of one process. `now` is monotonic."""

    def __init__(self, now: Callable[[], float], *, most: int = _EACH) -> None:
        self._now = now
        self._most = most
        self._noted: OrderedDict[tuple[str, str], dict[str, float]] = OrderedDict()

    def check(self, own: Presented) -> None:
        """Whether upstream may be asked about these. Raises `TooManyLogins`."""
        noted = self._lately(own)
        if len(noted) >= self._most and own.fingerprint not in noted:
            raise TooManyLogins("too many passwords of this name were refused lately; ask again")

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
