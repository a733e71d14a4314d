"""Quotas, judged by a ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from mirror.errors import BucketUnavailable, QuotaExceeded
from mirror.hosting.ledger_catch_up import LedgerCatchUp
from mirror.hosting.quotas import Quotas, ScopeUsage
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.quotas import QuotaRules, RegistryQuota
from tests.support.clock import Clock
from tests.support.memory_ledger import MemoryLedger
from tests.support.process import eventually

APP = Repo("corp", "team-a/app")
OTHER = Repo("corp", "team-b/app")
FREE = Repo("lab", "app")
RULES = QuotaRules({"corp": RegistryQuota(100, {"team-a/**": 50}), "lab": RegistryQuota()})


def blob(number: int) -> Digest:
    """A digest of its own for each number."""
    return Digest.of(str(number).encode())


@pytest.fixture
def ledger() -> MemoryLedger:
    """Empty."""
    return MemoryLedger(RULES.scopes)


@pytest.fixture
def clock() -> Clock:
    """Of the quotas."""
    return Clock()


@pytest.fixture
def quotas(ledger: MemoryLedger, clock: Clock) -> Quotas:
    """By that ledger and clock."""
    return Quotas(ledger, RULES, now=clock)


async def test_an_upload_that_does_not_fit_is_refused_before_it_begins(quotas: Quotas) -> None:
    """With the figures of the quota that refuses it; other repositories go on."""
    quotas.link(APP, blob(1), 40)
    quotas.check(APP, 10)
    with pytest.raises(QuotaExceeded, match=r"quota of corp/team-a/\*\* is 50 B; 40 B are used, .* needs 11 B more"):
        quotas.check(APP, 11)
    quotas.check(OTHER, 60)
    with pytest.raises(QuotaExceeded, match="quota of corp is 100 B"):
        quotas.check(OTHER, 61)
    quotas.check(FREE, 10**15)


async def test_content_that_is_there_already_needs_no_room(quotas: Quotas) -> None:
    """A blob counts once in each scope, so a full registry still takes what it has."""
    quotas.link(OTHER, blob(1), 100)
    quotas.check(OTHER, 100, blob(1))
    quotas.link(OTHER, blob(1), 100)
    quotas.link(Repo("corp", "team-b/other"), blob(1), 100)
    with pytest.raises(QuotaExceeded, match=r"corp/team-a"):
        quotas.check(APP, 100, blob(1))
    with pytest.raises(QuotaExceeded, match="quota of corp is 100 B"):
        quotas.check(OTHER, 1, blob(2))


async def test_a_link_beyond_the_limit_is_refused(quotas: Quotas) -> None:
    """Of uploads at the same time that fit one by one, as many are linked as fit; removing one makes room."""
    results = await asyncio.gather(
        *(asyncio.to_thread(quotas.link, APP, blob(number), 20) for number in range(5)), return_exceptions=True
    )
    assert [type(one) for one in results if one] == [QuotaExceeded] * 3
    linked = [number for number, one in enumerate(results) if one is None]
    quotas.unlink(APP, blob(linked[0]))
    quotas.link(APP, blob(7), 20)
    with pytest.raises(QuotaExceeded):
        quotas.link(APP, blob(8), 20)
    assert await quotas.usage() == [
        ScopeUsage("corp", 40, 100),
        ScopeUsage("corp/team-a/**", 40, 50),
        ScopeUsage("lab", 0, None),
    ]


async def test_a_growing_upload_is_stopped(quotas: Quotas, ledger: MemoryLedger, clock: Clock) -> None:
    """By figures of at most a second ago; a repository without a quota grows without end."""
    quotas.link(APP, blob(1), 30)
    quotas.allow(APP, 20)
    with pytest.raises(QuotaExceeded, match="this needs 21 B more"):
        quotas.allow(APP, 21)
    ledger.remove(APP, blob(1))
    with pytest.raises(QuotaExceeded):
        quotas.allow(APP, 21)
    clock.time += 1.5
    quotas.allow(APP, 50)
    with pytest.raises(QuotaExceeded):
        quotas.allow(APP, 51)
    quotas.allow(FREE, 10**15)


async def test_a_ledger_that_fails_stops_no_push(quotas: Quotas, ledger: MemoryLedger, clock: Clock) -> None:
    """The log says once that quotas are not checked, and once that they are again."""
    quotas.link(APP, blob(1), 50)
    ledger.fails = True
    with capture_logs() as lines:
        quotas.check(APP, 40)
        quotas.allow(APP, 40)
        quotas.link(APP, blob(2), 40)
        quotas.unlink(APP, blob(2))
        assert await quotas.usage() == [
            ScopeUsage("corp", None, 100),
            ScopeUsage("corp/team-a/**", None, 50),
            ScopeUsage("lab", None, None),
        ]
        ledger.fails = False
        clock.time += 2.0
        with pytest.raises(QuotaExceeded):
            quotas.check(APP, 1)
        with pytest.raises(QuotaExceeded):
            quotas.allow(APP, 1)
    assert [line["event"] for line in lines] == ["quotas not checked", "quotas checked again"]


async def test_a_quota_that_was_lowered_keeps_what_is_there(ledger: MemoryLedger) -> None:
    """More is used than the limit: nothing new is taken, what is there stays and can be linked again."""
    Quotas(ledger, RULES).link(OTHER, blob(1), 90)
    lowered = Quotas(ledger, QuotaRules({"corp": RegistryQuota(10)}))
    lowered.link(OTHER, blob(1), 90)
    lowered.link(APP, blob(1), 90)
    with pytest.raises(QuotaExceeded, match="90 B are used"):
        lowered.link(APP, blob(2), 1)


async def test_what_another_replica_has_deleted_makes_room_at_once(ledger: MemoryLedger, clock: Clock) -> None:
    """Before a push is refused, at each of the three decisions, the ledger gets what others have changed."""
    asked: list[str] = []

    def catch_up(scope: str) -> bool:
        asked.append(scope)
        ledger.remove(APP, blob(1))
        return True

    quotas = Quotas(ledger, RULES, catch_up=catch_up, now=clock)
    decisions: list[Callable[[], None]] = [
        lambda: quotas.check(APP, 20),
        lambda: quotas.allow(APP, 20),
        lambda: quotas.link(APP, blob(2), 20),
    ]
    for decide in decisions:
        ledger.add(APP, blob(1), 40)
        decide()
    assert asked == ["corp/team-a/**"] * 3
    quotas.check(OTHER, 1)
    assert len(asked) == 3
    with pytest.raises(QuotaExceeded):
        quotas.check(APP, 31)
    assert len(asked) == 4


def _caught_up(found: dict[Repo, int], corrected: list[Repo], clock: Clock) -> LedgerCatchUp:
    return LedgerCatchUp(lambda: dict(found), corrected.append, RULES.scopes, clock=clock)


def test_only_what_others_have_changed_in_the_scope_is_looked_at(clock: Clock) -> None:
    """And a scope once in some seconds."""
    found, corrected = {APP: 1, OTHER: 1, FREE: 1}, list[Repo]()
    catch_up = _caught_up(found, corrected, clock)
    assert catch_up("corp/team-a/**")
    assert corrected == [APP]
    assert not catch_up("corp/team-a/**")
    assert catch_up("corp")
    assert corrected == [APP, OTHER]
    found[APP] = 2
    clock.time += 6.0
    assert catch_up("corp")
    assert corrected == [APP, OTHER, APP]


def test_a_push_is_refused_if_the_bucket_does_not_answer(clock: Clock) -> None:
    """As it would be without other replicas."""

    def fail() -> dict[Repo, int]:
        raise BucketUnavailable("down")

    with capture_logs() as lines:
        assert not LedgerCatchUp(fail, print, RULES.scopes, clock=clock)("corp")
    assert [line["event"] for line in lines] == ["quotas not brought up to date"]


def test_it_does_not_look_for_ever(clock: Clock) -> None:
    """The rest is looked at by the next push that is refused."""
    corrected: list[Repo] = []

    def slow(repo: Repo) -> None:
        corrected.append(repo)
        clock.time += 11.0

    catch_up = LedgerCatchUp(lambda: {APP: 1, OTHER: 1}, slow, RULES.scopes, clock=clock)
    assert catch_up("corp")
    assert corrected == [APP]
    assert catch_up("corp")
    assert corrected == [APP, OTHER]


async def test_one_thread_looks_and_the_others_use_what_it_finds(clock: Clock) -> None:
    """All of those that waited for it decide again."""
    corrected: list[Repo] = []

    def found() -> dict[Repo, int]:
        eventually(lambda: len(catch_up.asking) == 5, "the others wait")
        return {APP: 1}

    catch_up = LedgerCatchUp(found, corrected.append, RULES.scopes, clock=clock)
    results = await asyncio.gather(*(asyncio.to_thread(catch_up, "corp") for _ in range(5)))
    assert results == [True] * 5
    assert corrected == [APP]
    assert not catch_up("corp")
