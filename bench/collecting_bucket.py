"""Garbage collection and a sweep over a bucket of many hosted blobs: how long they take, and how often they ask it.

    objects are written ──> the records are listed ──> rounds 1 to 4, as on a disk ──> a sweep

Before the first round the machine remembers the names of the records and none of their contents, as after the loss of
its disk. The bucket is SeaweedFS, or one in memory: then the figures are those of the mirror alone.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast

from bench.process import say
from mirror.app.bucket import open_bucket
from mirror.app.collecting import collection_rules
from mirror.app.hosting import disk_parts
from mirror.app.storage import Storage, open_storage
from mirror.collection.collection_report import CollectionReport
from mirror.collection.collection_round import collection_round
from mirror.collection.sweep_report import SweepReport
from mirror.config import Config, load
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.blob_state import no_blob
from mirror.policy.hosted.collection import ClockReading
from mirror.policy.hosted.push_checks import linked
from mirror.policy.records import ManifestRecord
from mirror.ports import Bucket
from mirror.store.objects.object_keys import hosted_key, new_attempt, state_key
from mirror.store.objects.record_listing import RecordListing
from mirror.store.records.record_keys import file_name, links, manifests
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.memory_bucket import MemoryBucket

_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_PER_REPOSITORY: Final = 1000
_PER_IMAGE: Final = 10
#: Of so many blobs, one is in no image.
_UNUSED: Final = 20
#: Seconds by which everything in the store is older than the grace time.
_AGE: Final = 10 * 86400.0
_ROUNDS: Final = 4
_THREADS: Final = 16


class _Counted:
    """A bucket that counts what it is asked."""

    def __init__(self, bucket: Any) -> None:
        self._bucket = bucket
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._bucket, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            self.calls[name] += 1
            return found(*arguments, **more)

        return counted if callable(found) else found


@dataclass(slots=True)
class _Measured:
    """One round, or the sweep. Seconds by the clock and of the processor, and what the bucket was asked."""

    name: str
    seconds: float
    processor: float
    calls: Counter[str]
    report: CollectionReport | SweepReport


def measure(directory: Path, kind: str, blobs: int) -> tuple[list[str], dict[str, Any]]:
    """The lines of a table, and the same figures as JSON."""
    with _bucket(directory, kind) as (config, bucket):
        counted = _Counted(bucket)
        return asyncio.run(_measure(config, counted, blobs))


@contextmanager
def _bucket(directory: Path, kind: str) -> Iterator[tuple[Config, Bucket]]:
    path = directory / "mirror.toml"
    text = f'[store]\nroot = "{directory}/store"\ncapacity = "1TB"\nbucket = "%s"\n[[hosted]]\nname = "corp"\n%s'
    if kind == "memory":
        path.write_text(text % ("gs://memory", ""))
        memory = MemoryBucket()
        # nobody reads the log, which would be longer than the content
        memory.log = cast(Any, deque(maxlen=0))
        yield load(path), memory
        return
    with SeaweedFS(directory / "seaweedfs") as store:
        access = store.access.below("bench")
        path.write_text(text % (access.url, access.table()))
        bucket = open_bucket(config := load(path))
        assert bucket is not None
        yield config, bucket
        bucket.close()


async def _measure(config: Config, bucket: _Counted, blobs: int) -> tuple[list[str], dict[str, Any]]:
    async with open_storage(config, bucket=cast(Bucket, bucket)) as storage:
        use = storage.bucket
        assert use is not None
        await asyncio.to_thread(use.owner.confirm)
        say(f"writing {blobs} blobs")
        begun = time.monotonic()
        objects = _write(bucket, blobs, time.time() - _AGE)
        say(f"{objects} objects in {time.monotonic() - begun:.0f} s; listing the records")
        begun = time.monotonic()
        for _ in RecordListing(use.bucket, use.memory).steps():
            pass
        listed = time.monotonic() - begun
        measured = [*_rounds(config, storage, bucket), _sweep(storage, bucket)]
    rows = [_figures(each) for each in measured]
    facts = {"blobs": blobs, "objects": objects, "listing of the records, s": round(listed, 1)}
    return _table(rows), {"bucket": facts, "rounds": rows}


# -------------------------------------------------------------------------------------------------------- the bucket


def _write(bucket: _Counted, blobs: int, since: float) -> int:
    """Writes so many blobs with states and links, and the images that name them. Returns the number of objects."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return sum(
            threads.map(
                lambda begin: _write_repository(bucket, begin, min(begin + _PER_REPOSITORY, blobs), since),
                range(0, blobs, _PER_REPOSITORY),
            )
        )


def _write_repository(bucket: _Counted, begin: int, end: int, since: float) -> int:
    repo, used, written = Repo("corp", f"bench/repository-{begin // _PER_REPOSITORY}"), [], 0
    for number in range(begin, end):
        digest = Digest.of(str(number).encode())
        _put(bucket, digest, b"x", since)
        bucket.write(f"{links(repo)}/{file_name(digest)}", linked(digest, 1, since).to_json())
        written += 3
        if number % _UNUSED:
            used.append(digest)
    for start in range(0, len(used), _PER_IMAGE):
        content = _manifest(used[start : start + _PER_IMAGE])
        digest = Digest.of(content)
        _put(bucket, digest, content, since)
        record = ManifestRecord(digest, _MANIFEST, len(content), since)
        bucket.write(f"{manifests(repo)}/{file_name(digest)}", record.to_json())
        written += 3
    return written


def _put(bucket: _Counted, digest: Digest, content: bytes, since: float) -> None:
    attempt = new_attempt()
    bucket.write(hosted_key(digest, attempt), content)
    bucket.write(state_key(digest), no_blob(digest).stored(attempt, len(content), since).to_json())


def _manifest(blobs: list[Digest]) -> bytes:
    kinds = ["config.v1+json", *["layer.v1.tar"] * (len(blobs) - 1)]
    config, *layers = (
        {"mediaType": f"application/vnd.oci.image.{kind}", "digest": str(digest), "size": 1}
        for kind, digest in zip(kinds, blobs, strict=True)
    )
    return json.dumps({"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}).encode()


# ------------------------------------------------------------------------------------------------------------- rounds


def _rounds(config: Config, storage: Storage, bucket: _Counted) -> Iterator[_Measured]:
    assert storage.blobs is not None
    parts = replace(disk_parts(config, storage), contents=storage.blobs.contents().passing())
    rules, now = collection_rules(config), time.time()
    for number in range(_ROUNDS):
        at = now + number * (rules.grace + 60.0)
        report = CollectionReport(at)

        def collect(at: float = at, report: CollectionReport = report) -> None:
            with ThreadPoolExecutor(_THREADS) as pool:
                for _ in collection_round(parts, rules, lambda: ClockReading(at, at), report, pool=pool):
                    pass

        yield _timed(f"round {number + 1}", bucket, collect, report)


def _sweep(storage: Storage, bucket: _Counted) -> _Measured:
    sweep, report = storage.hosted.sweep, SweepReport(time.time())
    assert sweep is not None

    def look() -> None:
        for page in sweep.pages(""):
            report.add(page)

    return _timed("sweep", bucket, look, report)


def _timed(name: str, bucket: _Counted, work: Callable[[], None], report: Any) -> _Measured:
    bucket.calls.clear()
    clock, began = time.monotonic(), time.process_time()
    work()
    measured = _Measured(name, time.monotonic() - clock, time.process_time() - began, Counter(bucket.calls), report)
    say(f"{name}: {measured.seconds:.0f} s, {measured.processor:.0f} s of the processor")
    return measured


# ------------------------------------------------------------------------------------------------------------- figures


def _figures(measured: _Measured) -> dict[str, Any]:
    report = measured.report
    done: dict[str, Any] = {
        "": measured.name,
        "seconds by the clock": round(measured.seconds, 1),
        "processor, seconds": round(measured.processor, 1),
    }
    done |= {verb: measured.calls[verb] for verb in ("read", "open", "write", "head", "delete", "list")}
    if isinstance(report, CollectionReport):
        return done | {
            "manifests": report.manifests,
            "links queued, or gone": report.links_queued + report.links,
            "blobs queued, or gone": report.blobs_queued + report.blobs,
        }
    return done | {"manifests": 0, "links queued, or gone": 0, "blobs queued, or gone": report.deleted}


def _table(rows: list[dict[str, Any]]) -> list[str]:
    names = [name for name in rows[0] if name]
    lines = ["| figure | " + " | ".join(row[""] for row in rows) + " |", "|---" * (len(rows) + 1) + "|"]
    return lines + [f"| {name} | " + " | ".join(f"{row[name]:,}" for row in rows) + " |" for name in names]
