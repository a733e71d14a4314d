"""The last answers of the workers: one file for each worker, all read together.

    free ── a worker takes the lock recent-<n> ──> owned: recent/<n>.json ── replaced about once a second
     ^                                                 │
     └──────── the worker ends, the kernel releases the lock; the file stays, and the next worker continues it

So there are never more files than workers that ran at once, and the answers of a dead worker are not lost. A file is
replaced by a rename, but not synced: after a power cut it may be empty, which counts as absent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from mirror.errors import StoreError
from mirror.policy.last_answer import LastAnswer, latest
from mirror.store.local.durable import make_folder, store_errors, write_lightly
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLease, FileLocks

#: More than the workers of one mirror and of the mirror that replaces it, which may run side by side for a while.
_MOST_FILES: Final = 256
#: Bytes of a file that are read at most: more than a worker ever writes.
_LARGEST: Final = 4 << 20


class LocalRecent:
    """A worker's own file. All calls block briefly. Must not be used by two threads at once."""

    def __init__(self, layout: Layout, locks: FileLocks) -> None:
        self._layout = layout
        self._locks = locks
        self._lease: FileLease | None = None
        self._path: Path | None = None

    def load(self) -> list[LastAnswer]:
        """The answers in this worker's file, oldest first. Raises `StoreError`."""
        return sorted(_read(self._own()), key=lambda answer: answer.at)

    def save(self, answers: Sequence[LastAnswer]) -> None:
        """Replace the content of this worker's file. Raises `StoreError`, `StoreFull`."""
        path = self._own()
        lines = ",\n".join(json.dumps(answer.to_json(), separators=(",", ":")) for answer in answers)
        content = f"[{lines}]\n".encode()
        with store_errors("writing recent answers"):
            make_folder(path.parent, below=self._layout.root)
            write_lightly(path, content, through=self._layout.ingests)

    def __repr__(self) -> str:
        return f"<LocalRecent {self._path.name if self._path else 'no file yet'}>"

    def close(self) -> None:
        """Release the file, so that another worker can continue it. Repeatable."""
        if self._lease is not None:
            self._lease.release()
        self._lease = self._path = None

    def _own(self) -> Path:
        for number in range(_MOST_FILES):
            if self._path is not None:
                return self._path
            self._lease = self._locks.try_hold_now(f"recent-{number}")
            if self._lease is not None:
                self._path = self._layout.records("recent") / f"{number}.json"
        if self._path is None:
            raise StoreError("too many workers at once to keep recent answers of all")
        return self._path


def read_recent(layout: Layout) -> list[LastAnswer]:
    """Blocking: the last answer about each resource, newest first, from the files of all workers, including ended ones.

    Raises `StoreError`.
    """
    names: list[str] = []
    with store_errors("listing recent answers"), suppress(FileNotFoundError, NotADirectoryError):
        names = [name for name in os.listdir(layout.records("recent")) if name.endswith(".json")]
    return latest(answer for name in names[:_MOST_FILES] for answer in _read(layout.records("recent") / name))


def _read(path: Path) -> list[LastAnswer]:
    text = b""
    with (
        store_errors("reading recent answers"),
        suppress(FileNotFoundError, NotADirectoryError),
        path.open("rb") as file,
    ):
        text = file.read(_LARGEST)
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError):
        return []
    answers = map(LastAnswer.from_json, listed if isinstance(listed, list) else [])
    return [answer for answer in answers if answer is not None]
