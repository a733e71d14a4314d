"""Freezes on disk: the tags that must not move. The command line writes them, and every worker reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mirror.errors import RequestError, StoreError
from mirror.oci.digest import Digest
from mirror.oci.manifest import check_manifest_type
from mirror.oci.reference import Repo, check_name, check_registry, check_tag
from mirror.policy.records import Freeze
from mirror.policy.unread_notes import UnreadNote
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout


class LocalFreezes:
    """`Freezes` on disk, shared by all processes of one store."""

    def __init__(self, layout: Layout) -> None:
        self._notes = JsonRecords(layout, "freezes")

    def all(self) -> Sequence[Freeze]:
        return self.look()[0]

    def look(self) -> tuple[Sequence[Freeze], Sequence[UnreadNote]]:
        return self._notes.look(_read)

    def get(self, repo: Repo, tag: str) -> Freeze | None:
        key = _key(repo, tag)
        note = self._notes.get(key)
        freeze = None if note is None else _read(note)
        if freeze is None and self._notes.has(key):
            # a frozen tag must not move just because its note is damaged or the disk fails
            raise StoreError(
                f"{repo}:{tag} is frozen, but at what cannot be read: freeze it --at a digest, or unfreeze it"
            )
        return freeze

    def put(self, freeze: Freeze) -> None:
        self._notes.put(
            _key(freeze.repo, freeze.tag),
            {
                "registry": freeze.repo.registry,
                "name": freeze.repo.name,
                "tag": freeze.tag,
                "digest": str(freeze.digest),
                "mediaType": freeze.media_type,
                "size": freeze.size,
                "reason": freeze.reason,
                "since": freeze.since,
            },
        )

    def drop(self, repo: Repo, tag: str) -> bool:
        return self._notes.drop(_key(repo, tag))


def _key(repo: Repo, tag: str) -> str:
    return f"{repo} {tag}"


def _read(note: dict[str, Any]) -> Freeze | None:
    try:
        return Freeze(
            Repo(check_registry(note["registry"]), check_name(note["name"])),
            check_tag(note["tag"]),
            Digest.parse(note["digest"]),
            check_manifest_type(note["mediaType"]),
            int(note["size"]),
            str(note["reason"]),
            float(note["since"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RequestError):
        return None
