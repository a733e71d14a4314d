"""The purges that replicas of a cluster have ordered, in one small object that all of them read.

read ── the version that is remembered? ──> nothing new
put, drop ── read ── change ── write, if nobody has written meanwhile ──┬─ done
              ^────────────────── somebody has ─────────────────────────┘
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from mirror.errors import BucketUnavailable, RecordChanged
from mirror.ports import ABSENT, Bucket, Expected, NotChanged, Version

KEY: Final = "purges/orders.json"
#: Bytes of the object, and orders in it: the oldest go first.
_LARGEST: Final = 4 << 20
_MOST: Final = 5000
_ATTEMPTS: Final = 20


class BucketPurgeOrders:
    """The orders, by key. All calls block, and raise `StoreError`. May be used from any thread."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._lock = threading.Lock()
        self._version: Version | None = None
        self._orders: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<BucketPurgeOrders {len(self._orders)}>"

    def all(self) -> Iterator[dict[str, Any]]:
        """Every order, the oldest first, each with its `key`."""
        with self._lock:
            self._read()
            return iter([{**order, "key": key} for key, order in self._orders.items()])

    def put(self, key: str, record: Mapping[str, Any]) -> None:
        """Write an order; durable on return."""
        self._change(lambda orders: {**orders, key: dict(record)})

    def drop(self, key: str) -> bool:
        """Forget an order; True if there was one."""
        with self._lock:
            self._read()
            found = key in self._orders
        if found:
            self._change(lambda orders: {each: order for each, order in orders.items() if each != key})
        return found

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        with self._lock:
            for _ in range(_ATTEMPTS):
                self._read()
                changed = dict(list(change(self._orders).items())[-_MOST:])
                expect: Expected = self._version if self._version is not None else ABSENT
                try:
                    self._version = self._bucket.write(KEY, json.dumps(changed).encode(), expect=expect)
                except RecordChanged:
                    continue
                self._orders = changed
                return
        raise BucketUnavailable("other replicas write purges all the time", retry_after=1.0)

    def _read(self) -> None:
        found = self._bucket.read(KEY, _LARGEST, unless=self._version)
        if isinstance(found, NotChanged):
            return
        self._version, self._orders = (None, {}) if found is None else (found.version, _parsed(found.content))


def _parsed(content: bytes) -> dict[str, Any]:
    """The orders; none if the object is damaged: the replicas that did not see them keep what was purged."""
    try:
        orders = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(orders, dict):
        return {}
    return {key: order for key, order in orders.items() if isinstance(order, dict)}
