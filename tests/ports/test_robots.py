"""Robots: their secrets, their records, and that an end is an end."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mirror import telemetry
from mirror.access.authentication import Authentication
from mirror.access.own_tokens import IssuedTokens, read_keys
from mirror.access.robots import (
    PREFIX,
    ROBOTS,
    USES,
    Grant,
    Robots,
    create_robot,
    id_of,
    last_uses,
    new_secret,
    revoke_robot,
    robots,
)
from mirror.errors import AccessUnavailable, StoreError, Unauthorized
from mirror.oci.authorization import CallerCredentials
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action, AuthMethod, Identity, Policy, Rule, Scope
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from tests.support.clock import Clock

_PUSH = Grant(("push",), ("corp/team/**",))
_APP = Repo("corp", "team/app")


class _Site:
    """A store's folder, and what one worker has of it."""

    def __init__(self, root: Path) -> None:
        self.layout = Layout(root)
        self.layout.ingests.mkdir(parents=True, exist_ok=True)
        self.clock = Clock()
        self.records, self.uses = JsonRecords(self.layout, ROBOTS), JsonRecords(self.layout, USES)

    def create(self, name: str = "ci", *allow: Grant, expires_at: float | None = None) -> str:
        _, secret = create_robot(self.records, name, allow or (_PUSH,), now=self.clock(), expires_at=expires_at)
        return secret

    def revoke(self, name: str = "ci") -> bool:
        return revoke_robot(self.records, self.uses, name)

    def worker(self) -> Robots:
        return Robots(JsonRecords(self.layout, ROBOTS), JsonRecords(self.layout, USES), now=self.clock)


@pytest.fixture
def site(tmp_path: Path) -> _Site:
    return _Site(tmp_path)


def _bearer(secret: str) -> CallerCredentials:
    return CallerCredentials(bearer=secret)


def test_a_secret_can_be_recognised() -> None:
    """By a prefix and a fixed form; a checksum tells it from anything that only looks like one."""
    secret, identifier = new_secret()
    assert re.fullmatch(r"mirror_robot_[0-9A-Za-z]{48}", secret)
    assert id_of(secret) == identifier
    for place in range(len(PREFIX), len(secret)):
        other = "0" if secret[place] != "0" else "1"
        assert id_of(f"{secret[:place]}{other}{secret[place + 1 :]}") is None
    for wrong in ("", PREFIX, secret[:-1], secret + "0", secret.upper(), secret + "\n", "x" + secret):
        assert id_of(wrong) is None


async def test_a_robot_logs_in_with_its_secret(site: _Site, tmp_path: Path) -> None:
    """As a bearer, or as the password of any name; nothing on the disk has the secret."""
    secret = site.create()
    worker = site.worker()
    for presented in (_bearer(secret), CallerCredentials("ci", secret), CallerCredentials("any", secret)):
        identity = await worker.identify(presented)
        assert identity is not None
        assert str(identity) == "robot:ci"
        assert secret not in repr(identity)
    await worker.aclose()
    written = await asyncio.to_thread(lambda: b"".join(path.read_bytes() for path in tmp_path.rglob("*.json")))
    assert b"corp/team" in written
    assert secret[-38:].encode() not in written
    another, _ = new_secret()
    of_same_id = f"{PREFIX}{secret[len(PREFIX) : len(PREFIX) + 10]}"
    assert await worker.identify(_bearer(another)) is None
    assert await worker.identify(_bearer(of_same_id + "0" * 38)) is None


async def test_another_secret_with_the_id_of_a_robot(site: _Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The id is no secret: who knows it and makes up the rest, with a right checksum, is refused."""
    secret = site.create()
    monkeypatch.setattr("mirror.access.robots._random", lambda length: secret[13:23] if length == 10 else "0" * length)
    forged, identifier = new_secret()
    assert identifier == id_of(secret)
    assert await site.worker().identify(_bearer(forged)) is None


def test_names_and_lists_are_checked(site: _Site) -> None:
    """A name is there once; what rules do not know is refused before a secret is made."""
    site.create()
    for name in ("ci", "", "CI", "a/b", "-a", "a" * 65, "a b"):
        with pytest.raises(ValueError, match="robot"):
            site.create(name)
    with pytest.raises(ValueError, match="create"):
        site.create("other", Grant(("create",), ("corp/**",)))
    assert [robot.name for robot in robots(site.records)] == ["ci"]


def test_a_robot_can_do_what_its_list_says_and_nothing_else(site: _Site) -> None:
    """Not what everybody may, nor what rules allow it; what a rule denies is denied."""
    site.create("ci", _PUSH, Grant(("pull",), ("docker.io/**",)))
    [robot] = robots(site.records)
    ours, base = robot.identity, Repo("docker.io", "library/alpine")
    rules = (
        Rule(True, ("robot:ci", "authenticated"), frozenset(Action), ("corp/**",)),
        Rule(False, ("robot:ci",), frozenset({Action.PULL}), ("docker.io/secret/**",)),
    )
    policy = Policy(rules, hosted=frozenset({"corp"}))
    assert {action for action in Action if policy.allows(ours, action, _APP)} == {Action.PUSH}
    assert not policy.allows(ours, Action.PUSH, Repo("corp", "other"))
    assert policy.allows(ours, Action.PULL, base)
    assert not policy.allows(ours, Action.PULL, Repo("docker.io", "secret/app"))
    assert not policy.allows(ours, Action.PULL, Repo("ghcr.io", "open/app"))
    assert not policy.allows(ours, Action.ADMIN, None)


async def test_a_revoked_robot_is_out_at_the_next_request_in_every_process(site: _Site) -> None:
    """With its secret, remembered or not, and with a token that the mirror issued before."""
    secret = site.create()
    keys = read_keys(site.layout.root / "key", create=True)
    callers = []
    for _ in range(2):
        issued, worker = IssuedTokens(keys, lifetime=300.0, now=site.clock), site.worker()
        front = Authentication([issued, worker], {AuthMethod.ROBOT: worker}, now=site.clock)
        identity = await front.authenticate(_bearer(secret))
        token = issued.issue(_scoped(identity))
        callers.append((front, token))
        again = await front.authenticate(_bearer(token))
        assert (again.only, again.scope) == (identity.only, Scope())
        await worker.aclose()
    _age(site.records)
    for front, token in callers:
        await front.authenticate(_bearer(token))
    assert site.revoke()
    for front, token in callers:
        for shown in (secret, token):
            with pytest.raises(Unauthorized):
                await front.authenticate(_bearer(shown))
    # a new robot of the same name does not bring the old one's tokens back
    fresh = site.create()
    for front, token in callers:
        assert (await front.authenticate(_bearer(fresh))).name == "ci"
        with pytest.raises(Unauthorized):
            await front.authenticate(_bearer(token))
    assert not site.revoke("other")


def _scoped(identity: Identity) -> Identity:
    return Identity(identity.name, identity.method, scope=Scope(), proof=identity.proof)


def _age(records: JsonRecords) -> None:
    """As if the folder had not changed for a while: then what was read of it is remembered."""
    long_ago = time.time() - 3600
    os.utime(records._folder, (long_ago, long_ago))
    assert records.changed() is not None


async def test_nothing_is_read_while_nothing_changes(site: _Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look at the folder for each request, and the record once."""
    secret = site.create()
    _age(site.records)
    worker = site.worker()
    reads: list[str] = []
    get = worker._records.get

    def counted(key: str) -> dict[str, Any] | None:
        reads.append(key)
        return get(key)

    monkeypatch.setattr(worker._records, "get", counted)
    identity = await worker.identify(_bearer(secret))
    assert identity is not None
    for _ in range(5):
        assert await worker.current(identity) is identity or await worker.current(identity) == identity
    assert len(reads) == 1
    await worker.aclose()


@pytest.mark.parametrize(
    ("seconds", "valid"), [(0, True), (89, True), (90, False), (10_000, False), (-61, False), (-30, True)]
)
async def test_the_end_of_a_robot(seconds: float, valid: bool, site: _Site) -> None:
    """From its end on it is refused; and if the clock says that it was not created yet, it is not trusted."""
    secret = site.create(expires_at=site.clock() + 90)
    worker = site.worker()
    site.clock.time += seconds
    assert (await worker.identify(_bearer(secret)) is not None) is valid
    await worker.aclose()


@pytest.mark.parametrize(("seconds", "reason"), [(90, "it expired at"), (-61, "the clock is wrong")])
async def test_the_log_says_why_a_robot_is_refused(
    seconds: float, reason: str, site: _Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, however often it is tried: its client gets the answer of a wrong secret, which helps nobody."""
    logged: list[dict[str, Any]] = []
    monkeypatch.setattr(telemetry.log, "warning", lambda event, **fields: logged.append({"event": event, **fields}))
    secret = site.create(expires_at=site.clock() + 90)
    worker = site.worker()
    site.clock.time += seconds
    for _ in range(3):
        assert await worker.identify(_bearer(secret)) is None
    await worker.aclose()
    [line] = logged
    assert line["event"] == "robot refused"
    assert reason in line["reason"]
    assert secret not in str(line)


async def test_a_robot_that_expires_in_the_middle(site: _Site) -> None:
    """Of a push: the next request is refused, with the secret and with a token."""
    secret = site.create(expires_at=site.clock() + 90)
    worker = site.worker()
    front = Authentication([worker], {AuthMethod.ROBOT: worker}, now=lambda: 0.0)
    await front.authenticate(_bearer(secret))
    site.clock.time += 90
    with pytest.raises(Unauthorized):
        await front.authenticate(_bearer(secret))
    await worker.aclose()


async def test_the_last_use_is_written_at_most_once_a_minute(site: _Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all processes together; the list of robots stays as it is meanwhile."""
    secret = site.create()
    workers = [site.worker(), site.worker()]
    written: list[str] = []
    put = JsonRecords.put

    def counted(self: JsonRecords, key: str, record: Mapping[str, Any], **more: Any) -> Any:
        written.append(key)
        return put(self, key, record, **more)

    monkeypatch.setattr(JsonRecords, "put", counted)
    began = site.clock()
    for second in range(0, 150, 10):
        site.clock.time = began + second
        for worker in workers:
            await worker.identify(_bearer(secret))
            await worker.aclose()
    assert len(written) == 3
    assert list(last_uses(site.uses).values()) == [began + 120]
    # a clock that went back does not stop it for ever
    site.clock.time = began - 30
    await workers[0].identify(_bearer(secret))
    await workers[0].aclose()
    assert list(last_uses(site.uses).values()) == [began - 30]


async def test_a_record_that_cannot_be_read(site: _Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged one is no robot; if the disk does not answer, neither do we: the caller may come again."""
    secret = site.create()
    [path] = site.records._folder.glob("*.json")
    worker = site.worker()

    def fails(_: str) -> None:
        raise StoreError("EIO")

    monkeypatch.setattr(worker._records, "get", fails)
    with pytest.raises(AccessUnavailable):
        await worker.identify(_bearer(secret))
    monkeypatch.undo()
    whole = path.read_text()
    for damaged in (
        whole[:-5],
        "{}",
        whole.replace("push", "everything"),
        whole.replace("corp/team/**", ""),
    ):
        path.write_text(damaged)
        assert await site.worker().identify(_bearer(secret)) is None, damaged


async def test_a_robot_in_a_token_may_do_nothing_before_it_is_looked_up(site: _Site) -> None:
    """A token does not carry the list."""
    issued = IssuedTokens(read_keys(site.layout.root / "key", create=True), lifetime=300.0)
    identity = await issued.identify(_bearer(issued.issue(Identity("ci", AuthMethod.ROBOT, proof="x"))))
    assert identity is not None
    assert identity.only == ()
    everything = Rule(True, ("*",), frozenset(Action), ())
    assert not any(Policy((everything,)).allows(identity, action, _APP) for action in Action)


async def test_many_requests_at_once_read_a_robot_that_is_being_revoked(site: _Site) -> None:
    """None of them is let in after `revoke` has returned."""
    secret = site.create()
    worker = site.worker()
    front = Authentication([worker], {AuthMethod.ROBOT: worker})
    before = [asyncio.create_task(front.authenticate(_bearer(secret))) for _ in range(20)]
    await asyncio.to_thread(site.revoke)
    for _ in range(20):
        with pytest.raises(Unauthorized):
            await front.authenticate(_bearer(secret))
    await asyncio.gather(*before, return_exceptions=True)
    await worker.aclose()
