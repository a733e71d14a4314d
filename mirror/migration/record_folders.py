"""Which records a migration copies, and in which order.

Within a repository, what refers to something is read before it: tags, then manifests, then links. So a reader that
races with pushes finds what it needs. It is written the other way round, and deleted in the order of reading: at every
moment, each tag in the target has its manifest, and each manifest its blobs.

    read       _tags, _history ──> _manifests, _deleted, _deleted_tags ──> _referrers, _blobs
    written    bytes ──> _blobs, _referrers ──> _manifests, _deleted, _deleted_tags ──> _tags, _history
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from mirror.errors import DigestInvalid
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, DeletedManifest, LinkState
from mirror.policy.records import ManifestRecord
from mirror.ports import MigratedBytes, RecordTree

#: The folders of a repository in the order of reading, by rank: lower ranks refer to higher ones.
FOLDERS: Final = (
    ("_tags", 0),
    ("_history", 0),
    ("_manifests", 1),
    ("_deleted", 1),
    ("_deleted_tags", 1),
    ("_referrers", 2),
    ("_blobs", 2),
)
RANKS: Final = 3
#: Folders that hosted repositories alone have.
HOSTED_ONLY: Final = ("_blobs", "_deleted", "_deleted_tags")
#: The folders that make a name one that is taken.
PUBLISHED: Final = ("_manifests", "_tags", "_referrers", "_deleted", "_deleted_tags")
#: Listings of one folder that may find new names before the pass goes on without the rest.
_LISTINGS: Final = 100


@dataclass(frozen=True, slots=True)
class MigrationSide:
    """One of the two stores. `name` is for messages. `kind_folder` gives the folder of the JSON records of a kind."""

    name: str
    tree: RecordTree
    bytes: MigratedBytes
    kind_folder: Callable[[str], str]


def repository_path(repo: Repo) -> str:
    """The folder of a repository."""
    return f"repositories/{repo.registry}/{repo.name}"


def folders_of(tree: RecordTree, repo: Repo) -> Iterator[tuple[str, int]]:
    """The folders of a repository's records with their ranks, in the order of reading. Raises `StoreError`."""
    path = repository_path(repo)
    for folder, rank in FOLDERS:
        if folder == "_referrers":
            for subject in tree.folders(f"{path}/{folder}"):
                yield f"{path}/{folder}/{subject}", rank
        else:
            yield f"{path}/{folder}", rank


def names_until_still(tree: RecordTree, folder: str) -> Iterator[str]:
    """The names in a folder, which is listed until no new ones come: an index could be listed without a manifest that
    was pushed just before it. Raises `StoreError`.
    """
    seen: set[str] = set()
    for _ in range(_LISTINGS):
        new = sorted(name for name in tree.names(folder) if name not in seen)
        if not new:
            return
        seen.update(new)
        yield from new


@dataclass(frozen=True, slots=True)
class NamedBytes:
    """The bytes that a record needs. If not `required`, the record may be there without them: a reservation."""

    digest: Digest
    required: bool = True


def named_bytes(key: str, content: bytes) -> NamedBytes | None:
    """What a record of a repository says about bytes; None if it has none, or cannot be parsed."""
    folder, _, name = key.rpartition("/")
    kind = folder.rpartition("/")[2]
    if kind not in ("_blobs", "_manifests", "_deleted"):
        return None
    algorithm, _, encoded = name.partition("-")
    try:
        digest = Digest.parse(f"{algorithm}:{encoded}")
    except DigestInvalid:
        return None
    if kind == "_blobs":
        link = BlobLink.from_json(digest, content)
        return NamedBytes(digest, required=link is None or link.state is LinkState.LINKED)
    parsed = (ManifestRecord if kind == "_manifests" else DeletedManifest).from_json(digest, content)
    return None if parsed is None else NamedBytes(digest)
