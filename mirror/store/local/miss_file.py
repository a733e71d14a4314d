"""The report of misses on disk: one file for all processes of a store.

    absent ── add() ──> present ── add(): read, joined, cut to the limit, replaced by a rename ──> present
                           └── clear() ──> absent

The caller of `add` and `clear` must hold a lock among all processes, so that no miss is lost between the read and the
write. Readers need no lock. A file that does not parse counts as absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from mirror.policy.image_misses import Miss, joined
from mirror.store.local.durable import store_errors, write_whole
from mirror.store.local.layout import Layout
from mirror.values.json_form import JsonForm

_MISS: Final = JsonForm(Miss)
#: Records in the report at most; the least recent ones are dropped. Clients choose the names, so they are unbounded.
MOST: Final = 10_000


class LocalMisses:
    """The report of misses of one store. All calls block briefly."""

    def __init__(self, layout: Layout, *, most: int = MOST) -> None:
        self._layout = layout
        self._most = most

    def read(self) -> list[Miss]:
        """The misses, the most recent first.

        Raises `StoreError` if the file exists but cannot be read: after an empty result `add` would overwrite it.
        """
        text = b""
        with store_errors("reading the report of misses"), suppress(FileNotFoundError):
            text = self._layout.misses.read_bytes()
        try:
            listed = json.loads(text)["misses"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return []
        misses = map(_MISS.from_json, listed if isinstance(listed, list) else [])
        return joined((miss for miss in misses if miss), most=self._most)

    def add(self, misses: Iterable[Miss]) -> None:
        """Add misses to the report; durable on return. Raises `StoreError`, `StoreFull`."""
        misses = joined((*self.read(), *misses), most=self._most)
        content = json.dumps({"misses": [_MISS.to_json(miss) for miss in misses]}, separators=(",", ":")).encode()
        with store_errors("writing the report of misses"):
            write_whole(self._layout.misses, content, through=self._layout.ingests)

    def clear(self) -> None:
        """Delete the report. Repeatable. Raises `StoreError`."""
        with store_errors("clearing the report of misses"), suppress(FileNotFoundError):
            self._layout.misses.unlink()
