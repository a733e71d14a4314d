"""What every `ContentIndex` does. A test class inherits `IndexSuite` and supplies `index` and `another`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from contextlib import aclosing

import pytest

from mirror.errors import IndexUnavailable
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import BlobRole, ContentRecord, ReferencedBlob, References, Usage
from mirror.ports import ContentIndex, RebuildState
from tests.support.memory_index import MemoryIndex

ALPINE = Repo("docker.io", "library/alpine")
PAUSE = Repo("localhost:5000", "pause")


def digest(number: int) -> Digest:
    """A digest of its own for each number."""
    return Digest.of(str(number).encode())


def record(number: int, *, size: int = 10, last_used: float = 100.0) -> ContentRecord:
    """A record of `digest(number)`."""
    return ContentRecord(digest(number), size, last_used)


def names(number: int, *blobs: int, manifests: Sequence[int] = ()) -> References:
    """The references of the manifest `digest(number)`."""
    return References(digest(number), tuple(map(digest, manifests)), tuple(map(digest, blobs)))


async def least_recently_used(index: ContentIndex, limit: int) -> list[ContentRecord]:
    """Of blobs that no manifest names, where there are no manifests: of all."""
    return await index.least_recently_used(BlobRole.LOOSE, limit)


async def roles(index: ContentIndex, limit: int = 100) -> dict[BlobRole, list[ContentRecord]]:
    """The order within each role."""
    return {role: await index.least_recently_used(role, limit) for role in BlobRole}


async def numbers(index: ContentIndex, role: BlobRole) -> list[int]:
    """The numbers of digests, the least recently used first."""
    numbers = {digest(number): number for number in range(100)}
    return [numbers[record.digest] for record in await index.least_recently_used(role, 100)]


async def digests(index: ContentIndex) -> set[Digest]:
    """All that it lists."""
    return {digest async for batch in index.digests() for digest in batch}


async def loose_links(index: ContentIndex) -> set[tuple[Repo, Digest]]:
    """All that it lists."""
    return {link async for links in index.loose_links() for link in links}


async def successors(index: ContentIndex, parents: Iterable[int]) -> dict[Digest, set[ReferencedBlob]]:
    """In no order."""
    return {parent: set(blobs) for parent, blobs in (await index.successors([*map(digest, parents)])).items()}


class IndexSuite:
    """Fixtures to supply: `index`, empty, and `another`, a second one on the same data."""

    async def test_remembers_what_was_put(self, index: ContentIndex) -> None:
        """A record comes back as it was put, of either algorithm."""
        plain = ContentRecord(Digest.of(b"a"), 0, 1732419199.125)
        large = ContentRecord(Digest.of(b"b", "sha512"), 2**45 + 1, 1732419200.5)
        await index.put([plain, large])
        assert await index.get(plain.digest) == plain
        assert await index.get(large.digest) == large

    async def test_the_unknown_is_none(self, index: ContentIndex) -> None:
        """A digest that was never put is not remembered, nor linked, and an empty index has no marker."""
        assert await index.get(digest(1)) is None
        assert await index.linked(ALPINE, digest(1)) is None
        assert await index.marker() is None
        assert await roles(index) == {role: [] for role in BlobRole}
        assert await index.successors([digest(1)]) == {}
        assert await digests(index) == set()
        assert await index.usage() == Usage(0, 0)

    async def test_records_of_many_at_once(self, index: ContentIndex) -> None:
        """Those that are there, whatever their role; more than fit in one batch."""
        put = {digest(number): record(number, size=number + 1) for number in range(600)}
        await index.put(list(put.values()))
        await index.record_references([names(1, 2, 1000)])
        asked = [digest(number) for number in range(300, 1200)] + [digest(1), digest(2), digest(2)]
        assert await index.records(asked) == {each: put[each] for each in asked if each in put}
        assert await index.records([]) == {}

    async def test_putting_nothing_is_nothing(self, index: ContentIndex) -> None:
        """Empty batches are harmless."""
        await index.put([])
        await index.touch({})
        await index.drop([])
        await index.record_references([])
        assert await index.successors([]) == {}
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
        assert await least_recently_used(index, 1) == [record(1, size=3)]

    async def test_the_later_use_stays(self, index: ContentIndex) -> None:
        """Putting an earlier time of last use does not make a blob older, a later one makes it younger."""
        await index.put([record(1, last_used=200)])
        await index.put([record(1, last_used=100)])
        assert await index.get(digest(1)) == record(1, last_used=200)
        await index.put([record(1, last_used=300)])
        assert await index.get(digest(1)) == record(1, last_used=300)

    async def test_drop_forgets_blobs_but_not_links(self, index: ContentIndex) -> None:
        """Dropped blobs are no longer counted, and their links stay; dropping again is harmless."""
        await index.put([record(1), record(2), record(3)])
        await index.link(ALPINE, {digest(1): 10})
        for _ in range(2):
            await index.drop([digest(1), digest(2), digest(9)])
            assert await index.get(digest(1)) is None
            assert await index.usage() == Usage(1, 10)
        assert await index.linked(ALPINE, digest(1)) == 10
        await index.put([record(1)])
        assert await index.get(digest(1)) == record(1)

    async def test_touch_moves_forward_only_and_adds_nothing(self, index: ContentIndex) -> None:
        """Later times are taken; earlier ones and unknown digests are not."""
        await index.put([record(1), record(2), record(3)])
        await index.touch({digest(1): 300.5, digest(2): 50.0, digest(3): 400.0, digest(4): 500.0})
        assert await index.get(digest(1)) == record(1, last_used=300.5)
        assert await index.get(digest(2)) == record(2)
        assert await index.get(digest(3)) == record(3, last_used=400)
        assert await index.get(digest(4)) is None
        assert await index.usage() == Usage(3, 30)
        assert await least_recently_used(index, 9) == [record(2), record(1, last_used=300.5), record(3, last_used=400)]

    async def test_the_least_recently_used_come_in_order_and_bounded(self, index: ContentIndex) -> None:
        """Least recently used first, ties by digest, never more than requested."""
        records = [record(number, last_used=number % 7) for number in range(50)]
        records.append(ContentRecord(Digest.of(b"x", "sha512"), 1, 3))
        random.Random(1).shuffle(records)
        await index.put(records)
        expected = sorted(records, key=lambda each: (each.last_used, each.digest))
        assert await least_recently_used(index, 100) == expected
        assert await least_recently_used(index, 20) == expected[:20]
        assert await least_recently_used(index, 0) == []

    async def test_many_records(self, index: ContentIndex) -> None:
        """Thousands of records in one call are all there, are touched, listed and dropped."""
        records = [record(number, last_used=number) for number in range(2600)]
        await index.put(records)
        assert await index.usage() == Usage(2600, 26000)
        assert await least_recently_used(index, 5000) == records
        await index.touch({each.digest: each.last_used + 10_000 for each in records[:1300]})
        assert [found.digest for found in await least_recently_used(index, 1300)] == [
            each.digest for each in records[1300:]
        ]
        await index.link(ALPINE, {each.digest: 1 for each in records})
        await index.unlink(ALPINE, [each.digest for each in records[1:]])
        assert await index.linked(ALPINE, digest(0)) == 1
        assert await index.linked(ALPINE, digest(2599)) is None
        await index.drop([each.digest for each in records[1:]])
        assert await index.usage() == Usage(1, 10)

    # ------------------------------------------------------------------------------ what manifests name

    async def test_three_standings(self, index: ContentIndex) -> None:
        """A blob that no manifest names is loose, a manifest that no index names is a root, and each role has its own
        order.
        """
        await index.put([record(number, last_used=number) for number in range(8)])
        await index.record_references([names(0, manifests=[1, 2]), names(2, 4, 3), names(1, 4), names(5)])
        assert await numbers(index, BlobRole.ROOT) == [0, 5]
        assert await numbers(index, BlobRole.NAMED) == [1, 2, 3, 4]
        assert await numbers(index, BlobRole.LOOSE) == [6, 7]
        assert await index.usage() == Usage(8, 80)

    async def test_a_manifest_may_come_before_what_it_names(self, index: ContentIndex) -> None:
        """As in every pull: the blob that comes later is named from its first moment on."""
        await index.put([record(1)])
        await index.record_references([names(1, 2, 3)])
        await index.put([record(2)])
        assert await numbers(index, BlobRole.NAMED) == [2]
        assert await index.successors([digest(1)]) == {digest(1): [ReferencedBlob(record(2), 1)]}
        await index.drop([digest(2)])
        await index.put([record(2)])
        assert await numbers(index, BlobRole.NAMED) == [2]

    async def test_what_is_shared_stays_with_the_last(self, index: ContentIndex) -> None:
        """A layer that two images name is named until both are dropped, then loose with its own time of use."""
        await index.put([record(number, last_used=number) for number in range(1, 4)])
        await index.record_references([names(1, 3), names(2, 3)])
        assert await index.successors([digest(1)]) == {digest(1): [ReferencedBlob(record(3, last_used=3), 2)]}
        await index.drop([digest(1)])
        await index.drop([digest(1)])
        assert await numbers(index, BlobRole.NAMED) == [3]
        await index.touch({digest(3): 50})
        await index.drop([digest(2)])
        assert await least_recently_used(index, 9) == [record(3, last_used=50)]

    async def test_an_index_dropped_leaves_its_manifests_as_roots(self, index: ContentIndex) -> None:
        """A manifest that an index named is an image of its own without it."""
        await index.put([record(number) for number in range(3)])
        await index.record_references([names(0, manifests=[1]), names(1, 2)])
        await index.drop([digest(0)])
        assert await numbers(index, BlobRole.ROOT) == [1]
        assert await index.successors([digest(0), digest(1)]) == {digest(1): [ReferencedBlob(record(2), 1)]}

    async def test_below_an_index_are_manifests(self, index: ContentIndex) -> None:
        """Each successor says whether it is a manifest; a manifest that names nothing has an empty list."""
        await index.put([record(number) for number in range(4)])
        await index.record_references([names(0, manifests=[1, 2, 9]), names(1)])
        found = await index.successors([digest(0), digest(1), digest(3), digest(77)])
        assert found.keys() == {digest(0), digest(1)}
        assert found[digest(1)] == []
        assert {each.record.digest: each.is_manifest for each in found[digest(0)]} == {
            digest(1): True,
            digest(2): False,
        }

    async def test_the_unknown_names_nothing(self, index: ContentIndex) -> None:
        """A manifest that is not remembered is left alone, also when it is put later."""
        await index.put([record(2)])
        await index.record_references([names(1, 2)])
        await index.put([record(1)])
        assert await numbers(index, BlobRole.LOOSE) == sorted([1, 2], key=digest)
        assert await index.successors([digest(1)]) == {}

    async def test_named_twice_counts_once(self, index: ContentIndex) -> None:
        """A manifest recorded again, or naming a blob twice, names each blob once."""
        await index.put([record(1), record(2)])
        for _ in range(2):
            await index.record_references([names(1, 2, 2), names(1, 2)])
        assert await index.successors([digest(1)]) == {digest(1): [ReferencedBlob(record(2), 1)]}
        await index.drop([digest(1)])
        assert await numbers(index, BlobRole.LOOSE) == [2]

    async def test_the_use_of_a_manifest_is_one_of_its_indexes(self, index: ContentIndex) -> None:
        """Upwards through every index, not downwards, and the use of a layer counts for no image."""
        await index.put([record(number) for number in range(6)])
        await index.record_references([names(0, manifests=[1]), names(1, manifests=[2, 3]), names(2, 4), names(3, 4)])
        await index.touch({digest(2): 200, digest(4): 300})
        assert {number: found.last_used for number in range(6) if (found := await index.get(digest(number)))} == {
            0: 200,
            1: 200,
            2: 200,
            3: 100,
            4: 300,
            5: 100,
        }
        await index.drop([digest(1)])
        await index.touch({digest(2): 400})
        assert await index.get(digest(0)) == record(0, last_used=200)

    async def test_many_images(self, index: ContentIndex) -> None:
        """Hundreds of manifests in one call, all of which share a layer, come and go."""
        count = 300
        await index.put([record(number, last_used=number) for number in range(2 * count + 1)])
        await index.record_references([names(number, number + count, 2 * count) for number in range(count)])
        found = await index.successors([digest(number) for number in range(count)])
        assert {len(each) for each in found.values()} == {2}
        assert len(found) == len(await index.least_recently_used(BlobRole.ROOT, 1000)) == count
        await index.drop([digest(number) for number in range(count - 1)])
        assert len(await index.least_recently_used(BlobRole.LOOSE, 1000)) == count - 1
        assert [each.parents for each in (await index.successors([digest(count - 1)]))[digest(count - 1)]] == [1, 1]

    async def test_every_blob_is_listed(self, index: ContentIndex) -> None:
        """Of every role, thousands of them, in batches."""
        records = [record(number) for number in range(2500)]
        await index.put(records)
        await index.record_references([names(1, 2, 3)])
        assert await digests(index) == {each.digest for each in records}

    async def test_links_belong_to_one_repository(self, index: ContentIndex) -> None:
        """A blob linked to one repository is not linked to another, and unlinked there only."""
        await index.link(ALPINE, {digest(1): 10, digest(2): 0})
        await index.link(PAUSE, {digest(1): 10})
        assert await index.linked(ALPINE, digest(2)) == 0
        assert await index.linked(PAUSE, digest(2)) is None
        for _ in range(2):
            await index.unlink(ALPINE, [digest(1), digest(7)])
            assert await index.linked(ALPINE, digest(1)) is None
            assert await index.linked(PAUSE, digest(1)) == 10

    async def test_holders_are_the_repositories_that_have_a_link(self, index: ContentIndex) -> None:
        """As many as are asked for; none once the links are gone."""
        await index.link(ALPINE, {digest(1): 10, digest(2): 0})
        await index.link(PAUSE, {digest(1): -1})
        assert set(await index.holders(digest(1), 10)) == {ALPINE, PAUSE}
        assert len(await index.holders(digest(1), 1)) == 1
        assert await index.holders(digest(2), 10) == [ALPINE]
        assert await index.holders(digest(3), 10) == []
        await index.unlink(ALPINE, [digest(2)])
        assert await index.holders(digest(2), 10) == []

    async def test_links_of_what_is_gone_are_loose(self, index: ContentIndex) -> None:
        """Not of a blob that is in the index, nor of one that a manifest there names. They are removed while they are
        listed, and then there are none.
        """
        assert await loose_links(index) == set()
        await index.put([record(1), record(2)])
        await index.record_references([names(1, 3)])
        for repo in (ALPINE, PAUSE):
            await index.link(repo, {digest(number): -1 for number in range(1, 2600)})
        loose = {(repo, digest(number)) for repo in (ALPINE, PAUSE) for number in range(4, 2600)}
        assert await loose_links(index) == loose
        # all the links of many repositories, and some of one
        many = [Repo("docker.io", f"library/app-{number}") for number in range(300)]
        for repo in many:
            await index.link(repo, {digest(4): 1})
        found = set()
        async with aclosing(index.loose_links()) as steps:
            async for links in steps:
                assert len(links) <= 2600
                for repo, each in links:
                    found.add((repo, each))
                    await index.unlink(repo, [each])
        assert found == loose | {(repo, digest(4)) for repo in many}
        assert await loose_links(index) == set()
        assert [await index.linked(ALPINE, digest(number)) for number in range(1, 5)] == [-1, -1, -1, None]
        assert await index.holders(digest(4), 10) == []
        await index.drop([digest(1)])
        assert await loose_links(index) == {(repo, digest(number)) for repo in (ALPINE, PAUSE) for number in (1, 3)}

    async def test_an_unknown_size_does_not_hide_a_known_one(self, index: ContentIndex) -> None:
        """-1 is remembered until the size is known, and never replaces it."""
        await index.link(ALPINE, {digest(1): -1})
        assert await index.linked(ALPINE, digest(1)) == -1
        await index.link(ALPINE, {digest(1): 7})
        await index.link(ALPINE, {digest(1): -1})
        assert await index.linked(ALPINE, digest(1)) == 7
        await index.link(ALPINE, {digest(1): 8})
        assert await index.linked(ALPINE, digest(1)) == 8

    async def test_a_rebuild_is_seen_by_all_until_its_mark(self, index: ContentIndex, another: ContentIndex) -> None:
        """Its token and its parts; by other rules it is none. The mark ends it, whoever sets one."""
        assert await index.rebuild_state("3") is None
        token = await index.begin_rebuild("3")
        assert await another.rebuild_state("3") == RebuildState(token, {})
        for number in range(200):
            await another.note_rebuilt(f"part {number}", number, token)
        await index.note_rebuilt("part 7", 70, token)
        expected = {**{f"part {number}": number for number in range(200)}, "part 7": 70}
        assert await index.rebuild_state("3") == RebuildState(token, expected)
        assert await index.rebuild_state("4") is None
        assert await index.rebuild_state("") is None
        await another.set_marker("whole", token)
        assert await index.rebuild_state("3") is None
        with pytest.raises(IndexUnavailable):
            await index.note_rebuilt("part 8", 1, token)
        assert await index.rebuild_state("3") is None
        await index.begin_rebuild("3")
        await index.set_marker("incomplete")
        assert await another.rebuild_state("3") is None

    async def test_another_rebuild_begins_with_nothing_done(self, index: ContentIndex) -> None:
        """What the one before has done, or does yet, counts no more."""
        old = await index.begin_rebuild("3")
        await index.note_rebuilt("part", 1, old)
        new = await index.begin_rebuild("3")
        assert new != old
        assert await index.rebuild_state("3") == RebuildState(new, {})
        for late in (index.note_rebuilt("part", 1, old), index.set_marker("whole", old)):
            with pytest.raises(IndexUnavailable):
                await late
        assert await index.rebuild_state("3") == RebuildState(new, {})
        assert await index.marker() is None
        await index.note_rebuilt("part", 5, new)
        await index.clear()
        assert await index.rebuild_state("3") is None
        # as a comparison, whose rules have no name
        await index.begin_rebuild()
        assert await index.rebuild_state("3") is None

    async def test_the_marker_is_what_was_set_last(self, index: ContentIndex) -> None:
        """Set, set again, and seen by others."""
        await index.set_marker("one")
        assert await index.marker() == "one"
        await index.put([record(1)])
        await index.set_marker("two")
        await index.set_marker("2")
        assert await index.marker() == "2"

    async def test_clear_forgets_everything(self, index: ContentIndex) -> None:
        """Records, names, links, counters and marker are gone, and it can be filled again."""
        await index.put([record(number) for number in range(1200)])
        await index.record_references([names(0, 1, manifests=[2])])
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
        await index.put([record(0), record(1)])
        assert await index.get(digest(1)) == record(1)
        assert await numbers(index, BlobRole.LOOSE) == sorted([0, 1], key=digest)
        assert await index.usage() == Usage(2, 20)

    async def test_agrees_with_the_simplest_one(self, index: ContentIndex) -> None:
        """After any sequence of changes the index gives the same answers as dicts."""
        chance = random.Random(20)
        model = MemoryIndex()
        # numbers below 3 are indexes, below 7 images, the others blobs; what a manifest names never changes
        every = [names(n, manifests=[3 + n, 4 + n, 6]) for n in range(3)]
        every += [names(n, n + 4, n + 5, 11) for n in range(3, 7)]
        for step in range(500):
            some = [chance.randrange(12) for _ in range(chance.randrange(4))]
            at = float(chance.randrange(50))
            for each in (index, model):
                match step % 5:
                    case 0 | 1:
                        await each.put([record(n, size=n + step % 3, last_used=at) for n in some])
                    case 2:
                        await each.touch({digest(n): at for n in some})
                    case 3:
                        await each.drop([digest(n) for n in some[:1]])
                    case _:
                        await each.record_references([every[n] for n in some if n < len(every)])
            assert await roles(index) == await roles(model), f"step {step}"
            assert await index.usage() == await model.usage(), f"step {step}"
            assert await successors(index, range(12)) == await successors(model, range(12)), f"step {step}"
        assert await digests(index) == await digests(model)
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
        assert usage == Usage(len(found := await least_recently_used(index, 1000)), 10 * len(found))
        await index.put(records)
        assert await index.usage() == Usage(600, 6000)

    async def test_closing_twice_is_harmless(self, index: ContentIndex) -> None:
        """`aclose` may be called again."""
        await index.put([record(1)])
        await index.aclose()
        await index.aclose()
