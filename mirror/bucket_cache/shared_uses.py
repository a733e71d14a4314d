"""When other replicas have used what the bucket keeps of cached content. Without it, the one that evicts would delete
what only the others use.

    uses in the book of a replica ── hourly ──> cache-uses/<replica> ── hourly ──> the books of the others

    cache-uses/<replica>     JSON: the digests that it used within two days, with the times (epoch seconds)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Final

from mirror.errors import RequestError
from mirror.oci.digest import Digest
from mirror.ports import Bucket, NotChanged, ObjectBook, Version

_USES: Final = "cache-uses/"
#: Seconds of which uses are written down: the book notes a use once a day.
_WITHIN: Final = 2 * 86400.0
#: Digests in one object, the ones that were used last.
_MOST: Final = 50_000
#: Bytes. No object is larger.
_LIMIT: Final = 16 << 20
#: Seconds after which the uses of a replica that is gone are deleted, by the clock of the store.
_FORGOTTEN_AFTER: Final = 7 * 86400.0


class SharedUses:
    """The uses of one replica, and what it learns of those of the others. For one thread at a time."""

    def __init__(self, bucket: Bucket, book: ObjectBook, replica: str, now: Callable[[], float]) -> None:
        """`replica` is the name of this one; `now` is in epoch seconds."""
        self._bucket = bucket
        self._book = book
        self._key = f"{_USES}{hashlib.blake2b(replica.encode(), digest_size=8).hexdigest()}"
        self._now = now
        self._seen: dict[str, Version] = {}

    def __repr__(self) -> str:
        return f"<SharedUses of {len(self._seen)} other replicas>"

    def share(self) -> None:
        """Blocking: writes down what was used here, and notes what was used elsewhere. Raises `StoreError`,
        `IndexUnavailable`.
        """
        used = self._book.used_since(self._now() - _WITHIN, _MOST)
        self._bucket.write(self._key, json.dumps({str(each.digest): round(each.used_at) for each in used}).encode())
        written = {info.key: info.changed_at for info in self._bucket.list(_USES)}
        latest = max(written.values(), default=0.0)
        for key in sorted(written.keys() - {self._key}):
            if latest - written[key] > _FORGOTTEN_AFTER:
                # its replica writes it anew if it is back
                self._bucket.delete([key])
            else:
                self._learn(key)

    def _learn(self, key: str) -> None:
        found = self._bucket.read(key, _LIMIT, unless=self._seen.get(key))
        if found is None or isinstance(found, NotChanged):
            return
        # a clock that is ahead must not let anything stay for ever
        now = self._now()
        self._book.use({digest: min(at, now) for digest, at in _parse(found.content).items()})
        self._seen[key] = found.version


def _parse(content: bytes) -> Mapping[Digest, float]:
    """The uses; none if the object is damaged."""
    try:
        return {Digest.parse(text): float(at) for text, at in json.loads(content).items()}
    except (ValueError, TypeError, AttributeError, RecursionError, RequestError):
        return {}
