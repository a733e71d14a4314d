"""The air gap: an upstream that nobody asks."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import NoReturn

from mirror.errors import UpstreamUnavailable
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Reference
from mirror.ports import Body

__all__ = ["SealedUpstream"]


class SealedUpstream:
    """Always unavailable, at once, so that everything is answered from what is here."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        """As clients say it."""
        return self._name

    @property
    def patience(self) -> float:
        """There is nothing to be spared."""
        return 1.0

    async def resolve(self, repo: str, reference: Reference) -> Descriptor:
        """Raises `UpstreamUnavailable`."""
        self._refuse()

    async def manifest(self, repo: str, reference: Reference) -> Manifest:
        """Raises `UpstreamUnavailable`."""
        self._refuse()

    def blob(self, repo: str, digest: Digest, start: int = 0) -> AbstractAsyncContextManager[Body]:
        """Raises `UpstreamUnavailable`."""
        self._refuse()

    async def blob_size(self, repo: str, digest: Digest) -> int | None:
        """Raises `UpstreamUnavailable`."""
        self._refuse()

    async def tags(self, repo: str) -> list[str]:
        """Raises `UpstreamUnavailable`."""
        self._refuse()

    async def referrers(self, repo: str, digest: Digest) -> list[Descriptor]:
        """Raises `UpstreamUnavailable`."""
        self._refuse()

    async def aclose(self) -> None:
        """Nothing to let go of."""

    def _refuse(self) -> NoReturn:
        raise UpstreamUnavailable(f"{self._name} is sealed off", upstream=self._name)
