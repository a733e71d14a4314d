"""Each blob has an owner among the replicas, and nobody waits for somebody who waits for it."""

from __future__ import annotations

from itertools import permutations

from mirror.oci.digest import Digest
from mirror.policy.cluster.ownership import MOST_ASKED, by_weight, to_ask

_MEMBERS = [f"http://10.0.0.{number}:5001" for number in range(1, 6)]
_DIGESTS = [Digest.of(b"%d" % number) for number in range(2000)]


def test_replicas_agree_whatever_the_order_of_their_lists() -> None:
    """The order of weights is one of members, not of a list."""
    for digest in _DIGESTS[:20]:
        orders = {tuple(by_weight("docker.io", digest, members)) for members in permutations(_MEMBERS)}
        assert len(orders) == 1


def test_work_is_shared() -> None:
    """Each of five members owns about a fifth, and a registry makes a difference."""
    owners = [by_weight("docker.io", digest, _MEMBERS)[0] for digest in _DIGESTS]
    assert all(300 < owners.count(member) < 500 for member in _MEMBERS)
    assert owners != [by_weight("quay.io", digest, _MEMBERS)[0] for digest in _DIGESTS]


def test_a_member_that_leaves_gives_away_its_share_alone() -> None:
    """All blobs of the others keep their owner."""
    for digest in _DIGESTS[:500]:
        before = by_weight("docker.io", digest, _MEMBERS)
        after = by_weight("docker.io", digest, _MEMBERS[1:])
        assert after == [member for member in before if member != _MEMBERS[0]]


def test_the_owner_asks_nobody_and_the_others_ask_those_before() -> None:
    """At most two of them."""
    for digest in _DIGESTS[:50]:
        order = by_weight("docker.io", digest, _MEMBERS)
        for place, own in enumerate(order):
            assert to_ask(own, "docker.io", digest, _MEMBERS, lambda _: True) == order[: min(place, MOST_ASKED)]


def test_members_that_are_down_do_not_count() -> None:
    """They stay in the list for whoever finds out whether they are back."""
    digest = _DIGESTS[0]
    first, second, third, fourth, last = by_weight("docker.io", digest, _MEMBERS)
    assert to_ask(last, "docker.io", digest, _MEMBERS, lambda member: member != first) == [first, second, third]
    assert to_ask(last, "docker.io", digest, _MEMBERS, lambda _: False) == [first, second, third, fourth]


def test_126_two_views_make_no_circle() -> None:
    """Row 126: whichever members each of two replicas sees, they never ask each other for the same blob."""
    views = [_MEMBERS[:number] for number in range(1, 6)] + [_MEMBERS[number:] for number in range(5)]
    first, second = _MEMBERS[1], _MEMBERS[3]
    for digest in _DIGESTS[:50]:
        for seen_by_first in views:
            for seen_by_second in views:
                asked = to_ask(first, "docker.io", digest, seen_by_first, lambda _: True)
                asked_back = to_ask(second, "docker.io", digest, seen_by_second, lambda _: True)
                assert not (second in asked and first in asked_back)


def test_a_replica_that_is_not_in_the_list_counts_itself() -> None:
    """A lookup may not have it yet."""
    digest = _DIGESTS[1]
    assert by_weight("docker.io", digest, _MEMBERS)[0] in to_ask(
        "http://new:1", "docker.io", digest, _MEMBERS, bool
    ) or (by_weight("docker.io", digest, [*_MEMBERS, "http://new:1"])[0] == "http://new:1")
