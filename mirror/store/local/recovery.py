"""The sweep of `ingest/`, at start-up and every hour: it removes files that crashes left behind.

    partial, unlocked, of an earlier boot       dropped: after a power cut it can have its size without its bytes
    partial, unlocked, untouched for too long   dropped: no client asked for the blob again
    partial, unlocked, of an older version      dropped: its name does not say which registry sent it
    partial, locked                             left: a process fills it
    state file without its partial              dropped once it is older than any commit could take: a commit drops it
                                                as its last step, after the blob's new name is durable
    bytes out of turn beside a partial          see `beside/span_recovery.py`
    *.avoid                                     dropped once it is older than anybody would look at it
    tmp-*                                       dropped once it is older than any write could take
    anything else                               foreign: left alone

`blobs/` is not examined: a file there was verified and synced before it got its name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.store.local.beside.span_recovery import SUFFIXES, SentParts, sweep_spans
from mirror.store.local.blobs import drop_partial
from mirror.store.local.durable import store_errors
from mirror.store.local.layout import Layout, digest_of_ingest
from mirror.store.records.record_keys import digest_from

#: Seconds. Writing and renaming a small file takes far less.
_TEMPORARY: Final = 3600.0
#: Seconds. Nobody avoids parts for so long.
_AVOIDED: Final = 3600.0
#: Seconds. Many times what a disk needs to sync the largest blob.
_COMMIT: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Swept:
    """The number of partials and of other files that were dropped, and their size in bytes. `wrong` are bytes out of
    turn that were sent to clients and differ from the blob, and `unchecked` those that cannot be compared any more.
    """

    partials: int = 0
    strays: int = 0
    bytes: int = 0
    wrong: tuple[SentParts, ...] = ()
    unchecked: tuple[SentParts, ...] = ()


def sweep(layout: Layout, *, keep: float, now: Callable[[], float], in_use: bool = False) -> Swept:
    """Drop files that are of no more use; a partial stays for `keep` seconds after its last byte. `in_use`: also bytes
    out of turn that clients read, or a fill will use.

    Other processes may use the store meanwhile. Raises `StoreError` if the folder cannot be listed.
    """
    partials = strays = size = 0
    with store_errors("listing partials"):
        entries = list(os.scandir(layout.ingests))
    for entry in entries:
        with suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            if digest_of_ingest(entry.name):
                is_older_version = digest_from(entry.name) is not None
                if drop_partial(Path(entry.path), oldest=math.inf if is_older_version else now() - keep):
                    partials, size = partials + 1, size + status.st_size
            elif entry.name.startswith("tmp-") and _last_named(status) < now() - _TEMPORARY:
                os.unlink(entry.path)
                strays, size = strays + 1, size + status.st_size
            elif entry.name.endswith(".avoid"):
                if status.st_mtime < now() - _AVOIDED:
                    os.unlink(entry.path)
            elif _is_stray_state(layout, entry.name) and status.st_mtime < now() - _COMMIT:
                os.unlink(entry.path)
                strays += 1
    beside = [entry.name for entry in entries if entry.name.endswith(SUFFIXES)]
    if not beside:
        return Swept(partials, strays, size)
    spans = sweep_spans(layout, beside, keep=keep, now=now(), in_use=in_use)
    return Swept(partials + spans.blobs, strays, size + spans.bytes, spans.wrong, spans.unchecked)


def _last_named(status: os.stat_result) -> float:
    """When a file was last written or got this name, in epoch seconds, or later: a migration gives an old blob one."""
    return max(status.st_mtime, status.st_ctime)


def _is_stray_state(layout: Layout, name: str) -> bool:
    partial = name.removesuffix(".state")
    return digest_of_ingest(partial) is not None and not (layout.ingests / partial).exists()
