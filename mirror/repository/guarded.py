"""A repository that is guarded by rules about its content. Clients get 403 with the reason for refused content.

    by tag      lists, `require_digest` ──> the manifest ──> lists by its digest, size, signature ──> given
    by digest   lists ───────────────────────────^
    blob        lists by repository and digest

A manifest is given if it is signed itself, or if a signed index of this repository names it: cosign signs the index
that is pulled, and clients then pull the digests in it. Signatures and attestations by the same keys are given as well,
so that clients can verify them. Each of their layers must be a document about the image that they belong to (by
`subject`, or by the tag that cosign gives them), and nothing that a client could unpack. A signed digest stays signed,
so that is remembered for good. An unsigned one may be signed at any moment, so it is checked again after a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Final, Generic, Protocol, TypeVar

from mirror.aio.caches import LruCache, TtlCache
from mirror.aio.singleflight import SingleFlight
from mirror.caller import caller_mark
from mirror.errors import BlobDamaged, BlobUnknown, Denied, NotFound, UpstreamInvalid
from mirror.fills.read_ahead import Fetching
from mirror.oci.attachments import attachment_tags, image_of_tag, signature_tag
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Reference, Repo
from mirror.oci.request import Kind
from mirror.policy.content_rules import ContentLists, ContentRule, check_size
from mirror.ports import BlobObject
from mirror.repository.answers import BlobContent, BlobStat, Listing, ManifestAnswer, PartialContent
from mirror.repository.hosted import HostedRepository
from mirror.repository.protocol import GivesParts, InBucket, Pusher, Readable, all_referrers
from mirror.repository.proxied import ProxiedRepository
from mirror.repository.standing.lasting import Standing, blob_standing, manifest_standing
from mirror.trust.cosign import (
    LARGEST,
    PublicKey,
    Statement,
    is_only_document,
    read_statement,
    signature_layers,
    signed_layers,
)

R = TypeVar("R", bound=Readable)

_MOST: Final = 100_000
#: The algorithm of the digests in the lists.
_LISTED: Final = "sha256"
#: Seconds for which a digest without a signature is remembered.
_UNSIGNED_FOR: Final = 30.0
#: Referrers of one image, and layers of one signature manifest, that are read. Anyone who may push can add more.
_MOST_REFERRERS: Final = 50
_MOST_LAYERS: Final = 50
#: Layers that are read for one image in all: each may have to be fetched.
_MOST_READ: Final = 100
#: Images of one attestation, which may be about many, whose tags are looked up.
_MOST_IMAGES: Final = 10


class KnowsIndexes(Protocol):
    """What a repository has here."""

    async def indexes_naming(self, digest: Digest) -> list[Digest]:
        """Returns the indexes of this repository that name this manifest. Raises `StoreError`."""


class GuardedRepository(Generic[R]):
    """A repository without the content that the rules refuse. Cheap to make."""

    def __init__(
        self,
        inner: R,
        stored: KnowsIndexes,
        lists: ContentLists,
        rule: ContentRule,
        keys: Sequence[PublicKey],
        signatures: Signatures,
    ) -> None:
        """`stored` says what the store has of `inner`. `keys` are those of `rule.signed_by`."""
        self.repo = inner.repo
        self.has = inner.has
        # the rules do not apply to a list of tags
        self.tags = inner.tags
        self._inner = inner
        self._stored = stored
        self._lists = lists
        self._rule = rule
        self._keys = keys
        self._signatures = signatures

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._inner!r}>"

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns an answer with the manifest itself. Raises `Denied`, and like `inner`."""
        tag = self._check_reference(reference)
        answer = await self._inner.manifest(reference)
        await self._check_answer(answer, tag)
        return answer

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """Returns the answer to HEAD. Raises like `manifest`: HEAD refuses what GET would refuse, as far as that can be
        told without the manifest's bytes.
        """
        tag = self._check_reference(reference)
        answer = await self._inner.resolve(reference)
        await self._check_answer(answer, tag)
        return answer

    def manifest_stands(self, reference: Reference, answer: ManifestAnswer, *, head: bool) -> Standing | None:
        """See `Lasting`. What the rules have let pass they let pass again: they do not change while the process lives,
        they judge nothing but the reference and the manifest, and a signed digest stays signed.
        """
        return manifest_standing(self._inner, reference, answer, head=head)

    def blob_stands(self, digest: Digest, answer: BlobStat) -> Standing | None:
        """See `Lasting`."""
        return blob_standing(self._inner, digest, answer)

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
                # the same bytes may be listed under this digest
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
        for index in await self._stored.indexes_naming(digest):
            if await self._signatures.is_signed(self._inner, index, names, self._keys):
                self._signatures.remember(self.repo, digest, names)
                return True
        return False

    async def blob(self, digest: Digest) -> BlobContent:
        """Returns the blob. The caller closes it. Raises `Denied`, and like `inner`."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.blob(digest)

    async def blob_object(self, digest: Digest) -> BlobObject | None:
        """See `InBucket`."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.blob_object(digest) if isinstance(self._inner, InBucket) else None

    async def blob_parts(self, digest: Digest, header: str, by: str) -> PartialContent | None:
        """See `GivesParts`."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.blob_parts(digest, header, by) if isinstance(self._inner, GivesParts) else None

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """Returns the answer to HEAD of a blob. Raises like `blob`."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.stat_blob(digest)

    async def read(self, digest: Digest, limit: int) -> bytes:
        """Returns the whole content of a small blob. Raises like `blob`, and `BlobDamaged` above `limit` bytes."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.read(digest, limit)

    async def referrers(self, digest: Digest, after: Digest | None = None) -> Listing:
        """Returns a page of the referrers. Raises `Denied`, and like `inner`."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.referrers(digest, after)


class GuardedProxy(GuardedRepository[ProxiedRepository]):
    """A guarded repository of an upstream: the rules apply to what is fetched, too."""

    def is_fetching(self, digest: Digest) -> bool:
        """True if this process is fetching the blob, for any repository of the registry."""
        return self._inner.is_fetching(digest)

    async def settled(self) -> None:
        """Returns once all that was fetched before this call is durable. Raises `StoreError`."""
        await self._inner.settled()

    async def prove(self, kind: Kind, reference: Reference | None) -> None:
        """Like `ProxiedRepository.prove`. The rules do not apply: only upstream decides about rights."""
        await self._inner.prove(kind, reference)

    async def fetch(self, digest: Digest, progress: Callable[[int, int | None], None]) -> bool:
        """Fetches the blob into the store. False if it was there already. Raises like `blob`, and `StoreError`."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.fetch(digest, progress)

    async def fetch_manifest(self, reference: Reference) -> ManifestAnswer:
        """Returns the manifest once it and its tag are on the disk. Raises like `manifest`, and `StoreError`.

        A manifest that is refused by its digest, size or signature stays on the disk.
        """
        tag = self._check_reference(reference)
        answer = await self._inner.fetch_manifest(reference)
        await self._check_answer(answer, tag)
        return answer

    def fetch_ahead(self, answer: ManifestAnswer, through: Fetching | None = None) -> None:
        """Like `ProxiedRepository.fetch_ahead`: blobs that the lists deny are not fetched."""
        self._inner.fetch_ahead(answer, through or self)


class GuardedHosted(GuardedRepository[HostedRepository]):
    """A guarded hosted repository: the rules apply to pulls. What may be pushed, the repository itself decides."""

    def __init__(
        self,
        inner: HostedRepository,
        stored: KnowsIndexes,
        lists: ContentLists,
        rule: ContentRule,
        keys: Sequence[PublicKey],
        signatures: Signatures,
    ) -> None:
        super().__init__(inner, stored, lists, rule, keys, signatures)
        self.begin_upload = inner.begin_upload
        self.upload_offset = inner.upload_offset
        self.upload = inner.upload
        self.mount = inner.mount
        self.put_manifest = inner.put_manifest
        self.delete_tag = inner.delete_tag
        self.delete_manifest = inner.delete_manifest
        self.delete_blob = inner.delete_blob
        self.undelete = inner.undelete

    async def stat_for_push(self, digest: Digest, pusher: Pusher) -> BlobStat:
        """Returns the answer to HEAD of a blob by a caller who may push. Raises `Denied`, and like `inner`."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.stat_for_push(digest, pusher)

    async def blob_for_push(self, digest: Digest, pusher: Pusher) -> BlobContent:
        """Returns the blob for a caller who may have reserved it. Raises `Denied`, and like `inner`."""
        self._lists.check_blob(self.repo, digest)
        return await self._inner.blob_for_push(digest, pusher)


class Signatures:
    """Remembers in this process which digests of which repositories are signed. `now` is monotonic, in seconds."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._signed: LruCache[tuple[Repo, Digest, tuple[str, ...]], bool] = LruCache(_MOST, name="signed images")
        #: Signed indexes whose children are remembered as signed. A forgotten child is found again by its index.
        self._spread: LruCache[tuple[Repo, Digest, tuple[str, ...]], bool] = LruCache(_MOST, name="signed platforms")
        #: Digests that count as unsigned. Kept for each caller: one may not see a signature that another sees.
        self._unsigned: TtlCache[tuple[Repo, Digest, tuple[str, ...], str], bool] = TtlCache(
            _MOST, _UNSIGNED_FOR, lambda: self._now(), name="unsigned images"
        )
        self._once = SingleFlight()

    def __repr__(self) -> str:
        return f"<Signatures {len(self._signed)} signed, {len(self._unsigned)} unsigned>"

    async def is_signed(
        self, repository: Readable, digest: Digest, names: tuple[str, ...], keys: Sequence[PublicKey]
    ) -> bool:
        """True if the digest is signed by one of the keys. `names` are the keys' names. Raises `UpstreamError` if
        upstream does not answer.
        """
        key = repository.repo, digest, names
        if self._signed.get(key):
            return True
        for_this_caller = *key, caller_mark()
        if for_this_caller in self._unsigned:
            return False
        is_signed = await self._once.run(for_this_caller, lambda: _find_signature(repository, digest, keys))
        if is_signed:
            self.remember(repository.repo, digest, names)
        else:
            self._unsigned[for_this_caller] = True
        return is_signed

    def remember(self, repo: Repo, digest: Digest, names: tuple[str, ...]) -> None:
        """Remembers that a digest is signed, or named by a signed index."""
        self._signed[repo, digest, names] = True

    def remember_children(self, repo: Repo, index: Manifest, names: tuple[str, ...]) -> None:
        """Remembers the manifests that a signed index names as signed. Done once for each index, which may name
        thousands.
        """
        key = repo, index.digest, names
        if index.manifests and key not in self._spread:
            self._spread[key] = True
            for child in index.manifests:
                self.remember(repo, child.digest, names)

    async def aclose(self) -> None:
        """Cancels the search for signatures. Repeatable."""
        await self._once.aclose()


async def _find_signature(repository: Readable, digest: Digest, keys: Sequence[PublicKey]) -> bool:
    """True if a signature is found: first under cosign's tag, which most registries use, then among the referrers."""
    budget = _MOST_READ

    async def is_in(reference: Reference) -> bool:
        nonlocal budget
        try:
            layers = signed_layers((await repository.manifest(reference)).read())[: min(budget, _MOST_LAYERS)]
        except (NotFound, ValueError, UpstreamInvalid):
            return False
        budget -= len(layers)
        return await _has_signature(repository, layers, digest, keys)

    if await is_in(signature_tag(digest)):
        return True
    left = _MOST_REFERRERS
    async with aclosing(all_referrers(repository, digest)) as referrers:
        async for referrer in referrers:
            if await is_in(referrer.digest):
                return True
            left -= 1
            if not left:
                break
    return False


async def _is_signature(repository: Readable, manifest: Manifest, tag: str | None, keys: Sequence[PublicKey]) -> bool:
    """True if the manifest has nothing but signatures and attestations of the image that it belongs to, and one of them
    is by these keys.
    """
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
    repository: Readable, manifest: Manifest, tag: str | None, signed: Iterable[Statement]
) -> Digest | None:
    """Returns the image that a manifest of signatures belongs to; None if it belongs to none.

    Clients that have resolved a tag ask by digest, so without a tag here. Then the statements that our keys have
    `signed` give the candidates: the manifest belongs to one of their images if a tag that cosign gives to signatures,
    attestations or SBOMs of that image points to the manifest.
    """
    if manifest.subject is not None:
        return manifest.subject.digest
    if tag is not None:
        return image_of_tag(tag)
    named = sorted({image for statement in signed for image in statement.images})
    for image in named[:_MOST_IMAGES]:
        for attached in attachment_tags(image):
            with suppress(NotFound):
                if (await repository.resolve(attached)).digest == manifest.digest:
                    return image
    return None


async def _has_signature(
    repository: Readable, layers: Iterable[Descriptor], digest: Digest, keys: Sequence[PublicKey]
) -> bool:
    """True if one of the layers is a signature of the digest by one of the keys.

    Missing or malformed signatures are skipped: otherwise anyone who can attach one could block the image.
    """
    for layer in layers:
        try:
            content = await repository.read(layer.digest, LARGEST)
        except (BlobUnknown, BlobDamaged, UpstreamInvalid):
            continue
        if await asyncio.to_thread(_is_signed_by, layer, content, digest, keys):
            return True
    return False


# The following run in threads: a document of a megabyte with many signatures takes time.


def _judge(layer: Descriptor, content: bytes, keys: Sequence[PublicKey]) -> tuple[Statement | None, bool]:
    """Returns the statement of a layer and whether one of the keys has signed it. The statement is None if the layer is
    anything but a statement.
    """
    statement = read_statement(layer, content) if is_only_document(layer, content) else None
    return statement, statement is not None and statement.is_by(keys)


def _is_signed_by(layer: Descriptor, content: bytes, digest: Digest, keys: Sequence[PublicKey]) -> bool:
    statement = read_statement(layer, content)
    return statement is not None and digest in statement.images and statement.is_by(keys)
