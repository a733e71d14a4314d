"""The sweep of the files beside growing blobs that have bytes out of turn (`span_file.py`):

a block is claimed                             left: somebody fetches it
clients read them, or the blob is filled       left, unless nothing else makes room
the blob is in the store                       dropped. If they differ from it, whoever was sent some is reported
untouched for too long                         dropped: no client asked for the blob again. Nobody will ever know
                                               whether the parts that were sent were right: this is reported
nothing is here, for an hour                   dropped: they are of another boot, and nothing was synced
one of the files alone                         dropped once it is as old
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from mirror.errors import BlobUnknown, StoreError
from mirror.oci.digest import Digest
from mirror.ports import Spans
from mirror.store.local.beside.served_notes import read_served
from mirror.store.local.blobs import open_file, stat_file
from mirror.store.local.layout import Layout, digest_of_ingest, earlier_of, map_of, served_of, spans_of
from mirror.store.local.locks import is_locked
from mirror.store.local.span_file import SpanFile, disk_space, drop_spans, open_spans

#: The files of one growing blob end in these.
SUFFIXES: Final = (".spans", ".map", ".served", ".earlier")
#: Seconds. Whoever makes these files puts the first bytes into them far sooner.
_MADE: Final = 3600.0


@dataclass(frozen=True, slots=True)
class SentParts:
    """Parts of a blob were sent, as the notes of `served` say."""

    digest: Digest
    served: Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class SweptSpans:
    """The blobs whose bytes out of turn were dropped, and the disk space of these in bytes.

    `wrong`: some bytes differ from the verified blob. `unchecked`: no byte can be compared any more.
    """

    blobs: int = 0
    bytes: int = 0
    wrong: tuple[SentParts, ...] = ()
    unchecked: tuple[SentParts, ...] = ()


def sweep_spans(layout: Layout, names: Iterable[str], *, keep: float, now: float, in_use: bool = False) -> SweptSpans:
    """Drop what is of no more use among these files of `ingest/`. They stay for `keep` seconds after they were touched,
    if the blob is not in the store; `now` is in epoch seconds. `in_use`: also what is of use at the moment. Other
    processes may use the store meanwhile.
    """
    oldest, made = now - keep, now - min(keep, _MADE)
    blobs, size, wrong, unchecked = 0, 0, list[SentParts](), list[SentParts]()
    for ingest in sorted({layout.ingests / name.rpartition(".")[0] for name in names if name.endswith(SUFFIXES)}):
        digest = digest_of_ingest(ingest.name)
        if digest is None:
            continue
        with suppress(OSError, StoreError):
            taken = disk_space(str(spans_of(ingest)))
            # before they are opened: the first to do that in another boot writes to the map
            touched = _last_touched(ingest)
            is_old, is_kept = touched < oldest, partial(_is_kept, ingest, touched, oldest, made, in_use=in_use)
            if _sweep_one(ingest, digest, layout.blob(digest), is_old, is_kept, wrong.append, unchecked.append):
                blobs, size = blobs + 1, size + taken
    return SweptSpans(blobs, size, tuple(wrong), tuple(unchecked))


def _sweep_one(
    ingest: Path,
    digest: Digest,
    blob: str,
    is_old: bool,
    is_kept: Callable[[SpanFile], bool],
    is_wrong: Callable[[SentParts], None],
    is_unchecked: Callable[[SentParts], None],
) -> bool:
    """True if the files were dropped. Raises `OSError`, `StoreError`."""
    spans = open_spans(ingest, "", None)
    if spans is None:
        if not is_old:
            return False
        left = read_served(ingest)
        if dropped := drop_spans(ingest):
            _report(is_unchecked, digest, left)
        return dropped
    try:
        if not spans.is_idle():
            return False
        served = spans.served()
        is_right = _are_right(spans, digest, blob) if served else _is_stored(digest, blob)
        if is_right is None and is_kept(spans):
            spans.sync()
            return False
        spans.drop()
        if not is_right:
            _report(is_unchecked if is_right is None else is_wrong, digest, served)
    finally:
        spans.close()
    return True


def _is_kept(ingest: Path, touched: float, oldest: float, made: float, spans: SpanFile, *, in_use: bool) -> bool:
    """True if bytes of a blob that is not in the store may be of use. Raises `OSError`, `StoreError`."""
    if not in_use and (spans.is_used() or _is_filled(ingest)):
        return True
    return touched >= oldest and (spans.count() > 0 or touched >= made)


def _is_filled(ingest: Path) -> bool:
    """True if a process fills the growing blob now. Raises `OSError`."""
    try:
        return is_locked(str(ingest))
    except FileNotFoundError:
        return False


def _last_touched(ingest: Path) -> float:
    return max(_touched(path) for path in (spans_of(ingest), map_of(ingest), served_of(ingest), earlier_of(ingest)))


def _report(report: Callable[[SentParts], None], digest: Digest, served: Sequence[Mapping[str, object]]) -> None:
    if served:
        report(SentParts(digest, served))


def _is_stored(digest: Digest, blob: str) -> bool | None:
    """True if the blob is in the store, otherwise None. Raises `StoreError`."""
    with suppress(BlobUnknown):
        stat_file(digest, blob)
        return True
    return None


def _are_right(spans: Spans, digest: Digest, blob: str) -> bool | None:
    """True if the bytes are those of the blob; None if it is not in the store. Raises `StoreError`."""
    try:
        _, reader = open_file(digest, blob)
    except BlobUnknown:
        return None
    try:
        return spans.are_of(reader)
    finally:
        reader.close()


def _touched(path: Path) -> float:
    """When a file was last written; long ago if there is none."""
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0
