"""Row 81: names without end, made up by clients, leave memory, metrics and the disk bounded.

The bounds are those that the caches state (`shown`). `MIRROR_FAULTS_NAMES` is the number of names that go through the
caches in memory.
"""

from __future__ import annotations

import asyncio
import gc
import re
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from mirror.aio.caches import shown
from mirror.aio.memo import Memo
from mirror.app import upstreams
from mirror.config import Config
from mirror.inspect import recent_answers
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.image_misses import Miss
from mirror.repository.answers import Outcome
from mirror.repository.miss_report import Misses
from mirror.server.registry.handler import _parse_short
from mirror.server.registry.pull import RequestRecord
from tests.faults.conftest import Tally
from tests.support.fake_registry import FakeRegistry, status
from tests.support.live_mirror import LiveMirror, live_mirror, noise, until
from tests.support.memory_store import MemoryCatalog, MemoryStore

_NAMES = 200_000
#: Names between two looks, and turns for the loop.
_PART = 10_000
#: What a worker remembers of names that clients ask for.
_CACHES = ("routes", "repositories", "missing images", "missing blobs")


@pytest.fixture(autouse=True)
def no_caches_of_earlier_tests() -> None:
    """What is shown is added up over all caches of the process."""
    gc.collect()


class _Unwritten:
    """A report of misses that is never written."""

    def add(self, misses: Iterable[Miss]) -> None:
        """As `MissRecords`."""


async def test_81_names_in_memory(
    registry: FakeRegistry, mirror: LiveMirror, times: Callable[[str, int], int], tally: Tally
) -> None:
    """Row 81: names, tags and digests that are asked for once each never fill what a worker remembers of requests,
    repositories, answers and misses, however many there are.
    """
    # caches of earlier tests would be added to those of the same name
    gc.collect()
    names = times("NAMES", _NAMES)
    resolve = mirror.app.router.resolve
    missed = Misses(_Unwritten(), MemoryStore(), MemoryCatalog(), exclusive=nullcontext)
    answers = recent_answers.RecentAnswers()
    digest = Digest.of(b"x")
    most: Counter[str] = Counter()
    for number in range(names):
        name = f"made-up/n{number}"
        resolve(name, host="x", ns=None)
        _parse_short(f"/v2/{name}/manifests/v{number}")
        repo = Repo("docker.io", name)
        missed.manifest(repo, f"v{number}")
        missed.blob(repo, digest, named=True)
        told = RequestRecord(repository=name, reference=f"v{number}", outcome=Outcome.MISS)
        answers.note("manifest", "GET", 404, told, 0.0, "x")
        if number % _PART == _PART - 1 or number == names - 1:
            await asyncio.sleep(0)
            caches = shown()
            seen = {
                name: caches[name].entries for name in ("routes", "repositories", "missing images", "missing blobs")
            }
            assert all(caches[name].entries <= caches[name].limit < names for name in seen), caches
            most |= Counter({**seen, "answers": len(answers.answers()), "parsed": _parse_short.cache_info().currsize})
    tally(names=names, **{name.replace(" ", "_"): count for name, count in most.items()})
    assert most["answers"] <= 2 * recent_answers.MOST
    assert most["parsed"] <= 4096


async def test_81_answers_in_the_memo(times: Callable[[str, int], int], tally: Tally) -> None:
    """Row 81: answers that are remembered for a while, 404s among them, are bounded in number and in bytes."""
    names = times("NAMES", _NAMES) // 2
    memo = Memo()
    most = largest = 0
    for number in range(names):
        await memo.put(f"tag docker.io/made-up:{number}", {"status": 404, "why": "x" * (number % 200)}, 3600)
        most, largest = max(most, memo.stats().entries), max(largest, memo.stats().bytes or 0)
    tally(names=names, entries=most, bytes=largest)
    assert most == 10_000
    assert largest <= 64 << 20
    await memo.aclose()


async def test_81_hosts_under_a_wildcard(tmp_path: Path, tally: Tally) -> None:
    """Row 81: invented hosts under a wildcard never have more upstreams than the bound, and a configured registry keeps
    its upstream and its connections; users of dropped upstreams are notified.
    """
    content: dict[str, Any] = {"store": {"root": tmp_path / "store"}}
    content["upstream"] = [{"name": "*.example"}, {"name": "docker.io"}]
    config = Config(**content)
    memo = Memo()
    told = 0

    def forgotten() -> None:
        nonlocal told
        told += 1

    with ThreadPoolExecutor(1) as executor:
        made = upstreams.Upstreams(config, executor, memo)
        made.on_given_up(forgotten)
        made.open()
        named = made.named("docker.io")
        most = 0
        for number in range(5_000):
            used = made.named("in-use.example")
            made.named(f"h{number}.example")
            if number % 50 == 0:
                most = max(most, len(made.states()))
            assert made.named("in-use.example") is used
        tally(hosts=5_000, upstreams=most)
        assert most <= upstreams.MOST_HOSTS + 1
        assert told == len(made._parting) > 0
        assert made.named("docker.io") is named
        await made.aclose()
        assert not made._parting
    await memo.aclose()


async def test_81_hosts_through_the_whole_mirror(tmp_path: Path) -> None:
    """Row 81: repositories that were made for hosts that are given up are given up with them."""
    gc.collect()
    wildcard: dict[str, dict[str, str]] = {"docker.io": {}, "*.example": {}}
    async with live_mirror(tmp_path / "store", wildcard) as mirror:
        for number in range(1_000):
            mirror.app.router.resolve("team/app", host="x", ns=f"h{number}.example")
            if number % 50 == 49:
                assert shown()["repositories"].entries <= upstreams.MOST_HOSTS


async def test_81_labels_and_files(registry: FakeRegistry, mirror: LiveMirror, tally: Tally) -> None:
    """Row 81: requests through the whole mirror for tags, repositories and blobs that do not exist leave no file, no
    time series and no task behind; errors of upstream neither.
    """

    async def ask(number: int) -> None:
        for target in (
            f"/v2/library/app/manifests/t{number}",
            f"/v2/made-up/n{number}/manifests/v1",
            f"/v2/library/app/blobs/{Digest.of(b'%d' % number)}",
            f"/v2/made-up/n{number}/tags/list",
            f"/v2/made-up/n{number}/referrers/{Digest.of(b'%d' % number)}",
            f"/v2/made-up.example/n{number}/manifests/v1",
            f"/v2/n{number}/manifests/v1?ns=h{number}.example",
            f"/x{number}",
        ):
            answer = await mirror.ask(target, headers={"Host": f"h{number}.example"})
            assert answer.status < 500 or answer.status in (502, 503), answer

    def files() -> set[str]:
        return {str(file) for file in mirror.root.rglob("*") if file.is_file()}

    async def series() -> set[bytes]:
        text = (await mirror.ask("/metrics")).body
        return {line.rpartition(b" ")[0] for line in text.splitlines() if not line.startswith(b"#")}

    registry.add_image("library/app", "v1", [noise(100)])
    await mirror.ask("/v2/library/app/manifests/v1")
    await mirror.rebuilt()
    for number in range(3):
        await ask(number)
    registry.fail("manifests", status(500), times=3)
    await ask(3)
    before, told = files(), await series()
    tasks = len(asyncio.all_tasks())
    for number in range(4, 200):
        await ask(number)
    registry.fail("manifests", status(500), times=3)
    await ask(200)
    await mirror.idle()
    # what a worker was asked last is a file, and a lock, of its own: made once, perhaps only now
    new = {file for file in files() - before if "/recent" not in file}
    locks = {file for file in new if "/locks/" in file}
    left = new - locks
    tally(names=200, files=len(left), series=len(await series() - told))
    # the names of locks are bounded: three digits of a hash, the name of a task that every store has, or one of the 256
    # locks for changes of records, which a task of every minute may have taken for the first time
    assert [file for file in locks if not re.fullmatch("[0-9a-f]{3}|[a-z]+|record-[0-9a-f]{2}", Path(file).name)] == []
    # a task of every minute may have written its file: far fewer than the names that were made up
    assert len(left) < 10, left
    assert await series() == told
    await until(lambda: len(asyncio.all_tasks()) <= tasks + 2)
