"""Who the members are: by a lookup that may fail, and by what was known before."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mirror.errors import ConfigError
from mirror.peers.member_lookup import MemberLookup
from mirror.peers.members import ClusterMembers
from mirror.peers.peer_health import PeerHealth
from mirror.peers.secret_file import ClusterSecrets
from mirror.policy.cluster.member_addresses import parse_member

_A, _B, _C = (f"http://10.0.0.{number}:5001" for number in (1, 2, 3))


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class _Names:
    """A DNS that the test changes."""

    def __init__(self) -> None:
        self.answer: Sequence[str] | OSError = ["10.0.0.1", "10.0.0.2"]
        self.asked = 0

    async def __call__(self, host: str) -> Sequence[str]:
        assert host == "mirror.svc"
        self.asked += 1
        if isinstance(self.answer, OSError):
            raise self.answer
        return self.answer


def _lookup(clock: _Clock) -> tuple[ClusterMembers, _Names, MemberLookup]:
    members, names = ClusterMembers(_A, [], PeerHealth(), now=clock), _Names()
    return members, names, MemberLookup(parse_member("dns+http://mirror.svc:5001"), members, resolve=names, now=clock)


def test_this_replica_is_a_member_also_if_the_name_does_not_say_so() -> None:
    members, names, lookup = _lookup(_Clock())
    names.answer = ["10.0.0.3"]
    asyncio.run(lookup.look_up())
    assert members.all() == (_A, _C)
    assert members.peers() == [_C]


@pytest.mark.parametrize("answer", [lambda: OSError("no such name"), list], ids=["fails", "empty"])
def test_the_last_answer_stays_while_the_lookup_fails(answer: Callable[[], OSError | list[str]]) -> None:
    members, names, lookup = _lookup(_Clock())
    asyncio.run(lookup.look_up())
    names.answer = answer()
    asyncio.run(lookup.look_up())
    assert members.all() == (_A, _B)


def test_a_member_that_has_left_is_known_for_a_while() -> None:
    clock = _Clock()
    members, names, lookup = _lookup(clock)
    asyncio.run(lookup.look_up())
    names.answer = ["10.0.0.3"]
    asyncio.run(lookup.look_up())
    assert members.all() == (_A, _C)
    assert members.known() == {_A, _B, _C}
    clock.now += 601
    assert members.known() == {_A, _C}
    names.answer = ["10.0.0.2", "10.0.0.3"]
    asyncio.run(lookup.look_up())
    assert members.all() == (_A, _B, _C)


def test_strangers_cause_one_lookup_a_second() -> None:
    clock = _Clock()
    _, names, lookup = _lookup(clock)

    async def doubts() -> None:
        await lookup.doubt()
        await lookup.doubt()
        clock.now += 1
        await lookup.doubt()

    asyncio.run(doubts())
    assert names.asked == 2


def test_strangers_wait_for_the_lookup_that_is_under_way() -> None:
    """One that asks during it would else be refused, and take this replica for one that is down."""

    async def doubts() -> None:
        clock = _Clock()
        members, names, _ = _lookup(clock)
        asked, answered = asyncio.Event(), asyncio.Event()

        async def resolve(host: str) -> Sequence[str]:
            asked.set()
            await answered.wait()
            clock.now += 2
            return await names(host)

        lookup = MemberLookup(parse_member("dns+http://mirror.svc:5001"), members, resolve=resolve, now=clock)
        first = asyncio.create_task(lookup.doubt())
        await asked.wait()
        others = [asyncio.create_task(lookup.doubt()) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in others)
        answered.set()
        await asyncio.gather(first, *others)
        assert members.all() == (_A, _B)
        # however long it took, they do not repeat it
        assert names.asked == 1

    asyncio.run(doubts())


def test_a_peer_is_left_alone_after_one_failure_and_tried_again_ever_more_rarely() -> None:
    clock = _Clock()
    health = PeerHealth(now=clock, wall=clock)
    ticket = health.admit(_B)
    assert ticket is not None
    health.failed(_B, ticket, "no answer within 2 s")
    for pause in (1, 2, 4, 8, 16, 30, 30):
        assert not health.is_up(_B)
        clock.now += pause - 0.5
        assert health.admit(_B) is None
        clock.now += 0.5
        ticket = health.admit(_B)
        assert ticket is not None
        # one at a time
        assert health.admit(_B) is None
        health.failed(_B, ticket, "no answer within 2 s")
    assert health.state(_B).reason == "no answer within 2 s"
    clock.now += 30
    ticket = health.admit(_B)
    assert ticket is not None
    health.answered(_B, ticket, 0.25, "1.2.3")
    state = health.state(_B)
    assert (state.up, state.since, state.reason, state.version) == (True, clock.now, "", "1.2.3")
    assert state.first_byte == 0.25


def test_whoever_insists_brings_a_peer_back() -> None:
    health = PeerHealth(now=_Clock())
    ticket = health.admit(_B)
    health.failed(_B, ticket, "refused")
    assert health.admit(_B) is None
    # a failure of such a call makes it neither better nor worse
    health.failed(_B, None, "refused again")
    health.withdraw(_B, None)
    assert not health.is_up(_B)
    health.answered(_B, None)
    assert health.is_up(_B)
    assert health.admit(_B) is not None


def test_the_time_of_a_peer_is_the_90th_percentile_of_its_last_answers() -> None:
    health = PeerHealth()
    assert health.first_byte(_B) is None
    for number in range(200):
        ticket = health.admit(_B)
        assert ticket is not None
        health.answered(_B, ticket, float(number))
    assert health.first_byte(_B) == 190.0


def test_the_secret_is_exchanged_while_the_replica_runs(tmp_path: Path) -> None:
    clock, file = _Clock(), tmp_path / "secret"
    one, two = "1" * 32, "2" * 32
    with pytest.raises(ConfigError, match=r"cluster\.secret_file: .*No such file"):
        ClusterSecrets(file)
    file.write_text("short")
    with pytest.raises(ConfigError, match="line 1 has less than 32 bytes"):
        ClusterSecrets(file)
    file.write_text(one)
    secrets = ClusterSecrets(file, now=clock)
    new = tmp_path / "new"
    new.write_text(f"{one}\n{two}\n")
    os.replace(new, file)
    assert secrets.all() == (one.encode(),)
    clock.now += 1
    assert secrets.all() == (one.encode(), two.encode())
    # what is not good, or gone, changes nothing
    file.write_text("short")
    clock.now += 1
    assert secrets.all() == (one.encode(), two.encode())
    file.unlink()
    clock.now += 1
    assert secrets.all() == (one.encode(), two.encode())
    assert one not in repr(secrets)
