"""Every metric, in one list, and its values over all workers.

Counters live in memory-mapped files if `PROMETHEUS_MULTIPROC_DIR` is set (the supervisor of several workers sets it),
so that a scrape of any worker returns the sum of all.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from prometheus_client import REGISTRY as _REGISTRY
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mirror.telemetry.worker_files import WorkerCounters, summing

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_TIMES: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class _GaugeIfSet(Gauge):
    """A gauge that is absent until it is set: of a mirror that has no bucket, a 0 would say that the bucket is down.

    The library has no public way to this. tests/ports/test_worker_files.py checks that it works as it is used here.
    """

    _is_set = False
    _first = threading.Lock()

    def _metric_init(self) -> None:
        """Postponed, because it makes the sample."""

    def set(self, value: float) -> None:
        """See `Gauge.set`."""
        with self._first:
            if not self._is_set:
                super()._metric_init()
                self._is_set = True
        super().set(value)

    def _child_samples(self) -> Iterable[Any]:
        return super()._child_samples() if self._is_set else ()


REQUESTS: Final = Counter(
    "mirror_requests", "Answered requests, by kind of resource, status and cache outcome", ["kind", "status", "cache"]
)
REQUEST_SECONDS: Final = Histogram(
    "mirror_request_seconds", "Time from a request to the last byte of its answer", ["kind", "cache"], buckets=_TIMES
)
SENT_BYTES: Final = Counter("mirror_sent_bytes", "Bytes of response bodies sent to clients", ["cache"])
PUSHES: Final = Counter(
    "mirror_pushes",
    "Answered pushes and deletions, by action, kind of resource and status",
    ["action", "kind", "status"],
)
RECEIVED_BYTES: Final = Counter("mirror_received_bytes", "Bytes of blobs and manifests received from clients that push")
CONNECTIONS: Final = Gauge("mirror_connections", "Open client connections", multiprocess_mode="livesum")
CONNECTIONS_DROPPED: Final = Counter(
    "mirror_connections_dropped",
    "Client connections that were closed early, by reason",
    ["reason"],
)

UPSTREAM_REQUESTS: Final = Counter(
    "mirror_upstream_requests",
    "Requests to upstream registries; status 0: no answer",
    ["upstream", "event", "status"],
)
UPSTREAM_SECONDS: Final = Histogram(
    "mirror_upstream_seconds", "Time until the response headers of an upstream", ["upstream", "event"], buckets=_TIMES
)
UPSTREAM_ERRORS: Final = Counter(
    "mirror_upstream_errors",
    "Failed calls to upstreams and broken bodies, by name of the error; `not found` is not one",
    ["upstream", "error"],
)
UPSTREAM_BYTES: Final = Counter(
    "mirror_upstream_bytes", "Bytes of blobs received from upstreams, stored or not", ["upstream"]
)
FURTHER_BYTES: Final = Counter(
    "mirror_further_connection_bytes",
    "Bytes of blobs received by further connections for the same blob, also counted as received from the upstream",
    ["upstream"],
)
CONNECTIONS_GIVEN_BACK: Final = Counter(
    "mirror_connections_given_back",
    "Further connections for a blob that ended early: no gain, slow, failed, throttled, no parts, store",
    ["upstream", "reason"],
)
WHOLE_ANSWERS: Final = Counter(
    "mirror_upstream_whole_answers",
    "Requests for a part of a blob in whose place the whole came: the upstream ignores or refuses ranges",
    ["upstream"],
)
BUDGET_LIMIT: Final = Gauge(
    "mirror_upstream_budget_limit",
    "Pulls that an upstream allows in its window, if it states the number",
    ["upstream"],
    multiprocess_mode="mostrecent",
)
BUDGET_REMAINING: Final = Gauge(
    "mirror_upstream_budget_remaining",
    "Remaining pulls of that number, as the upstream last stated",
    ["upstream"],
    multiprocess_mode="mostrecent",
)
ENDPOINT_FAILURES: Final = Counter(
    "mirror_endpoint_failures",
    "Calls that failed at one of several endpoints of an upstream, by kind of error",
    ["upstream", "endpoint", "error"],
)
BUCKET_UP: Final = _GaugeIfSet(
    "mirror_bucket_up", "1 while the bucket answers, 0 while it does not", multiprocess_mode="livemin"
)
BUCKET_OURS: Final = _GaugeIfSet(
    "mirror_bucket_ours", "1 while no other mirror has taken the bucket over", multiprocess_mode="livemax"
)
BUCKET_MEMORY_COMPLETE: Final = _GaugeIfSet(
    "mirror_bucket_memory_complete",
    "1 if all records of the bucket are known by name; 0 while they are being listed",
    multiprocess_mode="livemax",
)
BUCKET_RECORDS: Final = _GaugeIfSet(
    "mirror_bucket_listed_records", "Records that the last listing of the bucket has seen", multiprocess_mode="livemax"
)
BUCKET_REQUESTS: Final = Counter(
    "mirror_bucket_requests", "Requests to the bucket, by operation and result", ["operation", "result"]
)
BUCKET_SECONDS: Final = Histogram(
    "mirror_bucket_seconds", "Time of requests to the bucket, uploads whole", ["operation"], buckets=_TIMES
)
BUCKET_BYTES: Final = Counter(
    "mirror_bucket_bytes", "Bytes of objects read from the bucket and written to it", ["direction"]
)
BUCKET_THROTTLED: Final = Counter("mirror_bucket_throttled", "Answers of the bucket that ask for fewer requests")
BUCKET_BLOB_BYTES: Final = Counter("mirror_bucket_blob_bytes", "Bytes of blobs received from the bucket, stored or not")
BUCKET_LEFT: Final = Counter(
    "mirror_bucket_left", "Cached blobs for which the bucket was left for the upstream, by name of the error", ["error"]
)

PEER_BLOB_BYTES: Final = Counter("mirror_peer_blob_bytes", "Bytes of blobs received from other replicas, stored or not")
PEER_SENT_BYTES: Final = Counter("mirror_peer_sent_bytes", "Bytes of blobs sent to other replicas")
PEER_LEFT: Final = Counter(
    "mirror_peer_left", "Blobs for which a replica was left for the next source, by name of the error", ["error"]
)
PEER_WRONG: Final = Counter("mirror_peer_wrong_blobs", "Blobs of which another replica gave wrong bytes")

LAZY_ANSWERS: Final = Counter(
    "mirror_lazy_answers", "Answers with parts of blobs that were not verified yet, on lazy routes", ["upstream"]
)
LAZY_BYTES: Final = Counter("mirror_lazy_bytes", "Bytes of such parts that were received from upstreams", ["upstream"])
LAZY_COMPLETED: Final = Counter(
    "mirror_lazy_completions", "Blobs that were fetched whole after parts of them had been asked for", ["result"]
)
LAZY_WRONG: Final = Counter(
    "mirror_lazy_wrong_blobs", "Blobs of which unverified parts were sent, and that were wrong", ["upstream"]
)

BUCKET_REDIRECTS: Final = Counter("mirror_bucket_redirects", "Clients that were sent to the bucket for a blob")
BUCKET_REDIRECTED_BYTES: Final = Counter("mirror_bucket_redirected_bytes", "Bytes that they asked for")
BUCKET_NOT_REDIRECTED: Final = Counter(
    "mirror_bucket_redirects_failed",
    "Requests that were served from here instead, because the bucket could not be asked in time, or no URL be signed",
)

PEERS: Final = Gauge("mirror_peers", "Other replicas of the cluster that are known", multiprocess_mode="livemax")
PEERS_DOWN: Final = Gauge(
    "mirror_peers_down", "Of these, how many are left alone because they did not answer", multiprocess_mode="livemax"
)
PEER_REQUESTS: Final = Counter(
    "mirror_peer_requests", "Requests to other replicas, by verb and result", ["verb", "result"]
)
PEER_SECONDS: Final = Histogram(
    "mirror_peer_seconds", "Time until another replica has begun to answer, by verb", ["verb"], buckets=_TIMES
)
PEER_ANSWERS: Final = Counter(
    "mirror_peer_answers", "Answered requests of other replicas, by verb and status", ["verb", "status"]
)
PEER_REFUSED: Final = Counter(
    "mirror_peer_refused", "Requests to the internal listener that were refused, by reason", ["reason"]
)

FLIGHTS: Final = Gauge("mirror_flights", "Downloads of blobs in progress", multiprocess_mode="livesum")
FOLLOWERS: Final = Gauge(
    "mirror_followers", "Clients that read a blob while it is downloaded", multiprocess_mode="livesum"
)
AHEAD: Final = Gauge(
    "mirror_read_ahead_manifests",
    "Manifests whose blobs are being fetched before clients ask for them, or wait for that",
    multiprocess_mode="livesum",
)
FILLED: Final = Counter("mirror_fills", "Downloads of blobs that ended, by result", ["upstream", "result"])
FILL_SECONDS: Final = Histogram(
    "mirror_fill_seconds", "Time from the begin of a download until the blob is stored", ["upstream"], buckets=_TIMES
)
UNCACHED: Final = Counter("mirror_uncached_answers", "Answers that bypassed the store because it could not take them")

VERSION_TAGS_MOVED: Final = Counter(
    "mirror_version_tags_moved",
    "Tags that look like a version and were moved, by configured upstream",
    ["upstream"],
)

EVICTED: Final = Counter("mirror_evicted_blobs", "Blobs evicted")
EVICTED_BYTES: Final = Counter("mirror_evicted_bytes", "Bytes of blobs evicted")
FORGOTTEN: Final = Counter(
    "mirror_forgotten_records",
    "Tags, manifests and repositories of upstreams that nobody asks for, and links of blobs that are gone: forgotten",
    ["kind"],
)
STORE_BYTES: Final = Gauge("mirror_store_bytes", "Bytes of blobs in the store", multiprocess_mode="mostrecent")
STORE_BLOBS: Final = Gauge("mirror_store_blobs", "Blobs in the store", multiprocess_mode="mostrecent")
STORE_LIMIT: Final = Gauge("mirror_store_limit_bytes", "Bytes that blobs may take", multiprocess_mode="mostrecent")
# Of living workers alone: a scope or an endpoint that is no longer configured goes with the workers that knew it.
HOSTED_BYTES: Final = Gauge(
    "mirror_hosted_bytes",
    "Bytes of different blobs and manifests of a hosted registry, or of a pattern with a quota",
    ["scope"],
    multiprocess_mode="livemostrecent",
)
HOSTED_QUOTA: Final = Gauge(
    "mirror_hosted_quota_bytes",
    "The quota of a hosted registry, or of a pattern",
    ["scope"],
    multiprocess_mode="livemostrecent",
)
LEDGER_COMPLETE: Final = Gauge(
    "mirror_ledger_last_complete_timestamp_seconds",
    "When the ledger of hosted content, by which quotas are judged, was last completed, in epoch seconds",
    multiprocess_mode="mostrecent",
)
BACKUP_COMPLETE: Final = Gauge(
    "mirror_backup_last_complete_timestamp_seconds",
    "When the last complete backup of the hosted content began, in epoch seconds",
    multiprocess_mode="mostrecent",
)
UPLOADS_OPEN: Final = Gauge(
    "mirror_uploads_open", "Upload sessions that are open, also abandoned ones", multiprocess_mode="mostrecent"
)
UPLOADS_OPEN_BYTES: Final = Gauge(
    "mirror_uploads_open_bytes", "Bytes of these sessions on the disk", multiprocess_mode="mostrecent"
)
EVENTS_DELIVERED: Final = Counter("mirror_events_delivered", "Events that an endpoint has taken", ["endpoint"])
EVENTS_FAILED: Final = Counter(
    "mirror_events_failed", "Attempts to deliver an event that an endpoint did not take", ["endpoint"]
)
EVENTS_LOST: Final = Counter(
    "mirror_events_lost", "Events that an endpoint will not get, because too many were waiting", ["endpoint"]
)
EVENTS_DROPPED: Final = Counter(
    "mirror_events_dropped",
    "Events about damage, upstreams and pulls that came too fast to be written down, or could not be",
)
EVENTS_WAITING: Final = Gauge(
    "mirror_events_waiting", "Events that wait for an endpoint", ["endpoint"], multiprocess_mode="livemostrecent"
)
EVENTS_DEAD: Final = Gauge(
    "mirror_events_dead",
    "Events that are not sent to an endpoint any more, unless an operator resends them",
    ["endpoint"],
    multiprocess_mode="livemostrecent",
)
EVENTS_OLDEST: Final = Gauge(
    "mirror_events_oldest_seconds",
    "Age of the oldest event that waits for an endpoint; 0 if none waits",
    ["endpoint"],
    multiprocess_mode="livemostrecent",
)
BUCKET_CACHE_WAITING: Final = _GaugeIfSet(
    "mirror_bucket_cache_waiting",
    "Cached blobs and records that wait to be written to the bucket",
    multiprocess_mode="livesum",
)
BUCKET_CACHE_DROPPED: Final = Counter(
    "mirror_bucket_cache_dropped",
    "Cached blobs and records that were not written to the bucket, by reason: full, stopped, failed",
    ["reason"],
)
BUCKET_CACHE_WRITTEN: Final = Counter("mirror_bucket_cache_written_blobs", "Cached blobs written to the bucket")
BUCKET_CACHE_WRITTEN_BYTES: Final = Counter("mirror_bucket_cache_written_bytes", "Bytes of these blobs")
BUCKET_CACHE_RESTORED: Final = Counter(
    "mirror_bucket_cache_restored", "Manifests and tags that the disk had lost, brought back from the bucket", ["kind"]
)
BUCKET_CACHE_EVICTED: Final = Counter(
    "mirror_bucket_cache_evicted_blobs", "Cached blobs deleted from the bucket because of its capacity"
)
BUCKET_CACHE_EVICTED_BYTES: Final = Counter("mirror_bucket_cache_evicted_bytes", "Bytes of these blobs")
BUCKET_CACHE_OBJECTS: Final = _GaugeIfSet(
    "mirror_bucket_cache_blobs", "Cached blobs in the bucket", multiprocess_mode="mostrecent"
)
BUCKET_CACHE_BYTES: Final = _GaugeIfSet(
    "mirror_bucket_cache_bytes", "Bytes of cached blobs in the bucket", multiprocess_mode="mostrecent"
)
STORE_FAILING: Final = Gauge(
    "mirror_store_failing_workers", "Workers whose last write to the store failed", multiprocess_mode="livesum"
)
PARTIAL_BYTES: Final = Gauge(
    "mirror_store_partial_bytes", "Bytes of unfinished downloads", multiprocess_mode="mostrecent"
)
UNREADABLE_RECORDS: Final = Gauge(
    "mirror_unreadable_notes", "Pins and freezes whose files cannot be read", multiprocess_mode="mostrecent"
)
QUARANTINE_BYTES: Final = Gauge(
    "mirror_store_quarantine_bytes", "Bytes of damaged blobs that were set aside", multiprocess_mode="mostrecent"
)
HOSTED_DAMAGED: Final = Gauge(
    "mirror_hosted_damaged_blobs",
    "Damaged hosted blobs that wait for a push of the same digest",
    multiprocess_mode="mostrecent",
)
SEALED_MISSES: Final = Counter(
    "mirror_sealed_misses", "Requests for content that a sealed repository does not have, by kind of resource", ["kind"]
)
SCRUBBED_BYTES: Final = Counter("mirror_scrubbed_bytes", "Bytes of blobs that were read again and hashed")
SCRUB_DAMAGED: Final = Counter("mirror_scrub_damaged_blobs", "Blobs that did not match their digest")
CERTIFICATE_UNTIL: Final = Gauge(
    "mirror_certificate_expires_timestamp_seconds",
    "When the certificate of the mirror expires, in epoch seconds; 0 without TLS",
    multiprocess_mode="mostrecent",
)
SCRUB_COMPLETE: Final = Gauge(
    "mirror_scrub_last_complete_timestamp_seconds",
    "When every blob had been hashed last, in epoch seconds",
    multiprocess_mode="mostrecent",
)
RETENTION_TAGS: Final = Counter("mirror_retention_tags", "Tags that retention has deleted")
RETENTION_MANIFESTS: Final = Counter("mirror_retention_manifests", "Manifests that retention has deleted")
RETENTION_UNREAD: Final = Gauge(
    "mirror_retention_unread",
    "Repositories that the last round of retention could not read, and left alone",
    multiprocess_mode="mostrecent",
)
RETENTION_COMPLETE: Final = Gauge(
    "mirror_retention_last_complete_timestamp_seconds",
    "When the last round of retention ended that has judged every repository, in epoch seconds",
    multiprocess_mode="mostrecent",
)
COLLECTED: Final = Counter("mirror_collected_blobs", "Hosted blobs that garbage collection has deleted")
COLLECTED_BYTES: Final = Counter("mirror_collected_bytes", "Bytes of these blobs")
COLLECTED_LINKS: Final = Counter("mirror_collected_links", "Links of repositories to blobs that were collected")
COLLECTION_WAITING: Final = Gauge(
    "mirror_collection_waiting_blobs",
    "Hosted blobs that no repository has, and that wait to be collected",
    multiprocess_mode="mostrecent",
)
COLLECTION_WAITING_BYTES: Final = Gauge(
    "mirror_collection_waiting_bytes", "Bytes of these blobs", multiprocess_mode="mostrecent"
)
COLLECTION_UNREAD: Final = Gauge(
    "mirror_collection_unread",
    "What the last round of collection could not read, and therefore kept",
    multiprocess_mode="mostrecent",
)
COLLECTION_COMPLETE: Final = Gauge(
    "mirror_collection_last_complete_timestamp_seconds",
    "When collection had last looked at everything, in epoch seconds",
    multiprocess_mode="mostrecent",
)
SWEPT_OBJECTS: Final = Counter("mirror_swept_objects", "Objects of hosted blobs that sweeps of the bucket have seen")
SWEEP_DELETED: Final = Counter(
    "mirror_sweep_deleted_objects", "Objects that sweeps have deleted because nothing needs them"
)
BUCKET_CLOCK_OFFSET: Final = Gauge(
    "mirror_bucket_clock_offset_seconds",
    "By how much the clock of this replica is ahead of the bucket's",
    multiprocess_mode="mostrecent",
)
EVENTS_ADOPTED: Final = Counter(
    "mirror_events_adopted_changes", "Changes whose events this replica took over from a replica that is gone"
)
LEASES_LOST: Final = Counter("mirror_leases_lost", "Leases that this replica lost while it did the work")
LEASES_TAKEN_OVER: Final = Counter(
    "mirror_leases_taken_over", "Leases that this replica took because their holder did not renew them"
)
SWEEP_LOST: Final = Counter("mirror_sweep_lost_blobs", "Hosted blobs that sweeps have not found in the bucket")
SWEEP_COMPLETE: Final = _GaugeIfSet(
    "mirror_sweep_last_complete_timestamp_seconds",
    "When the last sweep of the bucket ended, in epoch seconds",
    multiprocess_mode="mostrecent",
)
BUCKET_HOSTED_OBJECTS: Final = _GaugeIfSet(
    "mirror_bucket_hosted_objects",
    "Objects of hosted blobs in the bucket, at the last sweep",
    multiprocess_mode="mostrecent",
)
BUCKET_HOSTED_BYTES: Final = _GaugeIfSet(
    "mirror_bucket_hosted_bytes", "Bytes of these objects", multiprocess_mode="mostrecent"
)
INDEX_FAILURES: Final = Counter("mirror_index_failures", "Operations that the index did not answer in time")
BREAKER: Final = Gauge(
    "mirror_index_breaker_open", "Workers that do not call Redis because it has failed", multiprocess_mode="livesum"
)
LOG_LOST: Final = Counter("mirror_log_lines_lost", "Log lines that could not be written")

COPIES: Final = Counter(
    "mirror_copies", "Images that `mirror copy` and replication were to copy, by result", ["result"]
)
COPIED_BYTES: Final = Counter("mirror_copied_bytes", "Bytes of blobs sent to other registries by copies")
REPLICATION_RUNS: Final = Counter(
    "mirror_replication_runs", "Runs of replication rules that ended on this mirror", ["rule", "result"]
)
REPLICATION_SUCCESS: Final = Gauge(
    "mirror_replication_last_success_timestamp_seconds",
    "When a replication rule last succeeded on this mirror, in epoch seconds",
    ["rule"],
    multiprocess_mode="mostrecent",
)
REPLICATION_CONFLICTS: Final = Gauge(
    "mirror_replication_conflicts",
    "Tags that a replication rule left as they are in the other registry, at its last full comparison",
    ["rule"],
    multiprocess_mode="mostrecent",
)
SYNC_RUNS: Final = Counter("mirror_sync_runs", "Runs of sync rules that ended on this mirror", ["rule", "result"])
SYNC_SUCCESS: Final = Gauge(
    "mirror_sync_last_success_timestamp_seconds",
    "When a sync rule last succeeded on this mirror, in epoch seconds",
    ["rule"],
    multiprocess_mode="mostrecent",
)

BUILD: Final = Gauge(
    "mirror_build_info", "1; the versions are labels", ["version", "python"], multiprocess_mode="livemax"
)
WORKERS: Final = Gauge("mirror_workers", "Workers that are serving", multiprocess_mode="livesum")
WORKERS_BLOCKED: Final = Counter(
    "mirror_workers_blocked", "Workers that were killed and replaced because their event loop was blocked"
)
WORKER_STARTS: Final = Counter("mirror_worker_starts", "Workers that started to serve")
LOOP_LAG: Final = Histogram(
    "mirror_loop_lag_seconds",
    "Delay of a 100 ms timer of the event loop; every request waits as long",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
# The library's own process metrics cover one process only.
CPU_SECONDS: Final = Counter("mirror_process_cpu_seconds", "CPU seconds of all workers, user and system")
RESIDENT_BYTES: Final = Gauge(
    "mirror_process_resident_bytes",
    "Resident memory of all workers; shared pages count for each",
    multiprocess_mode="livesum",
)
DESCRIPTORS: Final = Gauge(
    "mirror_process_open_descriptors", "Open descriptors of the worker with the most", multiprocess_mode="livemax"
)
DESCRIPTORS_LIMIT: Final = Gauge(
    "mirror_process_descriptors_limit", "Descriptors that one worker may have open", multiprocess_mode="livemin"
)


#: Seconds up to which times are counted in the first bucket of `REQUEST_SECONDS`.
SHORTEST: Final = _TIMES[0]


def observe_short(histogram: Histogram, count: int, seconds: float) -> None:
    """Observe so many times at once, each of at most `SHORTEST` and together `seconds`.

    The library has no public way to this. tests/server/test_given_answers.py checks that it works as it is used here.
    """
    histogram._sum.inc(seconds)
    histogram._buckets[0].inc(count)


def counted(name: str) -> list[tuple[dict[str, str], float]]:
    """The samples of one counter with their labels, over all workers. `name` is without `_total`."""
    with _registry() as registry:
        return [
            (sample.labels, sample.value)
            for family in registry.collect()
            if family.name == name
            for sample in family.samples
            if sample.name == f"{name}_total"
        ]


def measured(name: str) -> float:
    """The sum of a gauge's samples, over all workers."""
    with _registry() as registry:
        return sum(sample.value for family in registry.collect() if family.name == name for sample in family.samples)


def render_metrics() -> bytes:
    """The metrics of all workers in Prometheus's text format."""
    with _registry() as registry:
        return generate_latest(registry)


@contextmanager
def _registry() -> Iterator[CollectorRegistry]:
    """A registry with the metrics of all workers. Inside the `with`, no counters of ended workers are added up."""
    if (folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR")) is None:
        yield _REGISTRY
        return
    with summing(folder):
        registry = CollectorRegistry()
        WorkerCounters(registry, folder)
        yield registry
