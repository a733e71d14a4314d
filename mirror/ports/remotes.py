"""Remote registries."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Reference
from mirror.ports.streams import Body


@dataclass(frozen=True, slots=True)
class TagBatch:
    """Some tags of a list, and whether more follow."""

    tags: tuple[str, ...]
    more: bool


class Upstream(Protocol):
    """One remote registry. `repo` is always the repository's name within that registry.

    Every call may raise `UpstreamUnavailable`, `UpstreamTimeout`, `UpstreamDenied`, `UpstreamThrottled`,
    `UpstreamNotFound` and `UpstreamInvalid`. Calls that are worth retrying have been retried before.
    """

    @property
    def name(self) -> str:
        """The registry's name as clients write it: `docker.io`."""

    @property
    def patience(self) -> float:
        """The factor, at least 1, by which a tag's answer is trusted longer because upstream's pull quota runs low."""

    async def resolve(self, repo: str, reference: Reference) -> Descriptor:
        """The descriptor that a reference points to, by HEAD; by GET only if upstream's answer to HEAD is unusable."""

    async def manifest(self, repo: str, reference: Reference) -> Manifest:
        """The manifest, by GET. Its digest is computed from its bytes (from the payload if it is a signed manifest).

        If `reference` is a digest, the manifest has that digest.
        """

    def blob(self, repo: str, digest: Digest, start: int = 0) -> AbstractAsyncContextManager[Body]:
        """A blob from offset `start` on; `body.start` may be lower. Entered once upstream's headers have arrived."""

    async def blob_size(self, repo: str, digest: Digest) -> int | None:
        """The size of a blob in bytes; None if the repository has it but upstream does not state its size.

        Raises `UpstreamNotFound` if the repository does not have the blob. Never uses HEAD.
        """

    def tags(self, repo: str, after: str = "") -> AsyncGenerator[TagBatch, None]:
        """The tags in upstream's own order, in at least one batch; only those after `after`, if upstream supports that.

        A page is requested when the caller takes its batch. A caller that stops before the end closes the generator
        (`aclose`). Strings that are not valid tags are left out, and a tag may come twice. Raises `UpstreamError`, and
        `StoreError` if a large page cannot be kept on disk while it is read.
        """

    async def referrers(self, repo: str, digest: Digest) -> list[Descriptor]:
        """Manifests whose subject is `digest`, by the API or by the fallback tag. Empty if there are none."""

    async def aclose(self) -> None:
        """Close all connections. Repeatable."""
