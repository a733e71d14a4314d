"""Who was given unverified bytes of a growing blob: JSON lines in two files beside it.

    <name>.served    the latest notes; every process appends ── full ──> renamed to
    <name>.earlier   the notes before them ── the next one comes ──> dropped

So at least the last `FULL` bytes of notes are here, and never more than about twice as many. A line begins with a
newline as well: one that a power cut has torn does not spoil the next. Notes are synced before the map
says that bytes are: where bytes survive a power cut, so do the notes of who was sent them until then. A note that is
made later, about the same bytes, survives after the next sync.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from mirror.errors import StoreError, StoreFull
from mirror.store.local.durable import is_named, store_errors
from mirror.store.local.layout import earlier_of, served_of

#: Bytes of `.served` from which on it becomes `.earlier`; and those beyond which no note is made, because the process
#: that is about to rename it stands still.
FULL: Final = 128 << 10
_MOST: Final = 2 * FULL
#: Bytes from which on a line is too long, and the characters of each value that are left then.
_LINE: Final = 2048
_VALUE: Final = 256

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND: Final = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
#: How often the files are opened again because they were renamed meanwhile.
_TRIES: Final = 10


def note_served(ingest: Path, note: Mapping[str, object]) -> None:
    """Append a note; what is too long of it is cut. For any process and thread. Raises `StoreFull`, `StoreError`."""
    line = b"\n" + _line(note) + b"\n"
    with store_errors("noting who was served"):
        for _ in range(_TRIES):
            descriptor = os.open(served_of(ingest), _APPEND, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                if size + len(line) > FULL and _put_aside(ingest, descriptor):
                    continue
                if size + len(line) > _MOST:
                    raise StoreError("noting who was served: whoever is to rename the notes stands still")
                if os.write(descriptor, line) != len(line):
                    raise StoreFull("noting who was served: the disk took a part of the note")
                return
            finally:
                os.close(descriptor)
        raise StoreError("noting who was served: other processes rename the notes again and again")


def _line(note: Mapping[str, object]) -> bytes:
    text = json.dumps(note, ensure_ascii=True, default=str).encode()
    if len(text) > _LINE:
        short = {key: value[:_VALUE] if isinstance(value, str) else value for key, value in note.items()}
        text = json.dumps({**short, "parts": []}, ensure_ascii=True, default=str).encode()
    return text


def _put_aside(ingest: Path, descriptor: int) -> bool:
    """Make the full file `.earlier`. False if another process does that at the moment. Raises `OSError`."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # under the lock: otherwise a new and nearly empty file could be put aside as well
    if is_named(descriptor, served_of(ingest)):
        with suppress(FileNotFoundError):
            os.rename(served_of(ingest), earlier_of(ingest))
    return True


def sync_served(ingest: Path) -> None:
    """Make the notes beside a growing blob survive a power cut, but for the names of their files. Raises `OSError`."""
    # in this order: what is renamed in between is synced under its new name
    for path in (served_of(ingest), earlier_of(ingest)):
        with suppress(FileNotFoundError):
            descriptor = os.open(path, _READ)
            try:
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)


def read_served(ingest: Path) -> list[Mapping[str, object]]:
    """The notes beside a growing blob, the oldest first. Raises `StoreError`."""
    with store_errors("reading who was served"):
        for _ in range(_TRIES):
            latest = _read(served_of(ingest))
            earlier = _read(earlier_of(ingest))
            # renamed in between: there may be a newer file
            if not latest or not earlier or latest[0] != earlier[0]:
                break
        text = (earlier[1] if earlier else b"") + (latest[1] if latest and latest != earlier else b"")
    notes: list[Mapping[str, object]] = []
    for line in text.splitlines():
        with suppress(ValueError):
            note = json.loads(line)
            if isinstance(note, dict):
                notes.append(note)
    return notes


def _read(path: Path) -> tuple[tuple[int, int], bytes] | None:
    """Which file this is, and what is in it; None if there is none. Raises `OSError`."""
    try:
        descriptor = os.open(path, _READ)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        return (status.st_dev, status.st_ino), os.pread(descriptor, _MOST, 0)
    finally:
        os.close(descriptor)
