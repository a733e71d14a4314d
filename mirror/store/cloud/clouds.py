"""What differs from cloud to cloud, and the stores of obstore that one bucket is used by.

obstore keeps connections in threads of its own, which `fork` does not copy: a store that was used before would hang in
the child. So stores are made at their first use, and refused in a child of the process that made them.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeAlias

from obstore.store import AzureStore, GCSStore, S3Store

from mirror.errors import StoreError
from mirror.ports import Version

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ClientConfig, RetryConfig

CloudStore: TypeAlias = S3Store | GCSStore | AzureStore
#: Makes a store of one bucket and prefix. `unsigned`: what is uploaded is not signed.
StoreMaker: TypeAlias = "Callable[[ClientConfig, RetryConfig, bool], CloudStore]"

#: Bytes of one part of an upload, and parts that are sent at the same time: 70 MiB of memory for one upload.
PART: Final = 8 << 20
PARTS: Final = 4
#: No upload of a part takes longer, however slow the network is.
_PART_TIMEOUT: Final = 120.0
#: Time that a body may take in all; `read_timeout` ends those that stall.
_LONGEST_BODY: Final = timedelta(days=7)
#: Time that a page of a listing, or the deletion of many objects, may take in all, in seconds, if a call may take less.
_LONGEST_PAGE: Final = 60.0
#: Repetitions of a part of an upload, which obstore makes by itself, begin within this time: after one stall, not two.
_PART_RETRIES: Final = timedelta(seconds=90)
#: A part that is not taken within this time has stalled, in seconds: four of them, at the same time, are 32 MiB.
_PART_STALLED: Final = 60.0
#: New credentials are looked for at most so often, in seconds, if the store refuses those in use: at first, and after
#: that was in vain again and again.
_RENEWAL: Final = 10.0
_LONGEST_RENEWAL: Final = 300.0


@dataclass(frozen=True, slots=True)
class CloudTraits:
    """What differs. `delete_at_once`: keys of one request for their deletion, or of one call if there is no such
    request. `has_generations`: the version of an object is a number besides its entity tag. `lists_after`: listings
    begin after a key. `forgets_uploads`: the store itself drops unfinished uploads. `drops_dots`: a part of a key must
    not end with a dot. `permissions` by operation.
    """

    label: str
    delete_at_once: int
    permissions: Mapping[str, str]
    has_generations: bool = False
    lists_after: bool = True
    forgets_uploads: bool = False
    deletes_singly: bool = False
    drops_dots: bool = False

    def path(self, key: str) -> str:
        """What the object of a key is called in the store."""
        if not self.drops_dots or not _DOTS.search(key):
            return key
        return _DOTS.sub(lambda found: found[0].replace("%", "%25").replace(".", "%2E"), key)

    def key(self, path: str) -> str:
        """The key of an object in the store."""
        return path.replace("%2E", ".").replace("%25", "%") if self.drops_dots else path

    def version(self, e_tag: str | None, generation: str | None) -> Version:
        """The version of an object; empty if the store does not say it."""
        tag = e_tag or ""
        if tag and not tag.endswith('"'):
            tag = f'"{tag}"'
        if not self.has_generations:
            return Version(tag)
        return Version(f"{generation}:{tag}" if generation and tag else "")

    def expected(self, version: Version, *, bare: bool) -> UpdateVersion:
        """What obstore sends so that a write succeeds in this version only. `bare`: the tag without its quotes."""
        if self.has_generations:
            generation, _, tag = version.partition(":")
            return {"version": generation, "e_tag": tag}
        return {"e_tag": self.e_tag(version, bare=bare)}

    def e_tag(self, version: Version, *, bare: bool = False) -> str:
        """The entity tag of a version."""
        tag = version.partition(":")[2] if self.has_generations else str(version)
        return tag.strip('"') if bare else tag


#: Dots at the end of a part of a path, and what they are written with instead.
_DOTS: Final = re.compile(r"\.+(?=/|\Z)|%")

_S3: Final = {
    "read": "s3:GetObject (and s3:ListBucket, by which what is absent is told from what is forbidden)",
    "write": "s3:PutObject",
    "upload": "s3:PutObject and s3:AbortMultipartUpload",
    "delete": "s3:DeleteObject",
    "list": "s3:ListBucket",
    "abort uploads": "s3:ListBucketMultipartUploads and s3:AbortMultipartUpload",
}
_GOOGLE: Final = {
    "read": "storage.objects.get (and storage.objects.list)",
    "write": "storage.objects.create and storage.objects.delete (which replacing needs)",
    "upload": "storage.objects.create, storage.objects.delete and storage.multipartUploads.*",
    "delete": "storage.objects.delete",
    "list": "storage.objects.list",
}
_AZURE: Final = dict.fromkeys(("read", "write", "upload", "delete", "list"), "the role Storage Blob Data Contributor")

S3: Final = CloudTraits("S3", 1000, _S3)
#: S3 without requests that delete many objects.
S3_SINGLY: Final = CloudTraits("S3", 100, _S3, deletes_singly=True)
GOOGLE: Final = CloudTraits("Google Cloud Storage", 100, _GOOGLE, has_generations=True, deletes_singly=True)
AZURE: Final = CloudTraits("Azure", 256, _AZURE, lists_after=False, forgets_uploads=True, drops_dots=True)


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """In seconds. `call`: of one call of the port without much content, with all repetitions. `read`: of a body in
    which no byte moves.
    """

    connect: float = 3.0
    read: float = 10.0
    call: float = 15.0

    @property
    def request(self) -> float:
        """Of one request of such a call."""
        return max(1.0, self.call / 3)


@dataclass(slots=True)
class CloudStores:
    """The stores of one bucket: for small requests, for bodies, for listings, and for uploads.

    Only uploads are repeated by obstore itself, part by part: every other repetition is decided where it is known what
    a request did.
    """

    make: StoreMaker = field(repr=False)
    times: TimeLimits
    retries: int
    client: ClientConfig = field(repr=False)
    now: Callable[[], float] = time.monotonic
    _made: dict[str, CloudStore] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _renew_at: float = float("-inf")
    _renewal: float = _RENEWAL
    _process: int = 0

    def __reduce__(self) -> str:
        raise TypeError("stores contain credentials, and do not leave their process")

    @property
    def quick(self) -> CloudStore:
        """For requests without much content."""
        limit = self.times.request
        return self._store("quick", timedelta(seconds=limit), min(limit, self.times.read), 0)

    @property
    def long(self) -> CloudStore:
        """For bodies."""
        return self._store("long", _LONGEST_BODY, self.times.read, 0)

    @property
    def pages(self) -> CloudStore:
        """For pages of listings, and deletions of many objects: their answers are limited in all."""
        return self._store("pages", timedelta(seconds=max(self.times.call, _LONGEST_PAGE)), self.times.read, 0)

    @property
    def upload(self) -> CloudStore:
        """For uploads."""
        return self._upload_store("upload")

    @property
    def unsigned_upload(self) -> CloudStore:
        """For uploads that are not signed, but have a checksum."""
        return self._upload_store("unsigned")

    def _upload_store(self, purpose: str) -> CloudStore:
        stalled = max(self.times.read, _PART_STALLED)
        return self._store(purpose, timedelta(seconds=_PART_TIMEOUT), stalled, self.retries)

    def renew(self) -> bool:
        """Drop all connections with their credentials, so that the next use looks for new ones. False if that was done
        a moment ago.
        """
        with self._lock:
            if self.now() < self._renew_at:
                return False
            self._renew_at = self.now() + self._renewal
            self._renewal = min(self._renewal * 2, _LONGEST_RENEWAL)
            self._made.clear()
            return True

    def accepted(self) -> None:
        """Note that new credentials were of use."""
        self._renewal = _RENEWAL

    def close(self) -> None:
        """Drop all connections. Repeatable."""
        with self._lock:
            self._made.clear()

    def _store(self, purpose: str, timeout: timedelta, read_timeout: float, retries: int) -> CloudStore:
        if (found := self._made.get(purpose)) is not None and self._process == os.getpid():
            return found
        with self._lock:
            _check_process()
            self._process = os.getpid()
            client: ClientConfig = {
                **self.client,
                "timeout": timeout,
                "read_timeout": timedelta(seconds=read_timeout),
                "connect_timeout": timedelta(seconds=self.times.connect),
            }
            again = _PART_RETRIES if retries else timedelta(0)
            store = self.make(client, {"max_retries": retries, "retry_timeout": again}, purpose == "unsigned")
            self._made[purpose] = store
            return store


#: The process whose threads obstore uses.
_used_in: int | None = None


def _check_process() -> None:
    global _used_in
    if _used_in is None:
        _used_in = os.getpid()
    if _used_in != os.getpid():
        raise StoreError("the bucket was used before this process was forked, and cannot be used in it")
