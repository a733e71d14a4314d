"""Every metric, in one list, and its values over all workers.

Counters live in memory-mapped files if `PROMETHEUS_MULTIPROC_DIR` is set (the supervisor of several workers sets it),
so that a scrape of any worker returns the sum of all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import REGISTRY as _REGISTRY
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from mirror.telemetry.worker_files import summing

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_TIMES: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

REQUESTS: Final = Counter(
    "mirror_requests", "Requests answered, by kind of resource, status and cache outcome", ["kind", "status", "cache"]
)
REQUEST_SECONDS: Final = Histogram(
    "mirror_request_seconds", "From the request to the last byte of its answer", ["kind", "cache"], buckets=_TIMES
)
SENT_BYTES: Final = Counter("mirror_sent_bytes", "Bytes of bodies sent to clients", ["cache"])
CONNECTIONS: Final = Gauge("mirror_connections", "Open connections of clients", multiprocess_mode="livesum")
CONNECTIONS_DROPPED: Final = Counter(
    "mirror_connections_dropped",
    "Connections that were not kept: too many of one address, or a request that came too slowly",
    ["reason"],
)

UPSTREAM_REQUESTS: Final = Counter(
    "mirror_upstream_requests",
    "Requests to upstream registries; status 0 means no answer",
    ["upstream", "event", "status"],
)
UPSTREAM_SECONDS: Final = Histogram(
    "mirror_upstream_seconds", "Time until upstream's response headers", ["upstream", "event"], buckets=_TIMES
)
UPSTREAM_ERRORS: Final = Counter(
    "mirror_upstream_errors",
    "Calls to upstream, and bodies of it, that failed, by the name of the error; what is not known there is none",
    ["upstream", "error"],
)
UPSTREAM_BYTES: Final = Counter(
    "mirror_upstream_bytes", "Bytes of blobs received from upstream, kept or not", ["upstream"]
)
BUDGET_LIMIT: Final = Gauge(
    "mirror_upstream_budget_limit",
    "Pulls that a registry allows in its window, where it says so",
    ["upstream"],
    multiprocess_mode="mostrecent",
)
BUDGET_REMAINING: Final = Gauge(
    "mirror_upstream_budget_remaining",
    "Pulls that are left of them, as it last said",
    ["upstream"],
    multiprocess_mode="mostrecent",
)
ENDPOINT_FAILURES: Final = Counter(
    "mirror_endpoint_failures",
    "Calls that one of several endpoints of an upstream did not answer as wanted, by kind of error",
    ["upstream", "endpoint", "error"],
)

FLIGHTS: Final = Gauge("mirror_flights", "Blobs being filled now", multiprocess_mode="livesum")
FOLLOWERS: Final = Gauge(
    "mirror_followers", "Readers of blobs that were not here when they were asked for", multiprocess_mode="livesum"
)
AHEAD: Final = Gauge(
    "mirror_prefetch_ahead_manifests",
    "Manifests whose blobs are being fetched before they are asked for, or wait for that",
    multiprocess_mode="livesum",
)
FILLED: Final = Counter("mirror_fills", "Blob fills that ended, by result", ["upstream", "result"])
FILL_SECONDS: Final = Histogram(
    "mirror_fill_seconds", "From a fill's begin to its commit", ["upstream"], buckets=_TIMES
)
UNCACHED: Final = Counter("mirror_uncached", "Answers passed through because the store could not take them")

VERSION_TAGS_MOVED: Final = Counter(
    "mirror_version_tags_moved", "Tags that look like a version and were moved, by configured upstream", ["upstream"]
)

EVICTED: Final = Counter("mirror_evicted", "Blobs dropped to make room")
EVICTED_BYTES: Final = Counter("mirror_evicted_bytes", "Bytes of blobs dropped to make room")
STORE_BYTES: Final = Gauge("mirror_store_bytes", "Bytes of blobs held", multiprocess_mode="mostrecent")
STORE_BLOBS: Final = Gauge("mirror_store_blobs", "Blobs held", multiprocess_mode="mostrecent")
STORE_LIMIT: Final = Gauge(
    "mirror_store_limit_bytes", "Bytes that blobs may take before eviction", multiprocess_mode="mostrecent"
)
STORE_FAILING: Final = Gauge(
    "mirror_store_failing", "Workers whose store did not take what it was last given", multiprocess_mode="livesum"
)
PARTIAL_BYTES: Final = Gauge(
    "mirror_store_partial_bytes", "Bytes of blobs that are not whole yet", multiprocess_mode="mostrecent"
)
UNREAD_NOTES: Final = Gauge(
    "mirror_unreadable_notes", "Pins and freezes whose files cannot be read", multiprocess_mode="mostrecent"
)
QUARANTINE_BYTES: Final = Gauge(
    "mirror_store_quarantine_bytes", "Bytes of damaged blobs that were set aside", multiprocess_mode="mostrecent"
)
SEALED_MISSES: Final = Counter(
    "mirror_sealed_misses", "Requests for what is not here in a sealed repository, by kind of resource", ["kind"]
)
SCRUBBED_BYTES: Final = Counter("mirror_scrubbed_bytes", "Bytes of blobs read again and hashed")
SCRUB_DAMAGED: Final = Counter("mirror_scrub_damaged", "Blobs found not to be what their digests name")
CERTIFICATE_UNTIL: Final = Gauge(
    "mirror_certificate_expires_timestamp_seconds",
    "When the certificate that clients are shown expires, in epoch seconds; 0 without TLS",
    multiprocess_mode="mostrecent",
)
SCRUB_COMPLETE: Final = Gauge(
    "mirror_scrub_last_complete_timestamp_seconds",
    "When every blob had been hashed, in epoch seconds",
    multiprocess_mode="mostrecent",
)
INDEX_FAILURES: Final = Counter("mirror_index_failures", "Operations that the index did not answer in its budget")
BREAKER: Final = Gauge(
    "mirror_index_breaker_open", "Workers that leave Redis alone, because it has failed", multiprocess_mode="livesum"
)
LOG_LOST: Final = Counter("mirror_log_lost", "Log lines that could not be written")

SYNC_RUNS: Final = Counter("mirror_sync_runs", "Runs of sync rules that ended here", ["rule", "result"])
SYNC_SUCCESS: Final = Gauge(
    "mirror_sync_last_success_timestamp_seconds",
    "When a sync rule last succeeded here, in epoch seconds",
    ["rule"],
    multiprocess_mode="mostrecent",
)

BUILD: Final = Gauge("mirror_build_info", "1; what runs, as labels", ["version", "python"], multiprocess_mode="livemax")
WORKERS: Final = Gauge("mirror_workers", "Workers that serve", multiprocess_mode="livesum")
WORKERS_BLOCKED: Final = Counter(
    "mirror_workers_blocked", "Workers that were killed because their event loop stood still, and replaced"
)
WORKER_STARTS: Final = Counter("mirror_worker_starts", "Workers that began to serve")
LOOP_LAG: Final = Histogram(
    "mirror_loop_lag_seconds",
    "How much later than it should a timer of 100 ms rings: what every request waits as well",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
# The library's own process metrics cover one process only.
CPU_SECONDS: Final = Counter("mirror_process_cpu_seconds", "CPU time of all workers, user and system")
RESIDENT_BYTES: Final = Gauge(
    "mirror_process_resident_bytes",
    "Memory of all workers; pages that they share count for each",
    multiprocess_mode="livesum",
)
DESCRIPTORS: Final = Gauge(
    "mirror_process_open_descriptors", "Open descriptors of the worker that has most", multiprocess_mode="livemax"
)
DESCRIPTORS_LIMIT: Final = Gauge(
    "mirror_process_descriptors_limit", "Descriptors that one worker may have", multiprocess_mode="livemin"
)


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
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # the library leaves its constructor untyped
        yield registry
