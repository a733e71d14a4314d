"""The status of the mirror as a whole: its workers, its store, its index, its traffic, and its caches."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from typing_extensions import TypedDict

from mirror import telemetry
from mirror.aio.caches import CacheStats
from mirror.errors import StoreError
from mirror.eviction.space import Space
from mirror.eviction.write_behind import WriteBehind
from mirror.hosting.damaged_blobs import DamagedBlobs
from mirror.hosting.quotas import Quotas, ScopeUsage
from mirror.server.admin.bucket_status import BucketFacts, BucketStatusJson
from mirror.server.admin.status_parts import StatusParts, UnreadPartJson
from mirror.server.admin.traffic_log import HistoryJson, TrafficJson, TrafficLog, total, traffic_json
from mirror.server.admin.worker_status import FlightJson, PeerJson, UpstreamJson, WorkerJson, Workers
from mirror.values.json_types import Bytes, Count, Seconds, Timestamp, about

#: Seconds that the status waits until the size of the store is counted.
_COUNTED: Final = 1.0
#: Seconds for which the status waits for a bucket.
_PATIENCE: Final = 2.0


class StoreStatusJson(TypedDict):
    """How full the store is."""

    root: str
    bytes: Annotated[Bytes | None, about("Null while they are counted.")]
    limit: Annotated[Bytes | None, about("Null while the bytes are counted.")]
    quarantine_bytes: Annotated[
        Bytes | None, about("Bytes of damaged blobs that were set aside; not part of `bytes`; null: not known now.")
    ]
    hosted_damaged: Annotated[
        Count | None,
        about("Number of damaged hosted blobs that wait for a push of the same content; null: not known now."),
    ]
    failing_workers: Annotated[Count, about("Number of workers whose last write to the store failed.")]


class IndexStatusJson(TypedDict):
    """Whether the index answers."""

    error: Annotated[str | None, about("Why the index is not used; null: it is.")]


class HostedUsageJson(TypedDict):
    """How full a hosted registry is, or those of its repositories that have a quota of their own."""

    scope: Annotated[str, about("The registry's name, or the name with a pattern.")]
    bytes: Annotated[Bytes | None, about("Bytes of distinct blobs and manifests; null: not known at the moment.")]
    quota: Annotated[Bytes | None, about("Null: there is none.")]


def usage_json(usage: Iterable[ScopeUsage]) -> list[HostedUsageJson]:
    """How full hosted registries are, as JSON."""
    return [{"scope": each.scope, "bytes": each.used, "quota": each.limit} for each in usage]


class LeaseJson(TypedDict):
    """Work that one replica does for all."""

    work: str
    holder: Annotated[str, about("The address of the replica that does it, or did it when it was lost.")]
    since: Annotated[Timestamp, about("By the clock of that replica.")]


class ClusterStatusJson(TypedDict):
    """The cluster of which this mirror is a replica."""

    name: str
    address: Annotated[str, about("This replica's own, as the others reach it.")]
    members: Annotated[list[PeerJson], about("The other replicas, by address, as this one sees them.")]
    leases: Annotated[
        list[LeaseJson] | None, about("The work for all that is done now; null: no bucket, or it does not answer now.")
    ]
    clock_offset: Annotated[
        float | None,
        about("By how many seconds this replica's clock is ahead of the bucket's; null: no bucket, or not known yet."),
    ]


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """The name of the cluster, and the address of this replica. `leases` blocks: the work that one replica does for
    all; it raises `StoreError`, None: the cluster has no bucket. `clock_offset`: see the JSON.
    """

    name: str
    address: str
    leases: Callable[[], list[LeaseJson]] | None = None
    clock_offset: Callable[[], float | None] = lambda: None

    async def status(self, members: list[PeerJson]) -> ClusterStatusJson:
        """The status, together with the other replicas."""
        leases, offset = None, self.clock_offset()
        if self.leases is not None:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    leases = await asyncio.to_thread(self.leases)
        return {
            "name": self.name,
            "address": self.address,
            "members": members,
            "leases": leases,
            "clock_offset": round(offset, 1) if offset is not None else None,
        }


class StatusJson(TypedDict):
    """The state of the mirror."""

    version: str
    worker: Annotated[Count, about("Process id of the worker that answers.")]
    uptime: Annotated[Seconds, about("Seconds since that worker started.")]
    workers: list[WorkerJson]
    store: StoreStatusJson
    hosted: list[HostedUsageJson]
    bucket: Annotated[BucketStatusJson | None, about("Null: there is none.")]
    cluster: Annotated[ClusterStatusJson | None, about("Null: this mirror is no replica.")]
    index: IndexStatusJson
    flights: Annotated[Count, about("Number of downloads in progress, over all workers.")]
    traffic: Annotated[TrafficJson, about("Since the mirror started.")]
    offline: Annotated[bool, about("The mirror is sealed: no upstream is contacted.")]
    unread: Annotated[list[UnreadPartJson], about("What could not be read now; the rest is as it is.")]


class FlightsJson(TypedDict):
    """The downloads in progress, over all workers."""

    flights: list[FlightJson]


class UpstreamsJson(TypedDict):
    """The upstreams, as the workers know them."""

    upstreams: list[UpstreamJson]


class CacheJson(TypedDict):
    """A cache of bounded size in the memory of one worker."""

    name: str
    entries: Count
    bytes: Annotated[Bytes | None, about("Null: the cache limits the number of its entries.")]
    limit: Annotated[Count, about("In bytes if `bytes` is given, otherwise a number of entries.")]


class CachesJson(TypedDict):
    """The caches of the worker that answers."""

    worker: Annotated[Count, about("Its process id.")]
    caches: list[CacheJson]


@dataclass(frozen=True, slots=True)
class HostedFacts:
    """What is known of hosted content; `bucket` is None if it is on the disk."""

    quotas: Quotas
    damaged: DamagedBlobs
    bucket: BucketFacts | None


class MirrorStatus:
    """Answers for the whole mirror. `caches` returns how full each cache of this process is, by name."""

    def __init__(
        self,
        root: Path,
        space: Space,
        write_behind: WriteBehind,
        workers: Workers,
        traffic: TrafficLog,
        hosted: HostedFacts,
        *,
        version: str,
        offline: bool,
        caches: Callable[[], Mapping[str, CacheStats]],
        cluster: ClusterFacts | None = None,
    ) -> None:
        self._root = root
        self._space = space
        self._write_behind = write_behind
        self._workers = workers
        self._traffic = traffic
        self._hosted = hosted
        self.version = version
        self._offline = offline
        self._caches = caches
        self._cluster = cluster

    async def status(self) -> StatusJson:
        """The state of the mirror. What cannot be read is named, and does not keep the rest back."""
        parts, thread = StatusParts(), asyncio.to_thread
        nothing: tuple[int, int] | None = None
        size, limit = await parts.read("store.bytes", self._space.fullness(_COUNTED), nothing) or (None, None)
        quarantined = await parts.read("store.quarantine_bytes", thread(self._space.quarantined), None)
        damaged = await parts.read("store.hosted_damaged", thread(self._hosted.damaged.count), None)
        usage = await parts.read("hosted", self._hosted.quotas.usage(), ())
        others = await parts.read("workers", self._workers.buckets(), [])
        return {
            "version": self.version,
            "worker": os.getpid(),
            "uptime": self._workers.uptime,
            "workers": await parts.read("workers", self._workers.workers(), []),
            "store": {
                "root": str(self._root),
                "bytes": size,
                "limit": limit,
                "quarantine_bytes": quarantined,
                "hosted_damaged": damaged,
                "failing_workers": int(await thread(telemetry.measured, "mirror_store_failing_workers")),
            },
            "hosted": usage_json(usage),
            "bucket": await bucket.status(others) if (bucket := self._hosted.bucket) else None,
            "cluster": await parts.read("cluster", self._cluster_status(), None),
            "index": {"error": self._write_behind.trouble},
            "flights": len(await parts.read("flights", self._workers.flights(), [])),
            "traffic": traffic_json(await thread(total)),
            "offline": self._offline,
            "unread": parts.unread,
        }

    async def _cluster_status(self) -> ClusterStatusJson | None:
        if (cluster := self._cluster) is None:
            return None
        return await cluster.status(await self._workers.peers())

    async def history(self) -> HistoryJson:
        """The traffic of the last day. Raises `StoreError`."""
        return await asyncio.to_thread(self._traffic.history)

    async def flights(self) -> FlightsJson:
        """The downloads in progress. Raises `StoreError`."""
        return {"flights": await self._workers.flights()}

    async def upstreams(self) -> UpstreamsJson:
        """The upstreams. Raises `StoreError`."""
        return {"upstreams": await self._workers.upstreams()}

    async def caches(self) -> CachesJson:
        """The caches of this process, sorted by name."""
        return {
            "worker": os.getpid(),
            "caches": [
                {"name": name, "entries": stats.entries, "bytes": stats.bytes, "limit": stats.limit}
                for name, stats in sorted(self._caches().items())
            ],
        }
