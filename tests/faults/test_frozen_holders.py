"""Row 129: a replica that does the work for all is frozen (SIGSTOP) in the middle, for longer than its lease lasts.
Another one takes over and does the work; then the first one's last request arrives at the bucket, and it goes on.

Its requests go through this process, which decides when each arrives. The clocks of leases are the test's, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mirror.bucket_cache.cached_keys import blob_key
from mirror.collection.bucket_sweep import last_sweep
from mirror.errors import AlreadyRunning
from mirror.index.cached_book import CachedBook
from mirror.oci.digest import Digest
from mirror.policy.events.changes import ChangeKind, HostedChange
from mirror.store.objects.object_keys import hosted_key
from tests.support.clock import Clock
from tests.support.collecting import APP, GRACE
from tests.support.faketime import FakeTime
from tests.support.memory_bucket import MemoryBucket
from tests.support.shared_bucket import Held, SharedBucket
from tests.support.work_site import OTHER, WorkSite

_ROOT = Path(__file__).parents[2]
#: Seconds; far beyond what a busy machine needs.
_PATIENT = 300.0


class Frozen:
    """The process of the replica that is frozen."""

    def __init__(self, root: Path, socket: Path, work: str, later: float, faked: FakeTime | None = None) -> None:
        command = [sys.executable, "-m", "tests.support.work_site", str(root), str(socket), work, str(later)]
        environment = {**os.environ, **(faked.environment if faked else {})}
        self._process = subprocess.Popen(command, cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    def freeze(self) -> None:
        """The kernel stops it; returns once it stands still."""
        os.kill(self._process.pid, signal.SIGSTOP)
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)

    def thaw(self) -> str:
        """It goes on; returns how its work ended."""
        os.kill(self._process.pid, signal.SIGCONT)
        return self.ended()

    def ended(self) -> str:
        """How its work ended."""
        out, _ = self._process.communicate(timeout=_PATIENT)
        assert self._process.returncode == 0
        # the log goes to the same place
        ended: str = json.loads(out.splitlines()[-1])["ended"]
        return ended

    def end(self) -> None:
        """Repeatable."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


class Stage:
    """A bucket, the replica that stays, and the one that is frozen."""

    def __init__(self, root: Path, shared: SharedBucket, stays: WorkSite, steady: Clock) -> None:
        self.root = root
        self.shared = shared
        self.bucket = shared.bucket
        self.stays = stays
        self.steady = steady
        self.frozen: Frozen | None = None

    def begin(self, work: str, verb: str, text: str, *, later: float = 0.0) -> Held:
        """Let the other replica work until it has sent such a request, and freeze it."""
        held = self.shared.hold(verb, text)
        self.frozen = Frozen(self.root / "frozen", self.root / "socket", work, later)
        held.arrived()
        self.frozen.freeze()
        return held

    async def take_over(self, work: str) -> Any:
        """The replica that stays does the work, once the lease is over. Returns what it has done."""
        assert await _tried(self.stays.work[work]()) is None
        self.steady.time += 20.0
        with capture_logs() as logs:
            done = await self.stays.work[work]()
        assert "lease taken over" in [each["event"] for each in logs]
        assert done is not None
        return done

    async def work_on(self, work: str) -> Any:
        """The replica that stays does the work once more."""
        return await self.stays.work[work]()

    async def thaw(self, held: Held) -> str:
        """The request arrives, and the replica goes on; its lease is over by its own clock, too."""
        assert self.frozen is not None
        self.shared.clock += 30.0
        await asyncio.to_thread(held.let)
        return await asyncio.to_thread(self.frozen.thaw)

    def record(self, kind: str, key: str) -> dict[str, Any]:
        """A record of the work."""
        found = self.stays.json(kind).get(key)
        assert found is not None
        return found


async def _tried(work: Any) -> Any:
    """What work returns; None if another replica does it."""
    with suppress(AlreadyRunning):
        return await work
    return None


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    bucket, steady = MemoryBucket(), Clock(0.0)
    (tmp_path / "frozen").mkdir()
    stays = await asyncio.to_thread(WorkSite, tmp_path / "stays", bucket, "stays", steady)
    with SharedBucket(bucket, tmp_path / "socket") as shared:
        stage = Stage(tmp_path, shared, stays, steady)
        yield stage
        if stage.frozen is not None:
            await asyncio.to_thread(stage.frozen.end)
    await stays.leases.aclose()
    stays.outbox.close()


def _thread(work: Callable[[], Any]) -> Any:
    return asyncio.to_thread(work)


async def test_129_a_late_collection_of_a_blob_that_is_needed_again(stage: Stage) -> None:
    """It was pushed again after the other replica had taken over: its state has another version."""
    stays = stage.stays
    blob = await _thread(lambda: stays.blobs.put(Digest.of(b"layer"), b"layer").digest)
    await stays.collection()
    held = await _thread(lambda: stage.begin("collection", "write", f"{blob.hex}", later=GRACE + 1))
    await stage.take_over("collection")
    await _thread(lambda: stays.blobs.put(blob, b"layer"))
    ended = await stage.thaw(held)
    assert ended == "returned"
    assert await _thread(lambda: stays.blob_site.contents.read(blob, 100)) == b"layer"


async def test_129_a_late_deletion_of_bytes_that_are_there_again(stage: Stage) -> None:
    """It names a key that nobody uses any more; the report of the round is that of the other replica."""
    stays = stage.stays
    blob = await _thread(lambda: stays.blobs.put(Digest.of(b"layer"), b"layer").digest)
    await stays.collection()
    held = await _thread(lambda: stage.begin("collection", "delete", f"{blob.hex}", later=GRACE + 1))
    await _thread(lambda: stays.blobs.put(blob, b"layer"))
    done = await stage.take_over("collection")
    assert await stage.thaw(held) == "returned"
    assert await _thread(lambda: stays.blob_site.contents.read(blob, 100)) == b"layer"
    assert (await _thread(lambda: stage.record("collection", "last")))["begunAt"] == done.begun_at


async def test_129_a_late_note_of_a_sweep(stage: Stage) -> None:
    """The other replica has swept to the end, and that stays so."""
    stays = stage.stays
    for content in (b"one", b"two", b"three"):
        await asyncio.to_thread(stays.blobs.put, Digest.of(content), content)
    held = await _thread(lambda: stage.begin("sweep", "write", "state/collection/"))
    done = await stage.take_over("sweep")
    assert done.ended_at is not None
    assert await stage.thaw(held) == "lease lost"
    last = await _thread(lambda: last_sweep(stays.json("collection")))
    assert (last.objects, last.ended_at) == (3, done.ended_at)


async def test_129_a_late_deletion_of_an_object_by_a_sweep(stage: Stage) -> None:
    """An object that no state names has a key that no push uses; the blob was pushed meanwhile."""
    stays = stage.stays
    blob = Digest.of(b"layer")
    orphan = hosted_key(blob, "0" * 16)
    await _thread(lambda: stage.bucket.write(orphan, b"layer"))
    stage.bucket.date(orphan, 0.0)
    other = await _thread(lambda: stays.blobs.put(blob, b"layer"))
    stays.later(10)
    held = await _thread(lambda: stage.begin("sweep", "delete", f"{blob.hex}.0000", later=10))
    await stage.take_over("sweep")
    assert await stage.thaw(held) == "lease lost"
    assert await _thread(lambda: stays.blob_site.contents.read(other.digest, 100)) == b"layer"


async def test_129_a_late_deletion_by_retention(stage: Stage) -> None:
    """The tag was pushed again, so the deletion meets another version; the new image stays, whole."""
    stays = stage.stays
    image = await _thread(lambda: stays.push_image(APP, b"old"))
    stays.later(1)
    held = await _thread(lambda: stage.begin("retention", "write", "/_tags/v1", later=1))
    await stage.take_over("retention")
    assert await asyncio.to_thread(stays.catalog.get_manifest, APP, image) is None
    new = await _thread(lambda: stays.push_image(APP, b"new"))
    assert await stage.thaw(held) in ("lease lost", "returned")
    record = await _thread(lambda: stays.catalog.get_tag(APP, "v1"))
    assert record is not None
    assert record.digest == new
    assert (await _thread(lambda: stage.record("retention", "round")))["complete"] is True


async def test_129_a_late_eviction_costs_no_more_than_a_fetch(stage: Stage) -> None:
    """Cached objects have keys by digest: one that was put again since is gone, and can be put again."""
    blob = Digest.of(b"cached")
    key = blob_key(blob)
    await _thread(lambda: stage.bucket.write(key, b"cached"))
    held = await _thread(lambda: stage.begin("eviction", "delete", blob.hex))
    upkeep = await stage.take_over("eviction")
    assert await _thread(lambda: stage.bucket.head(key)) is None
    await _thread(lambda: stage.bucket.write(key, b"cached"))
    assert await stage.thaw(held) == "returned"
    assert await _thread(lambda: stage.bucket.head(key)) is None
    # whoever reads it finds out, and fetches it from upstream
    await upkeep.list_all()
    book = CachedBook(stage.stays.blob_site.layout.cached_book, "s3://bucket")
    assert await _thread(lambda: book.find(blob)) is None
    book.close()


async def test_129_a_late_record_of_a_replication(stage: Stage) -> None:
    """What the other replica has recorded of the rule, and of each tag, stays."""
    stays = stage.stays
    await _thread(lambda: stays.push_image(APP, b"one", tag="v1"))
    held = await _thread(lambda: stage.begin("replication", "write", "state/replicated/"))
    await _thread(lambda: stays.push_image(APP, b"two", tag="v2"))
    await _thread(stays.list_all)
    report = await stage.take_over("replication")
    assert report.ok
    seen = stays.json("replicated")
    before = await _thread(lambda: list(seen.all()))
    assert await stage.thaw(held) == "lease lost"
    assert await _thread(lambda: list(seen.all())) == before
    assert (await _thread(lambda: stage.record("replication", "copy")))["ok"] is True


async def test_129_a_replication_that_comes_back_moves_no_further_tag(stage: Stage) -> None:
    """The other registry knows of no lease, so it is looked at before each change there. A tag whose request was under
    way is found by the next comparison.
    """
    stays = stage.stays
    for tag in ("v1", "v2", "v3"):
        await asyncio.to_thread(stays.push_image, APP, tag.encode(), tag=tag)
    held = await _thread(lambda: stage.begin("replication", "write", f"{OTHER}{APP.name}/v2"))
    report = await stage.take_over("replication")
    assert report.ok
    for tag in ("v1", "v2", "v3"):
        await asyncio.to_thread(stays.push_image, APP, b"new " + tag.encode(), tag=tag)
    report = await stage.work_on("replication")
    assert (report.ok, report.conflicts) == (True, [])
    wanted = {tag: str(await asyncio.to_thread(stays.pointed, tag)) for tag in ("v1", "v2", "v3")}
    assert await stage.thaw(held) == "lease lost"
    found = stage.bucket.content()
    assert [tag for tag in wanted if found[f"{OTHER}{APP.name}/{tag}"].decode() != wanted[tag]] == ["v2"]
    report = await stage.work_on("replication")
    assert [conflict.partition(": ")[0] for conflict in report.conflicts] == [f"{APP}:v2"]


async def test_129_a_late_record_of_a_sync(stage: Stage) -> None:
    """The run of the other replica is the last one."""
    held = await _thread(lambda: stage.begin("sync", "write", "state/sync-runs/"))
    await stage.take_over("sync")
    last = await _thread(lambda: stage.record("sync-runs", "nightly"))
    assert await stage.thaw(held) == "lease lost"
    assert await _thread(lambda: stage.record("sync-runs", "nightly")) == last


async def test_129_a_late_adoption_loses_no_event(stage: Stage) -> None:
    """The change was confirmed by its own replica, which had been taken for gone, while the adopter was frozen: the
    adopter's mark meets another version.
    """
    stays = stage.stays
    change = HostedChange(ChangeKind.PUSH, APP, "anna", Digest.of(b"x"), ("v1",))
    claim = json.dumps({"key": str(APP), "claim": change.to_json()}).encode()
    await _thread(lambda: stage.bucket.write("runs/gone", b'{"ended": true}'))
    key = "events/gone/gone-1"
    version = await _thread(lambda: stage.bucket.write(key, claim))
    held = await _thread(lambda: stage.begin("adoption", "write", key))
    said = json.loads(claim)
    said |= {"order": "1", "events": [["gone-1-0", "mirror.image.pushed", str(APP), "{}", 1000.0, ["ci"]]]}
    await _thread(lambda: stage.bucket.write(key, json.dumps(said).encode(), expect=version))
    await stage.take_over("adoption")
    assert await stage.thaw(held) == "returned"
    [event] = await _thread(lambda: stays.outbox.heads("ci", (), 9))
    assert event.id == "gone-1-0"
    assert not [each for each in stage.bucket.content() if each.startswith("events/gone")]


async def test_124_a_replica_whose_clock_is_a_day_ahead_collects_nothing(stage: Stage) -> None:
    """For it, everything has waited for long enough. It says why, and others go on."""
    stays, faked = stage.stays, FakeTime(stage.root)
    blob = await _thread(lambda: stays.blobs.put(Digest.of(b"layer"), b"layer").digest)
    await stays.collection()
    faked.set(1)
    stage.frozen = Frozen(stage.root / "frozen", stage.root / "socket", "collection", 2 * GRACE, faked)
    said = await asyncio.to_thread(stage.frozen.ended)
    assert "ahead of that of the bucket" in said
    assert await _thread(lambda: stays.blob_site.contents.read(blob, 100)) == b"layer"
    assert await stays.collection() is not None


async def test_124_a_clock_that_jumps_loses_no_lease(stage: Stage) -> None:
    """Neither to its holder nor to others: leases are counted by clocks that nobody sets."""
    stays, faked = stage.stays, FakeTime(stage.root)
    await _thread(lambda: stays.blobs.put(Digest.of(b"layer"), b"layer"))
    held = stage.shared.hold("write", "state/collection/")
    stage.frozen = Frozen(stage.root / "frozen", stage.root / "socket", "sweep", 0.0, faked)
    await asyncio.to_thread(held.arrived)
    assert await stays.sweep() is None
    faked.set(1)
    stage.steady.time += 19.0
    assert await stays.sweep() is None
    await asyncio.to_thread(held.let)
    assert await asyncio.to_thread(stage.frozen.ended) == "returned"
    last = await _thread(lambda: last_sweep(stays.json("collection")))
    assert last.ended_at is not None
