"""Images of hosted repositories, written to a store as pushes would have left them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from mirror.errors import BlobUnknown
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, Descriptor
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import BlobLink, LinkState
from mirror.ports import BlobStore
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_catalog, local_repository_records
from tests.support.here import LAYER, Here

#: The repository that images are put into unless another one is named.
CORP = Repo("corp", "team/app")


class HostedHere(Here):
    """Puts content under hosted names, with links. `repo` is the repository of the blobs that come next."""

    def __init__(self, root: Path) -> None:
        layout = Layout(root)
        # makes the folders of a new store
        LocalStore(layout)
        self.names = HostedNames(layout)
        self.records = local_repository_records(layout)
        self.repo = CORP
        # of a store, only `put` is used
        super().__init__(cast(BlobStore, self.names), local_catalog(layout))

    def blob(self, content: bytes, media_type: str = LAYER, *, here: bool = True) -> dict[str, Any]:
        """Its descriptor; the repository has a link to it."""
        digest = Digest.of(content)
        if here:
            self.records.put_link(self.repo, BlobLink(digest, len(content), LinkState.LINKED, 1000.0))
        return super().blob(content, media_type, here=here)

    def manifest(
        self, body: Mapping[str, Any], kind: str = OCI_MANIFEST, *, repo: Repo = CORP, tag: str | None = None
    ) -> Descriptor:
        """Exactly this body, in the repository of the blobs."""
        return super().manifest(body, kind, repo=self.repo, tag=tag)

    def is_here(self, content: bytes) -> bool:
        """True if the bytes are under their hosted name."""
        try:
            self.names.hosted(Digest.of(content))
        except BlobUnknown:
            return False
        return True
