"""Which blobs are dropped, and when."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.policy.eviction import EvictionPlan, StoreLoad, Victim, Watermarks, coldest_enough, in_order, is_stale
from mirror.policy.records import ContentRecord, ReferencedBlob
from mirror.values.sizes import Capacity

DIGESTS = [Digest.of(str(number).encode()) for number in range(30)]


def record(number: int, *, size: int = 10, last_used: float = 0.0) -> ContentRecord:
    """A record of the digest of that number."""
    return ContentRecord(DIGESTS[number], size, last_used)


def child(number: int, parents: int = 1, *, manifest: bool = False) -> ReferencedBlob:
    """A blob that so many manifests name."""
    return ReferencedBlob(record(number), parents, manifest)


def plan(
    candidates: Iterable[ContentRecord], bytes_to_free: int, protected: Collection[Digest], now: float
) -> list[Victim]:
    """Of loose blobs alone."""
    chosen = EvictionPlan(bytes_to_free, protected, now)
    for candidate in candidates:
        if chosen.enough:
            break
        chosen.take_loose(candidate)
    return chosen.victims


def chosen(victims: list[Victim]) -> list[int]:
    """Their numbers."""
    return [DIGESTS.index(victim.digest) for victim in victims]


RECORDS = st.lists(
    st.builds(
        record,
        st.integers(0, 29),
        size=st.integers(0, 50),
        last_used=st.integers(0, 20).map(float),
    ),
    unique_by=lambda each: each.digest,
)


def test_enough_and_no_more() -> None:
    """The coldest whose sizes together reach what is to be freed, in their order."""
    candidates = [record(number, size=10) for number in range(10)]
    assert chosen(plan(candidates, 1, (), 0)) == [0]
    assert chosen(plan(candidates, 10, (), 0)) == [0]
    assert chosen(plan(candidates, 11, (), 0)) == [0, 1]
    assert chosen(plan(candidates, 1000, (), 0)) == list(range(10))
    assert plan(candidates, 0, (), 0) == []
    assert plan(candidates, -5, (), 0) == []


def test_protected_ones_stay() -> None:
    """Never one that is pinned or in flight, and others take their place."""
    candidates = [record(number) for number in range(5)]
    assert chosen(plan(candidates, 100, {DIGESTS[0], DIGESTS[1], DIGESTS[3]}, 0)) == [2, 4]


def test_an_image_goes_whole() -> None:
    """A manifest with all that nothing else names, though less would be enough; then nothing more goes."""
    plan = EvictionPlan(1, (), 100.0)
    plan.take_image(record(0), {DIGESTS[0]: [child(1), child(2), child(3, parents=2)]})
    plan.take_image(record(4), {DIGESTS[4]: [child(5)]})
    assert chosen(plan.victims) == [0, 1, 2]
    assert plan.enough


def test_an_index_goes_with_its_manifests_and_their_layers() -> None:
    """Down to the last; a layer that two of its manifests name goes once."""
    below = {
        DIGESTS[0]: [child(1, manifest=True), child(2, manifest=True), child(9, manifest=True, parents=2)],
        DIGESTS[1]: [child(3), child(4, parents=2)],
        DIGESTS[2]: [child(4, parents=2), child(5)],
        DIGESTS[9]: [child(6)],
    }
    plan = EvictionPlan(1, (), 100.0)
    plan.take_image(record(0), below)
    assert sorted(chosen(plan.victims)) == [0, 1, 2, 3, 4, 5]
    assert {victim.images for victim in plan.victims} == {(DIGESTS[0],)}


def test_a_shared_layer_goes_with_the_last_image() -> None:
    """Not with the first, and both are named as what it belonged to."""
    plan = EvictionPlan(1000, (), 100.0)
    for number in (0, 1):
        plan.take_image(record(number, last_used=number), {DIGESTS[number]: [child(2, parents=2)]})
    assert chosen(plan.victims) == [0, 1, 2]
    assert plan.victims[-1].images == (DIGESTS[0], DIGESTS[1])
    assert plan.victims[-1].image_used == 1.0


def test_what_is_pinned_below_an_image_that_is_not() -> None:
    """A platform's manifest that is pinned stays with its layers when its index goes; a pinned root stays whole."""
    below = {DIGESTS[0]: [child(1, manifest=True), child(2, manifest=True)], DIGESTS[1]: [child(3)], DIGESTS[2]: []}
    plan = EvictionPlan(1000, {DIGESTS[1], DIGESTS[3]}, 100.0)
    plan.take_image(record(0), below)
    assert chosen(plan.victims) == [0, 2]
    plan = EvictionPlan(1000, {DIGESTS[0]}, 100.0)
    plan.take_image(record(0), below)
    assert plan.victims == []


def test_why_a_layer_goes() -> None:
    """Because its image is cold, whenever it was used itself."""
    plan = EvictionPlan(1000, (), 1e6)
    plan.take_image(record(0, last_used=1e6 - 7200), {DIGESTS[0]: [ReferencedBlob(record(1, last_used=1e6 - 5), 1)]})
    assert {victim.reason for victim in plan.victims} == {
        "its image was the least recently used: last used 2 hours ago"
    }


def test_what_is_loose_and_young_waits_its_turn() -> None:
    """A loose blob goes before every image once it was not used for ten minutes; before, in its place among them."""
    assert is_stale(record(0, last_used=0.0), 600.0)
    assert not is_stale(record(0, last_used=0.0), 599.0)
    loose = [record(number, last_used=number) for number in (1, 4, 6)]
    roots = [record(number, last_used=number) for number in (2, 3, 5)]
    assert [(DIGESTS.index(each.digest), image) for each, image in in_order(loose, roots)] == [
        (1, False),
        (2, True),
        (3, True),
        (4, False),
        (5, True),
        (6, False),
    ]
    assert [DIGESTS.index(each.digest) for each, _ in in_order(loose, roots, 4.0)] == [1, 2, 3, 4]


def test_no_candidate_is_read_that_is_not_needed() -> None:
    """A plan stops reading once it is enough."""
    read: list[int] = []

    def candidates() -> Iterator[ContentRecord]:
        for number in range(30):
            read.append(number)
            yield record(number)

    plan(candidates(), 25, (), 0)
    assert len(read) <= 4


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (3 * 86400 + 5000, "last used 3 days ago"),
        (86400, "last used 1 day ago"),
        (86399, "last used 23 hours ago"),
        (3600, "last used 1 hour ago"),
        (120, "last used 2 minutes ago"),
        (59.9, "last used 59 seconds ago"),
        (0.5, "last used just now"),
        (-100, "last used just now"),
    ],
)
def test_the_reason_in_plain_words(age: float, words: str) -> None:
    """Each victim says why, with the time since its last use in the largest unit."""
    (victim,) = plan([record(0, last_used=1e9)], 1, (), 1e9 + age)
    assert victim.reason == f"no cached manifest names it: {words}"


@given(RECORDS, st.integers(0, 400), st.sets(st.sampled_from(DIGESTS)))
def test_a_plan_is_the_shortest_run_of_the_coldest(
    records: list[ContentRecord], wanted: int, protected: set[Digest]
) -> None:
    """For any records: nothing that must stay, enough if there is enough, and not one more at the end."""
    candidates = sorted(records, key=lambda each: each.last_used)
    victims = plan(candidates, wanted, protected, 100.0)
    allowed = [each for each in candidates if each.digest not in protected]
    assert [victim.digest for victim in victims] == [each.digest for each in allowed[: len(victims)]]
    total = sum(victim.size for victim in victims)
    assert total >= min(wanted, sum(each.size for each in allowed))
    assert not victims or total - victims[-1].size < wanted


@given(RECORDS, st.integers(1, 400), st.sets(st.sampled_from(DIGESTS)), st.randoms())
def test_the_coldest_of_an_unordered_walk(
    records: list[ContentRecord], wanted: int, protected: set[Digest], chance: random.Random
) -> None:
    """Whatever order a walk has, the coldest that are enough come out, coldest first, and frees as much as a plan."""
    chance.shuffle(records)
    coldest = coldest_enough(records, wanted, protected)
    assert coldest == sorted(coldest, key=lambda each: (each.last_used, each.digest))
    allowed = [each for each in records if each.digest not in protected]
    assert set(coldest) <= set(allowed)
    assert sum(each.size for each in coldest) >= min(wanted, sum(each.size for each in allowed))
    if coldest:
        hottest = coldest[-1].last_used
        assert all(each in coldest for each in allowed if each.last_used < hottest)
        assert sum(each.size for each in coldest if each.last_used < hottest) < wanted


def test_a_walk_keeps_little_in_memory() -> None:
    """Of many blobs only about as many as are needed come out."""
    many = [
        ContentRecord(Digest.of(str(number).encode()), 10, float(number * 7919 % 10_007)) for number in range(10_007)
    ]
    coldest = coldest_enough(many, 95, ())
    assert [each.last_used for each in coldest] == [float(number) for number in range(10)]


def measure(*, held: int = 0, growing: int = 0, pending: int = 0, free: int = 10_000, disk: int = 100_000) -> StoreLoad:
    """Of a disk of 100,000 bytes."""
    return StoreLoad(held, growing, pending, free, disk)


def water(capacity: int = 1000, *, reserve: int = 0, high: float = 0.9, low: float = 0.8) -> Watermarks:
    """Of 1000 bytes."""
    return Watermarks(Capacity(bytes=capacity), high, low, reserve)


def test_the_limit_is_the_capacity_or_what_the_disk_allows() -> None:
    """Where others fill the disk, or something must stay free, the limit shrinks; never below nothing."""
    assert water().limit(measure(held=500)) == 1000
    assert water().limit(measure(held=500, growing=100, free=200)) == 800
    assert water(reserve=150).limit(measure(held=500, growing=100, free=200)) == 650
    assert water(reserve=150).limit(measure(held=0, free=10)) == 0
    assert Watermarks(Capacity(percent=2.0), reserve=0).limit(measure(held=500)) == 2000


def test_nothing_is_dropped_up_to_the_high_water() -> None:
    """Then down to the low water, with what is growing, pending and wanted counted."""
    assert water().excess(measure(held=900)) == 0
    assert water().excess(measure(held=901)) == 101
    assert water().excess(measure(held=700, growing=100, pending=101)) == 101
    assert water().excess(measure(held=700), 200) == 0
    assert water().excess(measure(held=700), 201) == 101
    assert water().excess(measure(held=700, free=50)) == 100


def test_what_must_go_is_less_than_what_should() -> None:
    """Up to the limit itself nothing must go."""
    assert water().shortage(measure(held=950), 50) == 0
    assert water().shortage(measure(held=950, growing=10), 50) == 10


@pytest.mark.parametrize(("high", "low"), [(0.8, 0.9), (1.1, 0.9), (0.5, 0.0), (0.5, -1.0)])
def test_marks_out_of_order_are_refused(high: float, low: float) -> None:
    """Low above high, above the limit, or at the bottom."""
    with pytest.raises(ValueError, match="low water"):
        Watermarks(Capacity(bytes=1), high, low)
