"""A hosted repository of this site that takes copies from another repository of it: nothing but links are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mirror.hosting.copying import Copying
from mirror.oci.attachments import image_of_tag
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Repo
from mirror.replication.target import Given


@dataclass(frozen=True, slots=True)
class SiteTarget:
    """`source` is where the blobs are. `caller` is whom records name. Before each write, `check` raises `Denied` if the
    caller may not push here or not pull there, and `may_overwrite` says whether tags may be moved.
    """

    copying: Copying
    source: Repo
    repo: Repo
    caller: str
    check: Callable[[], None]
    may_overwrite: Callable[[], bool]

    def __repr__(self) -> str:
        return f"<SiteTarget {self.repo} from {self.source}>"

    async def digest_of(self, tag: str) -> Digest | None:
        """See `Target`."""
        return await self.copying.digest_of(self.repo, tag)

    async def has_manifest(self, digest: Digest) -> bool:
        """See `Target`."""
        return await self.copying.has_manifest(self.repo, digest)

    async def check_tag(self, tag: str, now: Digest | None, digest: Digest) -> None:
        """See `Target`."""
        self.check()
        self.copying.check_writable(self.repo)
        await self.copying.check_tag(self.repo, tag, digest, may_overwrite=self.may_overwrite())

    async def give_blob(self, blob: Descriptor, progress: Callable[[int], None]) -> Given:
        """See `Target`. Raises `QuotaExceeded`."""
        self.check()
        self.copying.check_writable(self.repo)
        return Given.LINKED if await self.copying.link(self.source, self.repo, blob) else Given.HERE

    async def put(self, manifest: Manifest, tag: str | None = None) -> None:
        """See `Target`."""
        self.check()
        tags = () if tag is None else (tag,)
        await self.copying.put(self.repo, manifest, tags, self.caller, may_overwrite=self.may_overwrite())

    async def attach(self, tag: str, manifest: Manifest) -> None:
        """See `Target`. A list of referrers under the tag `sha256-…` is copied only where there is none: this mirror
        has the referrers API, so what the list names is found without it.
        """
        now = await self.copying.digest_of(self.repo, tag)
        if now == manifest.digest or (now is not None and image_of_tag(tag) is None):
            return
        await self.put(manifest, tag)
