"""Brings images into a hosted repository whose content is in the store already: imports, and bundles.

    blobs in the store ──> links ──> manifest ──> tag ──> settle(): durable, and every process sees it

The order is that of a push (`placing.py`). The caller decides about rights: an import brings what its source has.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

from mirror.errors import BlobUnknown, RecordChanged
from mirror.hosting.deleting import Deleting
from mirror.hosting.links import Links
from mirror.hosting.parts import HostedParts
from mirror.hosting.placing import Placing
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Repo
from mirror.policy.records import ManifestRecord, TagRecord

#: The caller in whose name content is linked; nobody reserves anything for it.
_IMPORT = "import"


class Adopting:
    """Images that are brought into hosted repositories. All calls block and raise `StoreError`; nothing is durable
    before `settle`.
    """

    def __init__(self, parts: HostedParts, links: Links, placing: Placing, deleting: Deleting) -> None:
        self._parts = parts
        self._links = links
        self._placing = placing
        self._deleting = deleting

    def __repr__(self) -> str:
        return "<Adopting>"

    def manifest(self, repo: Repo, manifest: Manifest, blobs: Iterable[Digest]) -> None:
        """Gives the repository a manifest. `blobs` are those that come with it: they are linked if the store has them.
        Their bytes have been checked against their digests. The manifests of an index may be missing.

        Raises `ManifestBlobUnknown` if the repository does not have all blobs that the manifest needs then,
        `ManifestInvalid`, `QuotaExceeded`.
        """
        for digest in blobs:
            with suppress(BlobUnknown):
                self._links.make(repo, digest, self._parts.contents.stat(digest).size)
        deleted = None
        if self._parts.catalog.get_manifest(repo, manifest.digest) is None:
            deleted = self._deleting.drop_stale_tags(repo, manifest.digest)
        size = len(manifest.content)
        record = ManifestRecord(manifest.digest, manifest.media_type, size, self._parts.now())
        self._placing.put_manifest(repo, manifest, record, _IMPORT)
        if deleted is not None:
            with suppress(RecordChanged):
                self._parts.records.drop_deleted_manifest(repo, manifest.digest, expect=deleted.version)

    def tag(self, repo: Repo, tag: str, manifest: Descriptor) -> None:
        """Lets a tag point to a manifest that the repository has. Raises `Denied` if the tag is frozen, and
        `ManifestUnknown` if the manifest was deleted meanwhile.
        """
        fresh = TagRecord(tag, manifest.digest, manifest.media_type, manifest.size, self._parts.now())
        version = self._placing.put_tag(repo, fresh, may_overwrite=True)
        self._placing.check_still_there(repo, manifest.digest, {tag: version})

    def settle(self, repo: Repo) -> None:
        """Makes all that was brought durable, and lets every process see it."""
        self._parts.settle(repo)
