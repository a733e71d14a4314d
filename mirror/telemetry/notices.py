"""Notices of what happens to content and upstreams, for whoever reports it to others. Without listeners they are free.

listen() ──> each notice() calls the listener ──> the function that `listen` has returned ends it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Final, TypeAlias


class Notice(Enum):
    """What can be noticed, with its fields."""

    #: A client got a manifest: `repository`, `reference`, `digest`, `by`.
    IMAGE_PULLED = "image pulled"
    #: A client got a manifest, or learned by HEAD or If-None-Match that it is there: `repository`, `reference`,
    #: `digest`.
    MANIFEST_ANSWERED = "manifest answered"
    #: `repository`, `tag`, and the digests `was` and `now`.
    TAG_MOVED = "tag moved"
    #: A round of garbage collection has freed something: `links`, `blobs`, `bytes`.
    CONTENT_COLLECTED = "content collected"
    #: A round of retention has ended: `tags`, `manifests`, `complete`.
    RETENTION_RAN = "retention ran"
    #: `digest`, `reason`.
    BLOB_DAMAGED = "blob damaged"
    #: Clients were sent unverified parts of a blob that turned out to be wrong: `digest`, `upstream`, `served` (who,
    #: at most so many), `answers`.
    PARTS_WRONG = "parts wrong"
    #: `upstream`, `address`.
    UPSTREAM_DOWN = "upstream down"
    #: `upstream`, `address`.
    UPSTREAM_UP = "upstream up"


#: Called in any thread; it must not block and not raise.
Listener: TypeAlias = Callable[[Notice, Mapping[str, Any]], None]

_listeners: Final[list[Listener]] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Calls the listener at each notice of this process, until the function that is returned is called."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def is_listened_to() -> bool:
    """True if anybody listens to notices of this process."""
    return bool(_listeners)


def notice(what: Notice, **fields: object) -> None:
    """Tells every listener. Never blocks, never raises."""
    for listener in _listeners:
        listener(what, fields)
