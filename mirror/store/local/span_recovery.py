"""The sweep of the files beside growing blobs that have bytes out of turn (`span_file.py`):

a block is claimed                             left: somebody fetches it
the blob is in the store                       dropped. If they differ from it, whoever was sent some is reported
untouched for too long                         dropped: no client asked for the blob again
nothing is here, for an hour                   dropped: they are of another boot, and nothing was synced
`.map`, `.spans` or `.served` alone            dropped once it is as old
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.errors import BlobUnknown, StoreError
from mirror.oci.digest import Digest
from mirror.ports import Spans
from mirror.store.local.blobs import open_file
from mirror.store.local.layout import Layout, digest_of_ingest, map_of, served_of, spans_of
from mirror.store.local.span_file import disk_space, drop_spans, open_spans

#: The files of one growing blob end in these.
SUFFIXES: Final = (".spans", ".map", ".served")
#: Seconds. Whoever makes these files puts the first bytes into them far sooner.
_MADE: Final = 3600.0


@dataclass(frozen=True, slots=True)
class WrongSpans:
    """Bytes that differ from the verified blob were sent to those whom `served` names."""

    digest: Digest
    served: Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class SweptSpans:
    """The blobs whose bytes out of turn were dropped, the disk space of these in bytes, and which were wrong."""

    blobs: int = 0
    bytes: int = 0
    wrong: tuple[WrongSpans, ...] = ()


def sweep_spans(layout: Layout, names: Iterable[str], *, keep: float, now: float) -> SweptSpans:
    """Drop what is of no more use among these files of `ingest/`. They stay for `keep` seconds after they were touched,
    if the blob is not in the store; `now` is in epoch seconds. Other processes may use the store meanwhile.
    """
    oldest, made = now - keep, now - min(keep, _MADE)
    blobs, size, wrong = 0, 0, list[WrongSpans]()
    for ingest in sorted({layout.ingests / name.rpartition(".")[0] for name in names if name.endswith(SUFFIXES)}):
        digest = digest_of_ingest(ingest.name)
        if digest is None:
            continue
        with suppress(OSError, StoreError):
            taken = disk_space(str(spans_of(ingest)))
            if _sweep_one(ingest, digest, layout.blob(digest), oldest, made, wrong.append):
                blobs, size = blobs + 1, size + taken
    return SweptSpans(blobs, size, tuple(wrong))


def _sweep_one(
    ingest: Path, digest: Digest, blob: str, oldest: float, made: float, is_wrong: Callable[[WrongSpans], None]
) -> bool:
    """True if the files were dropped. Raises `OSError`, `StoreError`."""
    touched = max(_touched(path) for path in (spans_of(ingest), map_of(ingest), served_of(ingest)))
    spans = open_spans(ingest, "", None)
    if spans is None:
        return touched < oldest and drop_spans(ingest)
    try:
        if not spans.is_idle():
            return False
        if served := _sent_beside(spans, digest, blob):
            is_wrong(WrongSpans(digest, served))
        elif served is None and touched >= oldest and (spans.count() or touched >= made):
            spans.sync()
            return False
        spans.drop()
    finally:
        spans.close()
    return True


def _sent_beside(spans: Spans, digest: Digest, blob: str) -> Sequence[Mapping[str, object]] | None:
    """Who was sent bytes that differ from the blob; None if it is not in the store. Raises `StoreError`."""
    try:
        _, reader = open_file(digest, blob)
    except BlobUnknown:
        return None
    try:
        served = spans.served()
        return served if served and not spans.are_of(reader) else []
    finally:
        reader.close()


def _touched(path: Path) -> float:
    """When a file was last written; long ago if there is none."""
    try:
        return os.lstat(path).st_mtime
    except FileNotFoundError:
        return 0.0
