"""The events that report what other parts of the mirror have noticed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mirror.oci.reference import Repo, read_repo
from mirror.policy.events.changes import (
    BLOB_DAMAGED,
    COLLECTED,
    PARTS_WRONG,
    PULLED,
    RETENTION_RAN,
    TAG_MOVED,
    UPSTREAM_DOWN,
    UPSTREAM_UP,
    Event,
)

#: What is noticed, by the words of `mirror.telemetry.Notice`.
_TYPES: Final = {
    "image pulled": PULLED,
    "content collected": COLLECTED,
    "retention ran": RETENTION_RAN,
    "tag moved": TAG_MOVED,
    "blob damaged": BLOB_DAMAGED,
    "parts wrong": PARTS_WRONG,
    "upstream down": UPSTREAM_DOWN,
    "upstream up": UPSTREAM_UP,
}


def event_of(what: str, fields: Mapping[str, Any]) -> Event | None:
    """The event that reports a notice; None if there is none for it."""
    kind = _TYPES.get(what)
    if kind in (TAG_MOVED, PULLED):
        repo = read_repo(str(fields.get("repository")))
        return _about(kind, repo, fields) if repo is not None else None
    if kind == BLOB_DAMAGED:
        digest = str(fields["digest"])
        return Event(kind, digest, f"blob {digest}", {"digest": digest, "reason": str(fields["reason"])})
    if kind == PARTS_WRONG:
        digest = str(fields["digest"])
        data = {"digest": digest, "upstream": str(fields["upstream"]), "answers": fields["answers"]}
        return Event(kind, digest, f"blob {digest}", {**data, "served": list(fields["served"])})
    if kind in (UPSTREAM_DOWN, UPSTREAM_UP):
        name = str(fields["upstream"])
        return Event(kind, name, f"upstream {name}", {"upstream": name, "address": str(fields["address"])})
    if kind in (COLLECTED, RETENTION_RAN):
        return Event(kind, "hosted", what, dict(fields))
    return None


def _about(kind: str, repo: Repo, fields: Mapping[str, Any]) -> Event:
    if kind == TAG_MOVED:
        data = {"tag": fields["tag"], "from": str(fields["was"]), "to": str(fields["now"])}
    else:
        known = {"reference": fields.get("reference"), "digest": fields.get("digest"), "by": fields.get("by")}
        data = {name: str(value) for name, value in known.items() if value is not None}
    # apart from the changes of hosted repositories, whose order counts
    key = f"{'pulls of' if kind == PULLED else 'upstream'} {repo}"
    return Event(kind, str(repo), key, {"registry": repo.registry, "repository": repo.name, **data}, repo)
