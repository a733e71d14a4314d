"""Checks of the store before and after a command uses it: it exists, its files stay readable, its pins can be read."""

from __future__ import annotations

import os
from collections.abc import Collection

from mirror.config import Config
from mirror.errors import ConfigError, MirrorError
from mirror.eviction.record_owners import UnreadableRecordOwners, unread_words
from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports import Catalog
from mirror.store.local.layout import Layout


def check_there(loaded: Config) -> None:
    """Raises `ConfigError` if there is no store: a command must not create one, which could belong to the wrong user or
    be in the wrong place, unless it fills the store. What it writes there, no mirror would read.
    """
    try:
        Layout(loaded.store.root).marker.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            [
                f"there is no store at {loaded.store.root}: has a mirror run with this configuration? "
                "If it uses another one, name that file with --config"
            ]
        ) from None
    except OSError:
        return


def check_owner(loaded: Config) -> None:
    """Raises `ConfigError` if the store belongs to another user: only the owner of a file in it can read the file, so
    the server could not read what this command writes.
    """
    owner, user = store_owner(loaded), os.geteuid()
    if owner is not None and owner != user:
        raise ConfigError(
            [
                f"the store at {loaded.store.root} belongs to user {owner}, and this is user {user}: the server could "
                f"not read what this command writes; run it as that user, for example with sudo -u '#{owner}'"
            ]
        )


def store_ids(loaded: Config) -> tuple[int, int] | None:
    """User and group of the store, for a file that root writes for the server; None for other users, or if there is no
    store yet.
    """
    if os.geteuid() != 0:
        return None
    try:
        status = Layout(loaded.store.root).marker.stat()
    except OSError:
        return None
    return status.st_uid, status.st_gid


def store_owner(loaded: Config) -> int | None:
    """The id of the user to whom the store belongs; None if there is no store yet, or it cannot be seen."""
    try:
        return Layout(loaded.store.root).marker.stat().st_uid
    except OSError:
        return None


def refuse_unread(notes: Collection[UnreadableRecord], catalog: Catalog) -> None:
    """Raises `MirrorError` if there are pins or freezes that cannot be read. Called after the others were printed, so
    that the list is not taken for complete.
    """
    if words := unread_words(notes, UnreadableRecordOwners(catalog).find(notes)):
        raise MirrorError("\n".join(words))


def describe_unread(config: Config) -> list[str]:
    """A sentence about each pin and freeze that cannot be read; empty also if there is no store yet. Changes nothing.
    Raises `StoreError`.
    """
    # imported here: most commands do without it
    from mirror.app.stored_records import stored_records

    with stored_records(config) as stored:
        shown = stored.shown
        notes = [*shown.pins.look()[1], *shown.freezes.look()[1]]
        return unread_words(notes, UnreadableRecordOwners(shown.catalog).find(notes))
