"""The data of a `docker-registry` in a bucket, as its drivers for S3, Google Cloud Storage and Azure write it.

The keys are the paths of the tree that `registry_data.py` draws, below the driver's `rootdirectory`. Two flat listings
say what there is, that of `blobs/` once, that of `repositories/` while the repositories are read:

    blobs/          ── every blob's size ── kept as long as the import runs (some 150 bytes a blob)
    repositories/   ── the keys of one repository come together ── its tags, manifests and blobs ──> the next repository

A link is at a key that has the digest in it, so its key alone is enough; only tags are read. A listing may be older
than what is in the bucket: what it does not show is asked for by its key before it counts as absent.

If the bucket cannot be reached, the import ends with that error, and goes on when it is run again. A blob that breaks
off in the middle is continued first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final, TypeVar

from mirror.aio.caches import LruCache
from mirror.aio.threads import in_order
from mirror.bundles.layout_source import OnRead
from mirror.bundles.registry_data import BELOW, LONGEST_LINK, RegistryRepository, read_link
from mirror.errors import BlobDamaged, BucketUnavailable, BundleError, DigestInvalid, UpstreamError, UpstreamInvalid
from mirror.oci.digest import HEX_LENGTHS, Digest
from mirror.oci.manifest import LARGEST
from mirror.ports import Body, Bucket, NotChanged, ObjectInfo, StoredObject

_T = TypeVar("_T")
_R = TypeVar("_R")

#: Objects that are read at the same time: one answer takes some 20 ms, whatever its size.
_AT_ONCE: Final = 16
#: Bytes of manifests that are remembered between the plan and the import.
_REMEMBERED: Final = 64 << 20
#: How often a blob is opened again without a byte in between.
_TRIES: Final = 3


class RegistryBucket:
    """The data of one registry in a bucket. Implements `RegistryData` and `RegistryBlobs`. May be used from any thread.

    The caller closes the bucket. Every call may raise `BucketUnavailable`.
    """

    def __init__(self, bucket: Bucket, address: str) -> None:
        """`bucket` has the registry's `rootdirectory` as its prefix, or the folder `v2` below it. `address` is its name
        in messages. Raises `BundleError` if it has no data of a registry.
        """
        self._bucket = bucket
        self._address = address
        for place in (f"{BELOW}/", ""):
            if next(bucket.list(f"{place}repositories/"), None) is not None:
                self._place = place
                break
        else:
            raise BundleError(f"{address} has no data of a registry: there is no key that begins {BELOW}/repositories/")
        #: By the bytes of the digest, whose lengths tell the algorithms apart.
        self._sizes = dict(self._list_sizes())
        self._manifests: LruCache[Digest, bytes] = LruCache(_REMEMBERED, len)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<RegistryBucket {self._address}: {len(self._sizes)} blobs>"

    def repositories(self) -> Iterator[RegistryRepository]:
        root = f"{self._place}repositories/"
        keys = (info.key.removeprefix(root) for info in self._bucket.list(root))
        # `a/_layers/…` and `a/_manifests/…` follow each other, whatever lies below `a/`
        for name, below in groupby(keys, lambda key: key.partition("/_")[0]):
            links = _RepositoryKeys(self, name)
            for key in below:
                links.note(key.removeprefix(f"{name}/"))
            if links.has_manifests:
                yield RegistryRepository(links)

    def size(self, digest: Digest) -> int | None:
        known = bytes.fromhex(digest.hex)
        size = self._sizes.get(known)
        if size is None:
            info = self._bucket.head(self._blob(digest))
            self._sizes[known] = size = -1 if info is None else info.size
        return None if size < 0 else size

    def read(self, digest: Digest) -> bytes:
        with self._lock:
            content = self._manifests.get(digest)
        if content is None:
            try:
                found = self._bucket.read(self._blob(digest), LARGEST)
            except BlobDamaged as error:
                raise BundleError(f"{digest}: {error}") from error
            content = _content(found)
            if content is None:
                raise BundleError(f"{digest} is no longer in {self._address}")
            with self._lock:
                self._manifests[digest] = content
        return content

    @contextmanager
    def body(self, digest: Digest, start: int, on_read: OnRead = lambda _: None) -> Iterator[Body]:
        body = _BlobBody(self._bucket, self._blob(digest), start, on_read)
        try:
            yield body
        finally:
            body.abort()

    def at(self, repository: str, path: str) -> str:
        """The key of a file of a repository."""
        return f"{self._place}repositories/{repository}/{path}"

    def exists(self, key: str) -> bool:
        """True if there is an object with this key."""
        return self._bucket.head(key) is not None

    def links(self, keys: Iterable[str]) -> Iterator[Digest | None]:
        """The digests in objects, in the order of their keys; None for each that is absent or has no digest."""

        def read(key: str) -> Digest | None:
            try:
                content = _content(self._bucket.read(key, LONGEST_LINK))
            except BlobDamaged:
                return None
            return None if content is None else read_link(content)

        return _side_by_side(read, keys)

    def fetch(self, digests: Iterable[Digest]) -> Iterator[Digest]:
        """The same digests; the manifests of the next ones are read meanwhile, so that `read` has them."""

        def fetch(digest: Digest) -> Digest:
            size = self.size(digest)
            if size is not None and size <= LARGEST:
                # what is wrong with it shows when it is read
                with suppress(BundleError):
                    self.read(digest)
            return digest

        return _side_by_side(fetch, digests)

    def _list_sizes(self) -> Iterator[tuple[bytes, int]]:
        for algorithm in HEX_LENGTHS:
            for info in self._bucket.list(f"{self._place}blobs/{algorithm}/"):
                digest = _blob_of(info, algorithm)
                if digest is not None:
                    yield bytes.fromhex(digest.hex), info.size

    def _blob(self, digest: Digest) -> str:
        return f"{self._place}blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}/data"


@dataclass(slots=True)
class _RepositoryKeys:
    """What the listing shows of one repository. Implements `RepositoryLinks`."""

    blobs: RegistryBucket
    name: str
    _tags: list[str] = field(default_factory=list)
    _revisions: dict[Digest, None] = field(default_factory=dict)
    #: The bytes of digests, because there may be many.
    _layers: set[bytes] = field(default_factory=set)

    def __repr__(self) -> str:
        return f"{self.name} of {self.blobs}"

    @property
    def has_manifests(self) -> bool:
        """True if it is more than the place of an upload."""
        return bool(self._tags or self._revisions)

    def note(self, path: str) -> None:
        """Note a key below the repository."""
        match path.split("/"):
            case ["_manifests", "tags", tag, "current", "link"]:
                self._tags.append(tag)
            case ["_manifests", "revisions", algorithm, hex_digits, "link"]:
                if digest := _digest(algorithm, hex_digits):
                    self._revisions[digest] = None
            case ["_layers", algorithm, hex_digits, "link"]:
                if digest := _digest(algorithm, hex_digits):
                    self._layers.add(bytes.fromhex(digest.hex))

    def tags(self) -> Iterator[tuple[str, Digest]]:
        keys = (self.blobs.at(self.name, f"_manifests/tags/{tag}/current/link") for tag in self._tags)
        for tag, digest in zip(self._tags, self.blobs.links(keys), strict=True):
            if digest is not None:
                yield tag, digest

    def revisions(self) -> Iterator[Digest]:
        return self.blobs.fetch(list(self._revisions))

    def has_manifest(self, digest: Digest) -> bool:
        if digest not in self._revisions and self._exists(f"_manifests/revisions/{digest.algorithm}/{digest.hex}/link"):
            self._revisions[digest] = None
        return digest in self._revisions

    def has_blob(self, digest: Digest) -> bool:
        known = bytes.fromhex(digest.hex)
        if known not in self._layers and self._exists(f"_layers/{digest.algorithm}/{digest.hex}/link"):
            self._layers.add(known)
        return known in self._layers

    def _exists(self, path: str) -> bool:
        return self.blobs.exists(self.blobs.at(self.name, path))


class _BlobBody:
    """An object's bytes as a `Body`, continued where they break off. Raises `BundleError` if the object has gone or is
    shorter than `start`, `BucketUnavailable` if the bucket gives no byte in `_TRIES` tries.
    """

    def __init__(self, bucket: Bucket, key: str, start: int, on_read: OnRead) -> None:
        self.start = start
        self._bucket = bucket
        self._key = key
        self._position = start
        self._on_read = on_read
        self._aborted = False
        self._tries = 0
        self._body = self._open()
        self.size = self._body.size

    def readinto(self, buffer: memoryview) -> int:
        while True:
            if self._aborted:
                raise BundleError("stopped")
            try:
                count = self._body.readinto(buffer)
            except UpstreamError as error:
                self._tries += 1
                if self._tries >= _TRIES or self._aborted:
                    raise BucketUnavailable(f"reading {self._key}: {error}") from error
                self._body.abort()
                self._body = self._open()
                continue
            self._tries = 0
            self._position += count
            self._on_read(count)
            return count

    def abort(self) -> None:
        self._aborted = True
        self._body.abort()

    def _open(self) -> Body:
        try:
            body = self._bucket.open(self._key, self._position)
        except UpstreamInvalid as error:
            raise BundleError(str(error)) from error
        if body is None:
            raise BundleError(f"{self._key} is no longer in the bucket")
        return body


def _blob_of(info: ObjectInfo, algorithm: str) -> Digest | None:
    """The digest of a blob's object; None if it is another object."""
    match info.key.split("/")[-3:]:
        case [first, hex_digits, "data"] if hex_digits.startswith(first):
            return _digest(algorithm, hex_digits)
    return None


def _digest(algorithm: str, hex_digits: str) -> Digest | None:
    try:
        return Digest.parse(f"{algorithm}:{hex_digits}")
    except DigestInvalid:
        return None


def _content(found: StoredObject | NotChanged | None) -> bytes | None:
    return found.content if isinstance(found, StoredObject) else None


def _side_by_side(work: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """The results of `work` in the order of the items, some of which are worked on at the same time."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="registry-bucket") as threads:
        yield from in_order(threads, work, items, ahead=2 * _AT_ONCE)
