"""Opens the bucket that is configured. Without one, the library for object stores is not even loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Final

from mirror import telemetry
from mirror.aio.bounded_threads import BoundedThreads
from mirror.app.object_storage.cloud_options import (
    client_options,
    cloud_of,
    is_plain,
    longest_signature,
    raw_requests,
)
from mirror.config import BucketSettings, Config
from mirror.errors import BucketUnavailable, BucketUnfit, ConfigError, ReplicaUnavailable, StoreError
from mirror.store.local.blobs import LocalStore
from mirror.store.local.bucket_note import BucketNote
from mirror.store.local.layout import Layout
from mirror.values.bucket_address import parse_bucket

if TYPE_CHECKING:
    from mirror.store.cloud.obstore_bucket import ObstoreBucket
    from mirror.store.objects.bucket_check import BucketCheck, DiskUse
    from mirror.store.objects.bucket_probe import ProbedBucket

#: Calls of the bucket that wait at the same time in one process; each takes a thread.
_AT_ONCE: Final = 32
#: Requests that wait for such a thread; they wait as long as the bucket takes for a few answers.
_WAITING: Final = 128
#: Threads in which the records of operators are read, and pushes are worked on.
_OPERATORS: Final = 16
_PUSHES: Final = 128
#: Threads for what operators do with hosted content: seldom, and perhaps for minutes.
_ADMIN: Final = 8


class BucketThreads:
    """The threads of one process in which requests wait for the bucket. Everything else has other threads, and does not
    notice how slow the bucket is.
    """

    def __init__(self) -> None:
        #: For pulls of hosted content, and what else clients ask of the bucket.
        self.requests: Final = BoundedThreads("bucket", _AT_ONCE, _WAITING, _busy)
        #: For what decides about pulls of all content: robots and freezes.
        self.operators: Final = BoundedThreads("operators", _OPERATORS, _WAITING, _busy)
        #: For pushes.
        self.pushes: Final = BoundedThreads("push", _PUSHES, _WAITING, _busy)
        #: For uploads that are passed on to other replicas. One that is frozen makes them wait, and its own pushes may
        #: be waiting here for this replica: pushes need threads for that.
        self.passed: Final = BoundedThreads("passed", _PUSHES, _WAITING, _passing)
        #: For looks at what other replicas have changed.
        self.looks: Final = BoundedThreads("looks", _OPERATORS, _WAITING, _busy)
        #: For calls of the admin API about hosted content. No pull waits behind them.
        self.admin: Final = BoundedThreads("admin", _ADMIN, _WAITING, _busy)

    def __repr__(self) -> str:
        return f"<BucketThreads {self.requests!r} {self.operators!r} {self.pushes!r} {self.passed!r}>"

    def close(self) -> None:
        """Take no more work. Repeatable."""
        for each in (self.requests, self.operators, self.pushes, self.passed, self.looks, self.admin):
            each.shutdown(wait=False, cancel_futures=True)


def _passing() -> ReplicaUnavailable:
    return ReplicaUnavailable("too many uploads wait for other replicas already")


def _busy() -> BucketUnavailable:
    return BucketUnavailable("the bucket is slow: too many requests wait for it already", retry_after=1.0)


def open_bucket(config: Config, *, probe: bool = False) -> ProbedBucket | None:
    """The bucket of `store.bucket`, which is first asked when it is first used; None if there is none. To be opened in
    the process that uses it. The limit of requests is shared by the workers: each has its part.

    `probe`, for servers, asks at once whether the bucket can keep hosted content. Blocking then. If it does not answer,
    or refuses the mirror, it is opened all the same, and probed by the first change of hosted content. Raises
    `ConfigError` if it is unfit.
    """
    if config.store.bucket is None:
        return None
    # imported here: without a bucket, the library costs memory and time for nothing
    from mirror.store.objects.bucket_probe import ProbedBucket

    bucket = ProbedBucket(_open(config, config.store.bucket, quiet=not probe))
    if probe:
        _probe(bucket)
    return bucket


def _probe(bucket: ProbedBucket) -> None:
    try:
        bucket.probe()
    except BucketUnfit as error:
        telemetry.log.error("bucket refused", reason=str(error))
        raise ConfigError([f"store.bucket: {error}; hosted content would be lost in it"]) from error
    except BucketUnavailable as error:
        telemetry.log.warning("bucket not probed", reason=str(error))


def try_bucket(config: Config) -> list[BucketCheck]:
    """Everything that the mirror needs of its bucket, tried; empty if there is none. Blocking."""
    if config.store.bucket is None:
        return []
    from mirror.store.objects.bucket_check import check_bucket

    with closing(_open(config, config.store.bucket, quiet=True)) as bucket:
        fetch = _following(config.bucket) if config.bucket.redirect_to else None
        return check_bucket(bucket, safety=bucket, fetch=fetch, disk=_disk_use(config))


def _disk_use(config: Config) -> DiskUse | None:
    """What the disk says of itself and its bucket; None if it cannot be read. Makes no store."""
    from mirror.store.objects.bucket_check import DiskUse

    layout, cluster = Layout(config.store.root), config.cluster.name if config.cluster.has_members else ""
    try:
        return DiskUse(LocalStore(layout).id if layout.marker.exists() else "", BucketNote(layout).read(), cluster)
    except (StoreError, OSError):
        return None


def _following(settings: BucketSettings) -> Callable[[str], bytes]:
    """Follows a signed URL as clients do, without the credentials and the proxy of the mirror."""
    import ssl
    import urllib.request

    context = ssl.create_default_context()
    if settings.ca_file is not None:
        context.load_verify_locations(settings.ca_file)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))

    def fetch(url: str) -> bytes:
        with opener.open(url, timeout=settings.timeout) as answer:
            content: bytes = answer.read()
        return content

    return fetch


def _open(config: Config, url: str, *, quiet: bool) -> ObstoreBucket:
    """`quiet`, for commands: who is refused or gets no answer says so, and the log need not."""
    from mirror.store.cloud.clouds import CloudStores, TimeLimits
    from mirror.store.cloud.obstore_bucket import ObstoreBucket
    from mirror.store.cloud.plain_body import PlainReader
    from mirror.store.cloud.request_gate import RequestGate
    from mirror.store.cloud.request_sender import RequestSender

    settings, address = config.bucket, parse_bucket(url)
    traits, make, keys = cloud_of(settings, address)
    stores = CloudStores(
        make,
        TimeLimits(settings.connect_timeout, settings.read_timeout, settings.timeout),
        settings.retries,
        client_options(settings),
    )
    rate = settings.requests_per_second / config.server.workers or None
    gate = RequestGate(str(address), rate, quiet=quiet)
    sender = RequestSender(str(address), traits, stores, gate, at_once=_AT_ONCE, quiet=quiet)
    raw = raw_requests(settings, address, keys) if address.cloud == "s3" and not settings.anonymous else None
    return ObstoreBucket(
        sender,
        raw=raw,
        plain=PlainReader(raw, stores.times) if raw is not None and is_plain(settings) else None,
        storage_class=settings.storage_class,
        unsigned=not settings.sign_payload,
        longest_signature=longest_signature(settings),
    )


def make_room_for_waiting() -> None:
    """Give the running event loop twice as many threads as can wait for the bucket, so that the disk is read and
    written however slow the bucket is. Threads are made when they are needed.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2 * _AT_ONCE, "waiting"))
