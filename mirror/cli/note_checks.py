"""Pins and freezes whose files cannot be read, told to whoever asks for them."""

from __future__ import annotations

from collections.abc import Collection

from mirror.config import Config
from mirror.errors import MirrorError
from mirror.eviction.damaged_notes import DamagedNoteOwners, unread_words
from mirror.policy.unread_notes import UnreadNote
from mirror.ports import Catalog
from mirror.store.local.catalog import LocalCatalog
from mirror.store.local.freezes import LocalFreezes
from mirror.store.local.layout import Layout
from mirror.store.local.pin_files import LocalPins


def refuse_unread(notes: Collection[UnreadNote], catalog: Catalog) -> None:
    """After all that could be told. Raises `MirrorError`, so that nobody takes a part for the whole."""
    if words := unread_words(notes, DamagedNoteOwners(catalog).find(notes)):
        raise MirrorError("\n".join(words))


def unread_of(config: Config) -> list[str]:
    """Sentences on each; empty too where there is no store yet. Changes nothing. Raises `StoreError`."""
    layout = Layout(config.store.root)
    notes = [*LocalPins(layout).look()[1], *LocalFreezes(layout).look()[1]]
    return unread_words(notes, DamagedNoteOwners(LocalCatalog(layout)).find(notes))
