"""Somebody who guesses passwords, and sends tokens made up, as fast as they can."""

from __future__ import annotations

import asyncio
import base64
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from mirror.access.authentication import Authentication
from mirror.access.htpasswd import Htpasswd
from mirror.access.password_queue import PasswordQueue
from mirror.access.static_tokens import StaticToken, StaticTokens
from mirror.aio.caches import shown
from mirror.errors import TooManyLogins, Unauthorized
from mirror.oci.authorization import CallerCredentials
from mirror.policy.access_rules import AuthMethod, Identity
from tests.support.clock import Clock
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import live_mirror, until


class _Bcrypt:
    """Bcrypt that takes as long as the test says; counts what it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[bytes] = []
        self.gate = threading.Event()
        self.gate.set()
        self._checkpw = bcrypt.checkpw
        monkeypatch.setattr(bcrypt, "checkpw", self._check)

    def _check(self, password: bytes, hashed: bytes) -> bool:
        self.asked.append(password)
        assert self.gate.wait(60)
        return self._checkpw(password, hashed)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Bcrypt]:
    """Passwords are checked while its gate is open."""
    made = _Bcrypt(monkeypatch)
    yield made
    made.gate.set()


@pytest.fixture
def accounts(tmp_path: Path) -> Path:
    """Two, with their own names as passwords."""
    path = tmp_path / "htpasswd"
    lines = [f"{name}:{bcrypt.hashpw(name.encode(), bcrypt.gensalt(4)).decode()}\n" for name in ("alice", "bob")]
    path.write_text("".join(lines))
    return path


def _entries(cache: str) -> int:
    """Of all caches of this name; those of earlier tests are gone."""
    gc.collect()
    stats = shown().get(cache)
    return stats.entries if stats else 0


def _basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


async def test_a_flood_of_wrong_passwords(
    accounts: Path, checks: _Bcrypt, registry: FakeRegistry, tmp_path: Path
) -> None:
    """The queue is bounded, the rest get `Retry-After`; a caller whose password was right before goes first."""
    registry.add_image("library/app", "1.0", [b"layer"])
    access: dict[str, Any] = {"anonymous": False, "htpasswd": accounts}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=access) as mirror:
        target = "/v2/library/app/manifests/1.0"
        clock = Clock(0.0)
        mirror.app.front._access._authentication._now = clock  # type: ignore[union-attr]  # there is one
        assert (await mirror.ask(target, headers=_basic("alice", "alice"))).status == 200
        token = (await mirror.ask("/token", headers=_basic("bob", "bob"))).json["token"]
        clock.time = 61.0
        checks.gate.clear()
        checks.asked.clear()
        guesses = [asyncio.create_task(mirror.ask(target, headers=_basic("alice", f"{n}"))) for n in range(300)]
        await until(lambda: sum(guess.done() for guess in guesses) == 300 - 2 - 32)
        refused = [guess.result() for guess in guesses if guess.done()]
        assert {(one.status, one.code, one.headers["Retry-After"]) for one in refused} == {
            (429, "TOOMANYREQUESTS", "5")
        }
        # tokens are no passwords
        assert (await mirror.ask(target, headers={"Authorization": f"Bearer {token}"})).status == 200
        alice = asyncio.create_task(mirror.ask(target, headers=_basic("alice", "alice")))
        await until(lambda: mirror.app.front._access._authentication._methods[-1]._queue._first)  # type: ignore[union-attr]  # there is one
        checks.gate.set()
        assert (await alice).status == 200
        assert checks.asked.index(b"alice") <= 3
        assert {answer.status for answer in await asyncio.gather(*guesses)} == {401, 429}
        assert len(checks.asked) == 2 + 32 + 1
        assert len([line for line in mirror.events("request") if "TooManyLogins" in line.get("error", "")]) == 266


async def test_clients_take_turns(accounts: Path, checks: _Bcrypt) -> None:
    """One who guesses fills a line of their own: another who comes later is checked next but one."""
    with ThreadPoolExecutor(1) as threads:
        way = Htpasswd(accounts, threads, queue=PasswordQueue(1, each=5, clients=2))
        way.load()
        checks.gate.clear()
        asked = [
            asyncio.create_task(way.identify(CallerCredentials("alice", f"guess {number}", client="mallory")))
            for number in range(10)
        ]
        await until(lambda: sum(one.done() for one in asked) == 4)
        bob = asyncio.create_task(way.identify(CallerCredentials("bob", "bob", client="bob's node")))
        await asyncio.sleep(0)
        with pytest.raises(TooManyLogins):
            await way.identify(CallerCredentials("bob", "bob", client="one more than is kept in mind"))
        checks.gate.set()
        assert await bob == Identity("bob", AuthMethod.PASSWORD)
        assert checks.asked.index(b"bob") <= 2
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(one) for one in results] == [type(None)] * 6 + [TooManyLogins] * 4
        # the line is empty again
        assert await way.identify(CallerCredentials("alice", "alice", client="mallory")) is not None


async def test_a_cancelled_check_passes_its_turn_on() -> None:
    """A check that is cancelled while it waits, or at the moment of its turn, blocks no other."""
    turns = PasswordQueue(1)
    done: list[str] = []

    async def take(name: str, gate: asyncio.Event) -> None:
        async with turns.turn(name, first=False):
            await gate.wait()
            done.append(name)

    opened = asyncio.Event()
    opened.set()
    async with turns.turn("holder", first=False):
        waiting = [asyncio.create_task(take(name, opened)) for name in ("a", "b", "c")]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
    # b has just been given its turn, and has not run yet
    waiting[1].cancel()
    await asyncio.wait(waiting)
    async with turns.turn("d", first=False):
        assert done == ["c"]


async def test_a_password_that_was_right(accounts: Path, checks: _Bcrypt) -> None:
    """It goes first as long as it is right: a password that was changed since is a guess like any other."""
    with ThreadPoolExecutor(1) as threads:
        way = Htpasswd(accounts, threads, queue=PasswordQueue(1, each=1))
        way.load()
        old = CallerCredentials("alice", "alice", client="x")
        assert await way.identify(old)
        changed = f"alice:{bcrypt.hashpw(b'new', bcrypt.gensalt(4)).decode()}\n"
        await asyncio.to_thread(accounts.write_text, changed)
        assert await way.identify(old) is None
        checks.gate.clear()
        waiting = [asyncio.create_task(way.identify(CallerCredentials("alice", f"{n}", client="x"))) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyLogins):
            await way.identify(old)
        checks.gate.set()
        assert await asyncio.gather(*waiting) == [None, None]


async def test_invented_tokens_displace_no_known_caller() -> None:
    """However many are refused, known callers stay known; the memory for both is bounded."""
    asked = []

    class _Way(StaticTokens):
        async def identify(self, presented: CallerCredentials) -> Identity | None:
            asked.append(presented.secret)
            return await super().identify(presented)

    before = _entries("refused credentials")
    authentication = Authentication([_Way([StaticToken("ci", "right")])], now=Clock(0.0))
    await authentication.identify(["Bearer right"])
    for number in range(10_100):
        with pytest.raises(Unauthorized):
            await authentication.identify([f"Bearer {number}"])
    await authentication.identify(["Bearer right"])
    assert asked.count("right") == 1
    assert _entries("refused credentials") == before + 10_000


@pytest.mark.parametrize("name", ["alice\n", "a\0lice", "\x7f", "alice\r\nX: y"])
async def test_control_characters(name: str, accounts: Path, registry: FakeRegistry, tmp_path: Path) -> None:
    """In a name or password they are refused (RFC 7617, 2), in either form of a login, and the log names no caller."""
    form = b"grant_type=password&username=x%00&password=y"
    access: dict[str, Any] = {"htpasswd": accounts}
    upstreams = {"docker.io": {"url": registry.url, "access": "verify"}}
    async with live_mirror(tmp_path / "store", upstreams, access=access) as mirror:
        for path in ("/token", "/v2/", "/v2/library/app/manifests/1.0"):
            assert (await mirror.ask(path, headers=_basic(name, "y"))).status == 401
            assert (await mirror.ask(path, headers=_basic("x", name))).status == 401
        head = f"POST /token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(form)}\r\n\r\n".encode()
        assert (await mirror.raw(head + form)).startswith(b"HTTP/1.1 401 ")
        assert not registry.requests
        assert "caller" not in {key for line in mirror.events("request") for key in line}


async def test_memory_for_unknown_callers_is_bounded(registry: FakeRegistry, tmp_path: Path) -> None:
    """Credentials that only upstream can judge, tokens that hold such, hosts and names made up: each of any length, and
    without end, they leave nothing behind in memory but hashes.
    """
    registry.add_image("library/app", "1.0", [b"layer"])
    upstreams: dict[str, Any] = {"docker.io": {"url": registry.url, "access": "verify"}}
    access: dict[str, Any] = {"rule": [{"effect": "allow", "callers": ["*"]}]}
    async with live_mirror(tmp_path / "store", upstreams, access=access) as mirror:
        gate = mirror.app.front._access
        assert gate
        identities, routes = _entries("identities"), _entries("routes")
        for number in range(20):
            who = {**_basic(f"stranger{number}", "secret " * 500), "Host": f"{number}.{'x' * 200}.example"}
            token = (await mirror.ask("/token", headers=who)).json["token"]
            assert (await mirror.ask("/token", headers=_basic("any", token))).json["token"] == token
            assert (await mirror.ask("/v2/library/app/manifests/1.0", headers=who)).status == 200
        assert _entries("identities") == identities
        assert {identity.own for identity, _, _ in gate._verdicts} == {None}
        assert _entries("routes") == routes + 1
        for name, password in (("n" * 513, "x"), ("x", "p" * 16_385)):
            form = f"grant_type=password&username={name}&password={password}"
            head = f"POST /token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(form)}\r\n\r\n"
            assert (await mirror.raw(f"{head}{form}".encode())).startswith(b"HTTP/1.1 401 ")
