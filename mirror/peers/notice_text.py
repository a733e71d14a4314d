"""How notices between replicas are written: as JSON of at most 64 KiB."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from mirror.errors import DigestInvalid, RequestError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, check_name, check_registry, check_tag
from mirror.ports.peers import Notice, Purge

#: Bytes of a notice.
LARGEST: Final = 64 << 10
_MOST_REPOSITORIES: Final = 100
_MOST_PURGES: Final = 20


def write_notice(notice: Notice) -> bytes:
    """The JSON of a notice."""
    content = {
        "repositories": [_name(repo) for repo in notice.repositories],
        "kinds": list(notice.kinds),
        "purges": [
            {"id": each.id, "repository": _name(each.repo), "tags": each.tags, "digests": [*map(str, each.digests)]}
            for each in notice.purges
        ],
    }
    return json.dumps({name: value for name, value in content.items() if value}).encode()


def read_notice(content: bytes) -> Notice:
    """The notice that was written. Names of fields that a later version may add are passed over. Raises
    `RequestError` if it is none.
    """
    try:
        found = json.loads(content)
        if not isinstance(found, dict):
            raise TypeError
        purges = tuple(_purge(each) for each in found.get("purges", ()))
        repositories = tuple(_repo(name) for name in found.get("repositories", ()))
        kinds = tuple(check_name(kind) for kind in found.get("kinds", ()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, DigestInvalid) as error:
        raise RequestError("not a notice of a replica") from error
    return Notice(repositories, kinds, purges)


def parts_of(notice: Notice) -> Iterator[Notice]:
    """The notice in parts, each of which is small enough to be sent."""
    if notice.kinds:
        yield Notice(kinds=notice.kinds)
    for start in range(0, len(notice.repositories), _MOST_REPOSITORIES):
        yield Notice(notice.repositories[start : start + _MOST_REPOSITORIES])
    for start in range(0, len(notice.purges), _MOST_PURGES):
        yield Notice(purges=notice.purges[start : start + _MOST_PURGES])


def _name(repo: Repo) -> list[str]:
    return [repo.registry, repo.name]


def _repo(written: Any) -> Repo:
    registry, name = written
    return Repo(check_registry(registry), check_name(name))


def _purge(written: Any) -> Purge:
    identifier = written["id"]
    if not isinstance(identifier, str) or not 0 < len(identifier) <= 64 or not identifier.isalnum():
        raise ValueError("not an id")
    tags = tuple(check_tag(tag) for tag in written["tags"])
    return Purge(
        identifier, _repo(written["repository"]), tags, tuple(Digest.parse(text) for text in written["digests"])
    )
