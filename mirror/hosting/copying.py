"""Copies content from a repository of this site into a hosted one. No byte of a blob moves.

    blob      the source has it: its link, or its grant and the bytes in the cache ──> a link of the destination
    manifest  the same checks and the same order as for a push (`placing.py`)

A blob gets its link like by a mount that names its source: if the source has no right to it, neither has the copy. The
link comes before the manifest that names the blob; if the copy stops in between, the collector drops the link later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import TypeVar

from mirror.aio.threads import run_uninterrupted
from mirror.errors import BlobUnknown, ManifestInvalid
from mirror.graph.manifests import has_blob
from mirror.hosting.links import Links
from mirror.hosting.parts import HostedParts
from mirror.hosting.placing import Placing
from mirror.hosting.pushing import ManifestPut, Pushing
from mirror.hosting.rights import Sources
from mirror.oci.digest import Digest
from mirror.oci.manifest import SCHEMA_1, Descriptor, Manifest
from mirror.oci.reference import Repo
from mirror.policy.hosted.push_checks import HostedRules
from mirror.policy.hosted_records import LinkState

T = TypeVar("T")


class Copying:
    """Copies into all hosted repositories. Every call raises `StoreError` if something cannot be read."""

    def __init__(
        self,
        parts: HostedParts,
        links: Links,
        placing: Placing,
        pushing: Pushing,
        sources: Sources,
        rules: Mapping[str, HostedRules],
        executor: Executor,
    ) -> None:
        """`rules` are those of each hosted registry. `executor` runs the threads that write."""
        self._parts = parts
        self._links = links
        self._placing = placing
        self._pushing = pushing
        self._sources = sources
        self._rules = rules
        self._executor = executor

    def __repr__(self) -> str:
        return f"<Copying into {', '.join(self._rules)}>"

    async def _run(self, work: Callable[[], T]) -> T:
        return await run_uninterrupted(self._executor, work)

    def check_writable(self, repo: Repo) -> None:
        """Raises `Denied` if the registry is read-only, or does not allow a repository of this name."""
        self._rules[repo.registry].check_writable(repo)

    async def digest_of(self, repo: Repo, tag: str) -> Digest | None:
        """What a tag points to; None if it is absent."""
        return await self._run(lambda: self._digest_of(repo, tag))

    def _digest_of(self, repo: Repo, tag: str) -> Digest | None:
        record = self._parts.catalog.get_tag(repo, tag)
        if record is None or self._parts.catalog.get_manifest(repo, record.digest) is None:
            return None
        return record.digest

    async def has_manifest(self, repo: Repo, digest: Digest) -> bool:
        """True if the repository has the manifest, with its bytes."""
        return await self._run(
            lambda: (
                self._parts.catalog.get_manifest(repo, digest) is not None and has_blob(self._parts.contents, digest)
            )
        )

    async def check_tag(self, repo: Repo, tag: str, digest: Digest, *, may_overwrite: bool) -> None:
        """Returns if the caller may let the tag point to this manifest. Raises `Denied`."""
        await self._run(lambda: self._placing.check_tag(repo, tag, digest, may_overwrite=may_overwrite))

    async def link(self, source: Repo, repo: Repo, blob: Descriptor) -> bool:
        """Links a blob that the source has. False if the repository has a link to it already. Raises `BlobUnknown` if
        the source has no such blob, `QuotaExceeded`.
        """
        if await self._run(lambda: self._has_link(repo, blob.digest)):
            return False
        size = await self._sources.size(source, blob.digest)
        if size is None:
            raise BlobUnknown(f"{source} has no blob {blob.digest}")
        await self._run(lambda: self._links.make(repo, blob.digest, size))
        return True

    def _has_link(self, repo: Repo, digest: Digest) -> bool:
        link = self._links.find(repo, digest)
        if link is None or link.state is not LinkState.LINKED or link.queued_at is not None:
            return False
        try:
            return self._parts.contents.stat(digest).size == link.size
        except BlobUnknown:
            return False

    async def put(
        self, repo: Repo, manifest: Manifest, tags: tuple[str, ...], caller: str, *, may_overwrite: bool
    ) -> tuple[str, ...]:
        """Stores a manifest whose blobs are linked, and lets tags point to it; all is durable on return. Returns the
        tags that were moved from another manifest.

        Raises `Denied`, `ManifestBlobUnknown`, `ManifestInvalid`, `QuotaExceeded`, like a push.
        """
        self.check_writable(repo)
        if manifest.media_type in SCHEMA_1:
            raise ManifestInvalid(f"{manifest.digest} is of schema 1, which hosted registries do not accept")
        put = ManifestPut(manifest, manifest.digest, tags)
        rules = self._rules[repo.registry]
        return await self._run(lambda: self._pushing.put(repo, rules, put, caller, may_overwrite=may_overwrite))
