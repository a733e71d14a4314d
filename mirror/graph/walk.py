"""Walks over the manifests that repositories have, with one idea of damage.

    record of a repository ──> `read` ──┬─ a result ──────────────────────────> yielded
                                        ├─ None: certainly absent ────────────> left out
                                        └─ StoreError ──> `trouble` ──┬─ raises: the walk ends
                                                                      └─ returns: left out, and that was a decision

Nothing that cannot be read counts as "names nothing" unless the caller says so with `trouble`:

    all_must_be_readable     for what deletes: nothing may be left out
    damaged_may_be_missing   damaged bytes and records are left out: no client can pull them. The rest must be readable
    any_may_be_missing       for lists that people read: whatever cannot be read is left out and logged

Digests come from the names of the records, so that a damaged record does not hide its manifest from a `read` that only
needs the bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from mirror import telemetry
from mirror.errors import BlobDamaged, RecordDamaged, StoreError
from mirror.graph.manifests import StoredManifest, read_stored
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.ports import Blobs, Catalog

T = TypeVar("T")

#: Reads one manifest of a repository; None if it is certainly absent, or not wanted. Raises `StoreError`.
Read = Callable[[Repo, Digest], T | None]
#: Decides what an error of `Read` means: raises to end the walk, returns to leave the manifest out.
Trouble = Callable[[Repo, Digest, StoreError], None]


def all_must_be_readable(_repo: Repo, _digest: Digest, error: StoreError) -> None:
    """Raises every error."""
    raise error


def damaged_may_be_missing(_repo: Repo, _digest: Digest, error: StoreError) -> None:
    """Raises every error but those of damaged bytes and records."""
    if not isinstance(error, (BlobDamaged, RecordDamaged)):
        raise error


def any_may_be_missing(repo: Repo, digest: Digest, error: StoreError) -> None:
    """Logs every error. Not for deciding what is deleted, who may access content, or what a tag answers."""
    telemetry.log.warning("unreadable record left out", what=f"{repo}@{digest}", reason=str(error))


def walk(
    catalog: Catalog, read: Read[T], trouble: Trouble = all_must_be_readable, repos: Iterable[Repo] | None = None
) -> Iterator[tuple[Repo, Digest, T]]:
    """Blocking: yields what `read` returns for each manifest of these repositories (of all, if None), in no order. A
    manifest that several repositories have comes once for each of them. Raises `StoreError` if repositories or their
    manifests cannot be listed, and what `trouble` raises.
    """
    for repo in catalog.repositories() if repos is None else repos:
        for digest in catalog.manifest_digests(repo):
            try:
                result = read(repo, digest)
            except StoreError as error:
                trouble(repo, digest, error)
                continue
            if result is not None:
                yield repo, digest, result


def stored_in(store: Blobs, catalog: Catalog) -> Read[StoredManifest]:
    """Returns a `read` for what a repository may serve: it needs the record and the bytes of each manifest."""
    return lambda repo, digest: read_stored(store, catalog, repo, digest)


def embedded_blob(store: Blobs, catalog: Catalog, repo: Repo, digest: Digest) -> bytes | None:
    """Blocking: returns the bytes of a blob that a manifest of the repository embeds (`data`), or None. Reads two files
    for each manifest of the repository, and skips damaged manifests. Raises `StoreError`.
    """
    manifests = walk(catalog, stored_in(store, catalog), damaged_may_be_missing, [repo])
    blobs = (blob for _, _, stored in manifests for blob in stored.manifest.blobs)
    return next((blob.data for blob in blobs if blob.digest == digest and blob.data is not None), None)
