"""What every `ContentIndex` does. A test class inherits `IndexSuite` and supplies `index` and `another`."""

from __future__ import annotations

import asyncio
import random

from mirror.index.memory import MemoryIndex
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import ContentRecord, Usage
from mirror.ports import ContentIndex

__all__ = ["IndexSuite", "digest", "record"]

ALPINE = Repo("docker.io", "library/alpine")
PAUSE = Repo("localhost:5000", "pause")


def digest(number: int) -> Digest:
    """A digest of its own for each number."""
    return Digest.of(str(number).encode())


def record(number: int, *, size: int = 10, last_used: float = 100.0, pin: str | None = None) -> ContentRecord:
    """A record of `digest(number)`."""
    return ContentRecord(digest(number), size, last_used, pin)


class IndexSuite:
    """Fixtures to supply: `index`, empty, and `another`, a second one on the same data."""

    async def test_remembers_what_was_put(self, index: ContentIndex) -> None:
        """A record comes back as it was put, of either algorithm, with its pin."""
        plain = ContentRecord(Digest.of(b"a"), 0, 1732419199.125)
        pinned = ContentRecord(Digest.of(b"b", "sha512"), 2**45 + 1, 1732419200.5, "base image: 'späť'\n+1")
        await index.put([plain, pinned])
        assert await index.get(plain.digest) == plain
        assert await index.get(pinned.digest) == pinned

    async def test_the_unknown_is_none(self, index: ContentIndex) -> None:
        """A digest that was never put is not remembered, nor linked, and an empty index has no marker."""
        assert await index.get(digest(1)) is None
        assert await index.linked(ALPINE, digest(1)) is None
        assert await index.marker() is None
        assert await index.coldest(10) == []
        assert await index.usage() == Usage(0, 0)

    async def test_putting_nothing_is_nothing(self, index: ContentIndex) -> None:
        """Empty batches are harmless."""
        await index.put([])
        await index.touch({})
        await index.drop([])
        await index.link(ALPINE, {})
        await index.unlink(ALPINE, [])
        assert await index.usage() == Usage(0, 0)

    async def test_put_twice_counts_once(self, index: ContentIndex) -> None:
        """The same record put again, even within one batch, changes no counter."""
        await index.put([record(1), record(1), record(2, size=5)])
        await index.put([record(1)])
        assert await index.usage() == Usage(2, 15)

    async def test_a_new_size_replaces_the_old_one(self, index: ContentIndex) -> None:
        """Bytes are counted by the size that was put last."""
        await index.put([record(1, size=10)])
        await index.put([record(1, size=3)])
        assert await index.usage() == Usage(1, 3)
        assert await index.coldest(1) == [record(1, size=3)]

    async def test_the_later_use_stays(self, index: ContentIndex) -> None:
        """Putting an earlier time of last use does not make a blob older, a later one makes it younger."""
        await index.put([record(1, last_used=200)])
        await index.put([record(1, last_used=100)])
        assert await index.get(digest(1)) == record(1, last_used=200)
        await index.put([record(1, last_used=300)])
        assert await index.get(digest(1)) == record(1, last_used=300)

    async def test_a_pin_is_only_replaced_by_another(self, index: ContentIndex) -> None:
        """Putting a record without a pin leaves the pin; with another, replaces it; and it may pin afresh."""
        await index.put([record(1, pin="first"), record(2, last_used=500)])
        await index.put([record(1, last_used=150)])
        assert await index.get(digest(1)) == record(1, last_used=150, pin="first")
        await index.put([record(1, pin="second"), record(2, pin="third")])
        assert await index.get(digest(1)) == record(1, last_used=150, pin="second")
        assert await index.get(digest(2)) == record(2, last_used=500, pin="third")
        assert await index.coldest(10) == []

    async def test_drop_forgets_blob_and_pin_but_not_links(self, index: ContentIndex) -> None:
        """What is dropped is not counted any more, its pin does not come back, its links stay; again is harmless."""
        await index.put([record(1, pin="x"), record(2), record(3)])
        await index.link(ALPINE, {digest(1): 10})
        for _ in range(2):
            await index.drop([digest(1), digest(2), digest(9)])
            assert await index.get(digest(1)) is None
            assert await index.usage() == Usage(1, 10)
        assert await index.linked(ALPINE, digest(1)) == 10
        await index.put([record(1)])
        assert await index.get(digest(1)) == record(1)

    async def test_touch_moves_forward_only_and_adds_nothing(self, index: ContentIndex) -> None:
        """Later times are taken, for pinned blobs too; earlier ones and unknown digests are not."""
        await index.put([record(1), record(2), record(3, pin="x")])
        await index.touch({digest(1): 300.5, digest(2): 50.0, digest(3): 400.0, digest(4): 500.0})
        assert await index.get(digest(1)) == record(1, last_used=300.5)
        assert await index.get(digest(2)) == record(2)
        assert await index.get(digest(3)) == record(3, last_used=400, pin="x")
        assert await index.get(digest(4)) is None
        assert await index.usage() == Usage(3, 30)
        assert await index.coldest(9) == [record(2), record(1, last_used=300.5)]

    async def test_pins_come_and_go(self, index: ContentIndex) -> None:
        """A pinned blob is not among the coldest; unpinned it is back in its place; a reason may be replaced."""
        await index.put([record(1, last_used=1), record(2, last_used=2), record(3, last_used=3)])
        await index.set_pin(digest(2), "why")
        await index.set_pin(digest(2), "")
        assert await index.get(digest(2)) == record(2, last_used=2, pin="")
        assert await index.coldest(9) == [record(1, last_used=1), record(3, last_used=3)]
        assert await index.usage() == Usage(3, 30)
        for _ in range(2):
            await index.set_pin(digest(2), None)
            assert [found.digest for found in await index.coldest(9)] == [digest(1), digest(2), digest(3)]

    async def test_the_unknown_is_not_pinned(self, index: ContentIndex) -> None:
        """A digest that is not remembered is left alone, also when it is put later."""
        await index.set_pin(digest(1), "why")
        await index.set_pin(digest(2), None)
        assert await index.usage() == Usage(0, 0)
        await index.put([record(1)])
        assert await index.get(digest(1)) == record(1)

    async def test_coldest_is_in_order_and_bounded(self, index: ContentIndex) -> None:
        """Least recently used first, ties by digest, never more than asked for."""
        records = [record(number, last_used=number % 7) for number in range(50)]
        records.append(ContentRecord(Digest.of(b"x", "sha512"), 1, 3))
        random.Random(1).shuffle(records)
        await index.put(records)
        expected = sorted(records, key=lambda each: (each.last_used, each.digest))
        assert await index.coldest(100) == expected
        assert await index.coldest(20) == expected[:20]
        assert await index.coldest(0) == []

    async def test_many_records(self, index: ContentIndex) -> None:
        """Thousands of records in one call are all there, are touched, listed and dropped."""
        records = [record(number, last_used=number) for number in range(2600)]
        await index.put(records)
        assert await index.usage() == Usage(2600, 26000)
        assert await index.coldest(5000) == records
        await index.touch({each.digest: each.last_used + 10_000 for each in records[:1300]})
        assert [found.digest for found in await index.coldest(1300)] == [each.digest for each in records[1300:]]
        await index.link(ALPINE, {each.digest: 1 for each in records})
        await index.unlink(ALPINE, [each.digest for each in records[1:]])
        assert await index.linked(ALPINE, digest(0)) == 1
        assert await index.linked(ALPINE, digest(2599)) is None
        await index.drop([each.digest for each in records[1:]])
        assert await index.usage() == Usage(1, 10)

    async def test_links_belong_to_one_repository(self, index: ContentIndex) -> None:
        """A blob linked to one repository is not linked to another, and unlinked only where said."""
        await index.link(ALPINE, {digest(1): 10, digest(2): 0})
        await index.link(PAUSE, {digest(1): 10})
        assert await index.linked(ALPINE, digest(2)) == 0
        assert await index.linked(PAUSE, digest(2)) is None
        for _ in range(2):
            await index.unlink(ALPINE, [digest(1), digest(7)])
            assert await index.linked(ALPINE, digest(1)) is None
            assert await index.linked(PAUSE, digest(1)) == 10

    async def test_an_unknown_size_does_not_hide_a_known_one(self, index: ContentIndex) -> None:
        """-1 is remembered until the size is known, and never replaces it."""
        await index.link(ALPINE, {digest(1): -1})
        assert await index.linked(ALPINE, digest(1)) == -1
        await index.link(ALPINE, {digest(1): 7})
        await index.link(ALPINE, {digest(1): -1})
        assert await index.linked(ALPINE, digest(1)) == 7
        await index.link(ALPINE, {digest(1): 8})
        assert await index.linked(ALPINE, digest(1)) == 8

    async def test_the_marker_is_what_was_set_last(self, index: ContentIndex) -> None:
        """Set, set again, and seen by others."""
        await index.set_marker("one")
        assert await index.marker() == "one"
        await index.put([record(1)])
        await index.set_marker("two")
        await index.set_marker("2")
        assert await index.marker() == "2"

    async def test_clear_forgets_everything(self, index: ContentIndex) -> None:
        """Records, pins, links, counters and marker are gone, and it can be filled again."""
        await index.put([record(number, pin="x" if number % 2 else None) for number in range(1200)])
        await index.link(ALPINE, {digest(1): 10})
        await index.link(PAUSE, {digest(1): 10})
        await index.set_marker("mark")
        for _ in range(2):
            await index.clear()
            assert await index.usage() == Usage(0, 0)
            assert await index.marker() is None
            assert await index.get(digest(1)) is None
            assert await index.linked(ALPINE, digest(1)) is None
            assert await index.linked(PAUSE, digest(1)) is None
        await index.put([record(1)])
        assert await index.get(digest(1)) == record(1)
        assert await index.usage() == Usage(1, 10)

    async def test_agrees_with_the_simplest_one(self, index: ContentIndex) -> None:
        """After any sequence of changes it says the same as dicts do."""
        chance = random.Random(20)
        model = MemoryIndex()
        for step in range(400):
            numbers = [chance.randrange(12) for _ in range(chance.randrange(4))]
            at = float(chance.randrange(50))
            for each in (index, model):
                match step % 5:
                    case 0 | 1:
                        await each.put(
                            [
                                record(n, size=n + step % 3, last_used=at, pin="p" if n % 5 == at % 5 else None)
                                for n in numbers
                            ]
                        )
                    case 2:
                        await each.touch({digest(n): at for n in numbers})
                    case 3:
                        await each.drop([digest(n) for n in numbers[:1]])
                    case _:
                        await each.set_pin(digest(int(at) % 12), None if at % 2 else f"pin {step}")
            assert await index.coldest(20) == await model.coldest(20), f"step {step}"
            assert await index.usage() == await model.usage(), f"step {step}"
        for number in range(12):
            assert await index.get(digest(number)) == await model.get(digest(number))

    async def test_two_writers_count_exactly(self, index: ContentIndex, another: ContentIndex) -> None:
        """Two that put, touch and drop the same records at once leave exact counters, and see each other's work."""
        records = [record(number, size=number) for number in range(900)]
        await asyncio.gather(
            index.put(records),
            another.put(records[::-1]),
            index.touch({each.digest: 200.0 for each in records}),
            another.put(records[300:]),
        )
        assert await another.usage() == await index.usage() == Usage(900, sum(range(900)))
        dropped = [each.digest for each in records[100:]]
        await asyncio.gather(index.drop(dropped), another.drop(dropped[::-1]))
        assert await index.usage() == await another.usage() == Usage(100, sum(range(100)))
        await index.set_marker("seen")
        assert await another.marker() == "seen"

    async def test_cancelled_operations_leave_it_usable(self, index: ContentIndex) -> None:
        """Whatever is cancelled, wherever it waits, the next operations are right and the counters exact."""
        records = [record(number) for number in range(600)]
        for turns in range(12):
            task = asyncio.ensure_future(index.put(records))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert await index.get(digest(10_000)) is None
        usage = await index.usage()
        assert usage == Usage(len(found := await index.coldest(1000)), 10 * len(found))
        await index.put(records)
        assert await index.usage() == Usage(600, 6000)

    async def test_closing_twice_is_harmless(self, index: ContentIndex) -> None:
        """`aclose` may be called again."""
        await index.put([record(1)])
        await index.aclose()
        await index.aclose()
