"""A repository with rules about its content before it: what they refuse is 403 with the reason.

    by tag      lists, `require_digest` ──> the manifest ──> lists by its digest, size, signature ──> given
    by digest   lists ───────────────────────────^
    blob        lists by repository and digest

A manifest is given if it is signed itself, or if an index of this repository that is signed names it: cosign signs what
is pulled, and clients go on from an index by the digests in it. Signatures and attestations by the same keys are given
as well, so that clients can verify them: each of their layers must be a document about the image that they belong to
(by `subject`, or by the tag that cosign gives them), and nothing that a client could unpack. That a digest is signed
never changes, so it is remembered; that it is not may change any moment, so that is asked again after a while.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

from mirror.aio.latest import put_latest
from mirror.aio.singleflight import SingleFlight
from mirror.caller import caller
from mirror.errors import BlobDamaged, BlobUnknown, Denied, NotKnown, UpstreamInvalid
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Reference, Repo
from mirror.oci.request import Kind
from mirror.policy.content import ContentLists, ContentRule, check_size
from mirror.repository.content import BlobContent, ManifestAnswer
from mirror.repository.protocol import PlainRepository
from mirror.repository.shared import BlobStat, Listing
from mirror.trust.cosign import (
    LARGEST,
    PublicKey,
    Statement,
    attachment_tags,
    image_of_tag,
    is_only_document,
    read_statement,
    signature_layers,
    signature_tag,
    signed_layers,
)

__all__ = ["GuardedRepository", "Signatures"]

_MOST: Final = 100_000
#: The algorithm of digests in lists.
_LISTED: Final = "sha256"
#: Seconds that «not signed» stands.
_UNSIGNED_FOR: Final = 30.0
#: Referrers and signatures of one image that are looked at: anybody who may push there can make more.
_MOST_REFERRERS: Final = 50
_MOST_LAYERS: Final = 50
#: Layers of all of them together: each may have to be fetched.
_MOST_READ: Final = 100
#: Images that one attestation is looked up under: it may be about many.
_MOST_IMAGES: Final = 10


class GuardedRepository:
    """What a plain repository offers, less what rules refuse. Cheap to make."""

    def __init__(
        self,
        inner: PlainRepository,
        lists: ContentLists,
        rule: ContentRule,
        keys: Sequence[PublicKey],
        signatures: Signatures,
    ) -> None:
        """`keys` are those of `rule.signed_by`."""
        self.repo = inner.repo
        self._inner = inner
        self._lists = lists
        self._rule = rule
        self._keys = keys
        self._signatures = signatures

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """Raises `Denied`, and what `PlainRepository.manifest` raises."""
        tag = self._check_reference(reference)
        answer = await self._inner.manifest(reference)
        await self._check_answer(answer, tag)
        return answer

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """Raises like `manifest`: what GET would refuse, HEAD refuses too, as far as can be told without the bytes."""
        tag = self._check_reference(reference)
        answer = await self._inner.resolve(reference)
        await self._check_answer(answer, tag)
        return answer

    def _check_reference(self, reference: Reference) -> str | None:
        self._rule.check_reference(self.repo, reference)
        tag, digest = (None, reference) if isinstance(reference, Digest) else (reference, None)
        self._lists.check(self.repo, tag, digest)
        return tag

    async def _check_answer(self, answer: ManifestAnswer, tag: str | None) -> None:
        self._lists.check(self.repo, tag, answer.digest)
        manifest = None
        if answer.content is not None:
            manifest = answer.read()
            if answer.digest.algorithm != _LISTED:
                # the same bytes under another name
                self._lists.check_denied(self.repo, tag, Digest.of(answer.content, _LISTED))
            check_size(self._rule, self.repo, manifest)
        if self._rule.signed_by:
            await self._check_signature(answer.digest, manifest, tag)

    async def _check_signature(self, digest: Digest, manifest: Manifest | None, tag: str | None) -> None:
        names = self._rule.signed_by
        if not await self._is_signed(digest):
            manifest = manifest or (await self._inner.manifest(digest)).read()
            if not await _is_signature(self._inner, manifest, tag, self._keys):
                raise Denied(f"{self.repo}@{digest} has no signature by {' or '.join(names)}")
            self._signatures.remember(self.repo, digest, names)
        elif manifest is not None:
            self._signatures.remember_children(self.repo, manifest, names)

    async def _is_signed(self, digest: Digest) -> bool:
        names = self._rule.signed_by
        if await self._signatures.is_signed(self._inner, digest, names, self._keys):
            return True
        for index in await self._inner.indexes_naming(digest):
            if await self._signatures.is_signed(self._inner, index, names, self._keys):
                self._signatures.remember(self.repo, digest, names)
                return True
        return False

    async def blob(self, digest: Digest) -> BlobContent:
        """Raises `Denied`, and what `PlainRepository.blob` raises."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.blob(digest)

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """Raises like `blob`."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.stat_blob(digest)

    async def fetch(self, digest: Digest, progress: Callable[[int, int | None], None]) -> bool:
        """Raises like `blob`, and `StoreError`."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.fetch(digest, progress)

    async def fetch_manifest(self, reference: Reference) -> ManifestAnswer:
        """Raises like `manifest`, and `StoreError`."""
        tag = self._check_reference(reference)
        answer = await self._inner.fetch_manifest(reference)
        await self._check_answer(answer, tag)
        return answer

    async def read(self, digest: Digest, limit: int) -> bytes:
        """Raises like `fetch`, and `BlobDamaged` above `limit` bytes."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.read(digest, limit)

    def fetch_ahead(self, answer: ManifestAnswer) -> None:
        """As `ProxiedRepository.fetch_ahead`; what may not be pulled is not fetched."""
        self._inner.fetch_ahead(answer, self)

    async def settled(self) -> None:
        """Raises `StoreError`."""
        await self._inner.settled()

    def holds(self, digest: Digest) -> bool:
        """As `ProxiedRepository.holds`."""
        return self._inner.holds(digest)

    def awaits(self, digest: Digest) -> bool:
        """As `ProxiedRepository.awaits`."""
        return self._inner.awaits(digest)

    async def prove(self, kind: Kind, reference: Reference | None) -> None:
        """Raises what `ProxiedRepository.prove` raises: whether upstream gives it is another question than ours."""
        await self._inner.prove(kind, reference)

    async def tags(self, last: str, count: int) -> Listing:
        """Raises what `PlainRepository.tags` raises. A list says nothing that would have to be denied."""
        return await self._inner.tags(last, count)

    async def referrers(self, digest: Digest) -> Listing:
        """Raises `Denied`, and what `PlainRepository.referrers` raises."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.referrers(digest)


class Signatures:
    """Which digests of which repositories are signed, as this process knows it. `now` is monotonic."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._signed: OrderedDict[tuple[Repo, Digest, tuple[str, ...]], None] = OrderedDict()
        #: Signed indexes whose children were remembered as signed; a child that was forgotten is found by its index.
        self._spread: OrderedDict[tuple[Repo, Digest, tuple[str, ...]], None] = OrderedDict()
        #: By whom it was looked for as well: what they may not see is not missing.
        self._unsigned: OrderedDict[tuple[Repo, Digest, tuple[str, ...], str], float] = OrderedDict()
        self._once = SingleFlight()

    async def is_signed(
        self, repository: PlainRepository, digest: Digest, names: tuple[str, ...], keys: Sequence[PublicKey]
    ) -> bool:
        """Raises `UpstreamError` where it cannot be told now. `names` stand for the keys."""
        key = repository.repo, digest, names
        if key in self._signed:
            self._signed.move_to_end(key)
            return True
        looked = *key, caller()
        if self._now() < self._unsigned.get(looked, 0.0):
            return False
        found = await self._once.run(looked, lambda: _find_signature(repository, digest, keys))
        if found:
            self.remember(repository.repo, digest, names)
        else:
            put_latest(self._unsigned, looked, self._now() + _UNSIGNED_FOR, _MOST)
        return found

    def remember(self, repo: Repo, digest: Digest, names: tuple[str, ...]) -> None:
        """It is signed, or named by something that is."""
        put_latest(self._signed, (repo, digest, names), None, _MOST)

    def remember_children(self, repo: Repo, index: Manifest, names: tuple[str, ...]) -> None:
        """What a signed index names is as good as signed. Done once for each index: it may name thousands."""
        key = repo, index.digest, names
        if index.manifests and key not in self._spread:
            put_latest(self._spread, key, None, _MOST)
            for child in index.manifests:
                self.remember(repo, child.digest, names)

    async def aclose(self) -> None:
        """Repeatable."""
        await self._once.aclose()


async def _find_signature(repository: PlainRepository, digest: Digest, keys: Sequence[PublicKey]) -> bool:
    """By cosign's tag first, which most registries have, then among the referrers."""
    references: list[Reference] = [signature_tag(digest)]
    left = _MOST_READ
    for looked in range(2):
        for reference in references:
            try:
                layers = signed_layers((await repository.manifest(reference)).read())[: min(left, _MOST_LAYERS)]
            except (NotKnown, ValueError, UpstreamInvalid):
                continue
            left -= len(layers)
            if await _holds_signature(repository, layers, digest, keys):
                return True
        if looked == 0:
            listing = await repository.referrers(digest)
            references = [one.digest for one in listing.items[:_MOST_REFERRERS]]
    return False


async def _is_signature(
    repository: PlainRepository, manifest: Manifest, tag: str | None, keys: Sequence[PublicKey]
) -> bool:
    """Whether it is nothing but signatures and attestations of the image it belongs to, one of them by these keys."""
    layers = signature_layers(manifest)[: _MOST_LAYERS + 1]
    if len(layers) > _MOST_LAYERS:
        return False
    statements: list[Statement] = []
    ours: list[Statement] = []
    for layer in layers:
        try:
            content = await repository.read(layer.digest, LARGEST)
        except (BlobUnknown, BlobDamaged, UpstreamInvalid):
            return False
        statement, is_by_us = await asyncio.to_thread(_judge, layer, content, keys)
        if statement is None:
            return False
        statements.append(statement)
        if is_by_us:
            ours.append(statement)
    image = await _image_of(repository, manifest, tag, ours) if ours else None
    return image is not None and all(image in statement.images for statement in statements)


async def _image_of(
    repository: PlainRepository, manifest: Manifest, tag: str | None, signed: Iterable[Statement]
) -> Digest | None:
    """The image that a manifest of signatures belongs to; None: to none.

    Clients ask by digest once they know what a tag points to. Then it belongs to an image that one of the statements
    that our keys have `signed` names, if a tag for signatures of that image points to it.
    """
    if manifest.subject is not None:
        return manifest.subject.digest
    if tag is not None:
        return image_of_tag(tag)
    named = sorted({image for statement in signed for image in statement.images})
    for image in named[:_MOST_IMAGES]:
        for attached in attachment_tags(image):
            with suppress(NotKnown):
                if (await repository.resolve(attached)).digest == manifest.digest:
                    return image
    return None


async def _holds_signature(
    repository: PlainRepository, layers: Iterable[Descriptor], digest: Digest, keys: Sequence[PublicKey]
) -> bool:
    """Skips signatures that are missing or malformed: otherwise anyone who can attach one could block the image."""
    for layer in layers:
        try:
            content = await repository.read(layer.digest, LARGEST)
        except (BlobUnknown, BlobDamaged, UpstreamInvalid):
            continue
        if await asyncio.to_thread(_is_signed_by, layer, content, digest, keys):
            return True
    return False


# Documents of a megabyte, with many signatures, are work: that is done in threads.


def _judge(layer: Descriptor, content: bytes, keys: Sequence[PublicKey]) -> tuple[Statement | None, bool]:
    """The statement of a layer that is nothing else (None: it is none), and whether one of the keys has made it."""
    statement = read_statement(layer, content) if is_only_document(layer, content) else None
    return statement, statement is not None and statement.is_by(keys)


def _is_signed_by(layer: Descriptor, content: bytes, digest: Digest, keys: Sequence[PublicKey]) -> bool:
    statement = read_statement(layer, content)
    return statement is not None and digest in statement.images and statement.is_by(keys)
