"""Imports into hosted repositories: the same order as a push, and the same way of the bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from mirror.errors import BlobUnknown, StoreError
from mirror.hosting.links import Links
from mirror.hosting.parts import HostedParts
from mirror.hosting.pushing import ManifestPut, Pushing
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repo
from mirror.policy.hosted.push_checks import HostedRules
from mirror.ports import Body, Uploads

#: An imported index may name platforms that the other site never pulled.
_SPARSE = HostedRules(sparse_indexes=True)
#: Whose the upload sessions of imports are: no client's.
_OWNER: Final = "import"


class HostedImports:
    """Takes images into hosted repositories. All calls block, and raise `StoreError`."""

    def __init__(
        self,
        parts: HostedParts,
        links: Links,
        pushing: Pushing,
        uploads: Uploads,
        rules: Mapping[str, HostedRules],
        caller: str,
    ) -> None:
        """`rules` are those of each hosted registry. `caller` is whom records and messages name."""
        self._parts = parts
        self._links = links
        self._pushing = pushing
        self._uploads = uploads
        self._rules = rules
        self._caller = caller

    def __repr__(self) -> str:
        return f"<HostedImports {', '.join(self._rules)}>"

    def is_hosted(self, repo: Repo) -> bool:
        """True if the repository is hosted here."""
        return repo.registry in self._rules

    def check_name(self, repo: Repo) -> None:
        """Raises `Denied` if the registry does not allow a repository of this name."""
        self._rules[repo.registry].check_name(repo)

    def size(self, digest: Digest) -> int | None:
        """The size of a blob in bytes, hosted or cached; None if it is certainly absent."""
        try:
            return self._parts.contents.stat(digest).size
        except BlobUnknown:
            return None

    def receive(self, digest: Digest, body: Body) -> None:
        """Make a hosted blob of a body, like that of an upload; no repository has a link to it yet. Durable on return.
        Raises what the body raises, `BlobDamaged` if the bytes do not match, `StoreFull`.
        """
        upload = self._uploads.open(self._uploads.begin(_OWNER))
        if upload is None:
            raise StoreError("the upload session of an import has vanished")
        try:
            upload.fill(body, lambda _: None)
            upload.publish(digest)
        except BaseException:
            with suppress(StoreError):
                upload.discard()
            raise
        finally:
            upload.close()

    def put(self, digest: Digest, content: bytes) -> None:
        """Like `receive`, for small content. Durable once an image is taken in."""
        self._parts.blobs.put(digest, content)

    def take(
        self, repo: Repo, blobs: Sequence[Digest], manifests: Sequence[Manifest], tag: str | None
    ) -> Digest | None:
        """Links blobs that are here, and stores manifests, children first; the tag points to the last. Returns what the
        tag pointed to before, if that was something else. All is durable on return.

        Raises `QuotaExceeded`, `TagImmutable`, `Denied` if the tag is frozen, `ManifestBlobUnknown` if a blob is
        missing, `ManifestInvalid`.
        """
        if tag:
            # before anything is written
            self._pushing.check_tags(repo, [tag], manifests[-1].digest, may_overwrite=True)
        for digest in blobs:
            try:
                self._links.make(repo, digest, self._parts.contents.stat(digest).size)
            except BlobUnknown:
                # the manifest that needs it is refused below, with a message that names all that is missing
                continue
        was = self._parts.catalog.get_tag(repo, tag) if tag else None
        for manifest in manifests:
            tags = (tag,) if tag and manifest is manifests[-1] else ()
            put = ManifestPut(manifest, manifest.digest, tags)
            self._pushing.put(repo, _SPARSE, put, self._caller, may_overwrite=True)
        return was.digest if was and was.digest != manifests[-1].digest else None
