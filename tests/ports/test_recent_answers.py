"""What workers remember of their last answers, in memory and on disk."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.errors import StoreError
from mirror.inspect.recent_answers import RecentAnswers
from mirror.policy.last_answer import LastAnswer
from mirror.repository.answers import Outcome
from mirror.store.local.answer_files import LocalRecent, read_recent
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.locks import FileLocks


@dataclass
class _Said:
    repository: str | None = "docker.io/library/app"
    reference: str | None = "v1"
    outcome: Outcome = Outcome.HIT
    upstream: str | None = "docker.io"
    digest: object = None
    tag_override: str | None = None
    error: str | None = None
    sent: int = 7


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of a store that has been opened."""
    made = Layout(tmp_path / "store")
    LocalStore(made)
    return made


def _worker(layout: Layout) -> LocalRecent:
    return LocalRecent(layout, FileLocks(layout))


def _noted(*references: str, most: int = 500, at: float = 5.0) -> RecentAnswers:
    recent = RecentAnswers(most=most, now=lambda: at)
    for one in references:
        recent.note("manifest", "GET", 200, _Said(reference=one), 0.5, "1-a")
    return recent


def _files(layout: Layout) -> list[str]:
    return sorted(one.name for one in layout.records("recent").iterdir())


def test_the_memory_is_bounded() -> None:
    """The least recent ones leave; those that are asked for again stay."""
    recent = _noted("a", "b", "c", "a", "d", most=3)
    assert [one.reference for one in recent.answers()] == ["c", "a", "d"]


def test_layers_do_not_push_out_tags() -> None:
    """Each kind of resource has its own bound."""
    recent = _noted("v1", most=3)
    for number in range(10):
        recent.note("blob", "GET", 200, _Said(reference=f"sha256:{number}"), 0.5, "1-a")
    assert [one.reference for one in recent.answers() if one.kind == "manifest"] == ["v1"]


def test_secrets_are_not_kept() -> None:
    """Queries and user parts of URLs, and credentials, are cut out of what went wrong, which is cut short, too."""
    recent = RecentAnswers()
    trouble = "https://me:geheim@host/x?sig=geheim said Bearer geheimgeheim " + "x" * 1000
    recent.note("blob", "GET", 502, _Said(error=trouble), 0.5, "1-a")
    [answer] = recent.answers()
    assert "geheim" not in answer.error
    assert len(answer.error) <= 300


def test_workers_have_files_of_their_own(layout: Layout) -> None:
    """Read together, the last answer about each thing counts; the file of one that ended goes to the next."""
    one, two = _worker(layout), _worker(layout)
    one.save(_noted("v1", "v2", at=1.0).answers())
    two.save(_noted("v1", at=2.0).answers())
    assert _files(layout) == ["0.json", "1.json"]
    assert [(answer.reference, answer.at) for answer in read_recent(layout)] == [("v1", 2.0), ("v2", 1.0)]
    one.close()
    three = _worker(layout)
    assert [answer.reference for answer in three.load()] == ["v1", "v2"]
    three.save(_noted("v3").answers())
    assert _files(layout) == ["0.json", "1.json"]
    for worker in (two, three):
        worker.close()


async def test_the_newest_answer_is_the_first_even_within_a_millisecond(layout: Layout) -> None:
    """As a HEAD and the GET after it may come, to one worker or to two."""
    times = iter((5.0001, 5.0002, 5.0003))
    one, another = (RecentAnswers(_worker(layout), now=lambda: next(times)) for _ in range(2))
    for worker, method in ((one, "HEAD"), (one, "GET"), (another, "PUT")):
        worker.note("manifest", method, 200, _Said(), 0.0001, "1-a")
    for worker in (another, one):
        await worker.flush()
    assert [answer.method for answer in read_recent(layout)] == ["PUT", "GET", "HEAD"]


@pytest.mark.parametrize("content", [b"", b"[", b"{}", b'[1, {"at": 1}]', b"\xff", b"[" * 100_000])
def test_a_damaged_file_counts_as_absent(layout: Layout, content: bytes) -> None:
    """After a power cut, or because somebody else wrote there."""
    worker = _worker(layout)
    worker.save(_noted("v1").answers())
    (layout.records("recent") / "0.json").write_bytes(content)
    assert read_recent(layout) == []
    assert worker.load() == []
    worker.close()


def test_nothing_written_yet(layout: Layout) -> None:
    """A store without the folder has no last answers."""
    assert read_recent(layout) == []


async def test_the_next_worker_goes_on(layout: Layout) -> None:
    """What an earlier worker has left is kept, and is older than what this one has answered meanwhile."""
    before = _worker(layout)
    before.save(_noted("old", "v1", at=1.0).answers())
    before.close()
    worker = _worker(layout)
    recent = RecentAnswers(worker, now=lambda: 2.0)
    recent.note("manifest", "GET", 200, _Said(), 0.5, "1-a")
    running = asyncio.create_task(recent.run())
    try:
        async with asyncio.timeout(60):
            while {one.reference for one in read_recent(layout) if one.at == 2.0} != {"v1"}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert {(one.reference, one.at) for one in read_recent(layout)} == {("old", 1.0), ("v1", 2.0)}
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        worker.close()


async def test_a_disk_that_fails_costs_nothing_else() -> None:
    """What cannot be written is written later."""
    saved: list[LastAnswer] = []

    class Failing:
        broken = True

        def load(self) -> Sequence[LastAnswer]:
            raise StoreError("broken")

        def save(self, answers: Sequence[LastAnswer]) -> None:
            if self.broken:
                raise StoreError("broken")
            saved.extend(answers)

    keeping = Failing()
    recent = RecentAnswers(keeping)
    recent.note("manifest", "GET", 200, _Said(), 0.5, "1-a")
    await recent.flush()
    keeping.broken = False
    await recent.flush()
    assert [one.reference for one in saved] == ["v1"]


class _Slow:
    """A file that is at work until it is let go, and tells when it was asked while it was."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.calls: list[str] = []

    def _work(self, name: str) -> None:
        self.calls.append(f"{name} begins")
        self.begun.set()
        assert self.go_on.wait(60)
        self.calls.append(f"{name} ends")

    def load(self) -> Sequence[LastAnswer]:
        self._work("load")
        return []

    def save(self, _answers: Sequence[LastAnswer]) -> None:
        self._work("save")


async def test_stopped_while_it_takes_over() -> None:
    """Right after its start: the last answers wait for their turn at the file, and so does who stops it."""
    keeping = _Slow()
    recent = RecentAnswers(keeping)
    recent.note("manifest", "GET", 200, _Said(), 0.5, "1-a")
    running = asyncio.create_task(recent.run())
    await asyncio.to_thread(keeping.begun.wait)
    flushing = asyncio.create_task(recent.flush())
    running.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not running.done()
    assert keeping.calls == ["load begins"]
    keeping.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    await flushing
    assert keeping.calls == ["load begins", "load ends", "save begins", "save ends"]


async def test_stopped_while_it_writes() -> None:
    """What has begun is written before the file is let go."""
    keeping = _Slow()
    recent = RecentAnswers(keeping)
    recent.note("manifest", "GET", 200, _Said(), 0.5, "1-a")
    flushing = asyncio.create_task(recent.flush())
    await asyncio.to_thread(keeping.begun.wait)
    flushing.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not flushing.done()
    keeping.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    assert keeping.calls == ["save begins", "save ends"]
