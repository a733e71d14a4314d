"""A note on the disk: in which bucket its hosted content is.

    no note ── a mirror with a bucket starts, or a migration ends ──> its id ── a migration to the disk ends ──> no note

A disk with a note must not be used with another bucket, or with none: its names would seem free.
"""

from __future__ import annotations

import json
from contextlib import suppress

from mirror.errors import StoreError
from mirror.folders import sync_folder
from mirror.store.local.durable import ABSENT_ERRNOS, read_whole, store_errors, write_whole
from mirror.store.local.layout import Layout


class BucketNote:
    """All calls block for a short time, and raise `StoreError`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def __repr__(self) -> str:
        return f"<BucketNote {self._layout.bucket_note}>"

    def read(self) -> str | None:
        """The id of the bucket; None if this disk has used none."""
        path = self._layout.bucket_note
        try:
            content = read_whole(path)
        except OSError as error:
            if error.errno in ABSENT_ERRNOS:
                return None
            with store_errors(f"reading {path}"):
                raise
        try:
            noted = json.loads(content)["id"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(f"{path} is damaged: it says which bucket has the hosted content of this disk") from error
        return str(noted)

    def write(self, bucket: str) -> None:
        """Note a bucket; durable on return."""
        with store_errors("noting the bucket"):
            write_whole(self._layout.bucket_note, json.dumps({"id": bucket}).encode(), through=self._layout.ingests)

    def drop(self) -> None:
        """Forget the bucket; durable on return. Repeatable."""
        with store_errors("forgetting the bucket"):
            with suppress(FileNotFoundError):
                self._layout.bucket_note.unlink()
            sync_folder(self._layout.root)
