"""The status that each process of a store publishes for the others. A status does not outlive its process.

    open() ── takes a free slot ──> silent ── publish() ──> published ── publish() ──> replaced by a rename
                                                               └── the process ends: slot free, status gone

A process holds the lock of its slot (`locks/board-<n>`) for as long as it lives, so a file whose lock is free was left
by a dead process. Files are not synced, because they are useless after a power cut.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from mirror.store.local.durable import make_folder, store_errors
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLease, FileLocks

#: The number of slots, enough for the workers of a few mirrors on one store.
_SLOTS: Final = 256


class StatusBoard:
    """The board as one process sees it, with that process's slot. All calls block briefly."""

    def __init__(self, layout: Layout, locks: FileLocks) -> None:
        self._layout = layout
        self._folder = layout.records("board")
        self._locks = locks
        self._slot: tuple[int, FileLease] | None = None
        self._closed = False
        self._closing = threading.Lock()

    def open(self) -> None:
        """Take a free slot, if there is one. The slot is released again if `close` was called before or meanwhile.

        Raises `StoreError`.
        """
        self._take_slot()
        if self._closed:
            self.close()

    def _take_slot(self) -> None:
        for number in range(_SLOTS):
            lease = self._locks.try_hold_now(_lock(number))
            if lease is not None:
                self._slot = number, lease
                with suppress(OSError):
                    (self._folder / f"{number}.json").unlink()
                return

    def publish(self, status: Mapping[str, Any]) -> None:
        """Publish this process's status and replace the previous one; a no-op without a slot. Raises `StoreError`."""
        if self._slot is None:
            return
        with store_errors("publishing the status"):
            make_folder(self._folder, below=self._layout.root)
            temporary = self._folder / f".{self._slot[0]}"
            temporary.write_text(json.dumps(status))
            temporary.rename(self._folder / f"{self._slot[0]}.json")

    def others(self) -> list[dict[str, Any]]:
        """The status of every other process. Files left by processes that ended are deleted. Raises `StoreError`."""
        others = []
        names: list[str] = []
        with store_errors("reading the status of other processes"), suppress(FileNotFoundError):
            names = os.listdir(self._folder)
        for name in sorted(names):
            number = name.removesuffix(".json")
            if not number.isdecimal() or (self._slot is not None and int(number) == self._slot[0]):
                continue
            if not self._is_over(int(number)) and (status := self._read(name)) is not None:
                others.append(status)
        return others

    def _is_over(self, number: int) -> bool:
        lease = self._locks.try_hold_now(_lock(number))
        if lease is None:
            return False
        with lease, suppress(OSError):
            (self._folder / f"{number}.json").unlink()
        return True

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            status = json.loads((self._folder / name).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        return status if isinstance(status, dict) else None

    def __repr__(self) -> str:
        return f"<StatusBoard slot {self._slot[0] if self._slot else None}>"

    def close(self) -> None:
        """Delete this process's status and release its slot. Repeatable."""
        self._closed = True
        with self._closing:
            slot, self._slot = self._slot, None
        if slot is not None:
            number, lease = slot
            with lease, suppress(OSError):
                (self._folder / f"{number}.json").unlink()


def _lock(number: int) -> str:
    return f"board-{number}"
