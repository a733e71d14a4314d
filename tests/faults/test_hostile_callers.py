"""Two callers of a registry that is asked about each of them: what one is refused, or uses up, is not the other's loss,
and what one is given is not the other's gain.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.digest import Digest
from tests.support.fake_registry import FakeRegistry, Fault, stall, status
from tests.support.live_mirror import LiveMirror, live_mirror, reached
from tests.support.scripted import Answering, Request, Script, Stall

_NAME = "acme/secret"
_LAYER = b"layer" * 10_000


def _basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


_ALICE, _BOB = _basic("alice", "alices-word"), _basic("bob", "bobs-word")


@pytest.fixture
def private() -> Iterator[FakeRegistry]:
    """A registry with two users who may both pull, at first."""
    with FakeRegistry(tokens=True, users={"alice": "alices-word", "bob": "bobs-word"}) as registry:
        registry.rights = {"alice": {_NAME}, "bob": {_NAME}}
        registry.add_image(_NAME, "1.0", [_LAYER])
        registry.add_image(_NAME, "2.0", [b"other"])
        yield registry


@asynccontextmanager
async def _verifying(root: Path, registry: FakeRegistry, **more: Any) -> AsyncIterator[LiveMirror]:
    async with live_mirror(root, {"reg.example": {"url": registry.url, "access": "verify"}}, **more) as mirror:
        for who in (_ALICE, _BOB):
            # the right of both is known, and holds for a while
            assert await _status(mirror, "tags/list", who) == 200
        yield mirror


async def _status(mirror: LiveMirror, path: str, who: dict[str, str], **more: str) -> int:
    return (await mirror.ask(f"/v2/{_NAME}/{path}", headers={**who, **more})).status


@pytest.mark.parametrize(
    ("kind", "path"),
    [("manifests", "manifests/2.0"), ("blobs", f"blobs/{Digest.of(_LAYER)}"), ("manifests", "digest")],
)
async def test_one_caller_gets_404(private: FakeRegistry, tmp_path: Path, kind: str, path: str) -> None:
    """A registry hides by 404 what one may not see any more: that is remembered of that one alone."""
    path = f"manifests/{private.add_image(_NAME, None, [b'third'])}" if path == "digest" else path
    async with _verifying(tmp_path, private) as mirror:
        private.fail(kind, _for_the_first(status(404)), times=8)
        assert await _status(mirror, path, _BOB) == 404
        assert await _status(mirror, path, _ALICE) == 200
        assert await _status(mirror, path, {}) == 401


def _for_the_first(fault: Fault) -> Fault:
    """The answer to the first caller, for each request (HEAD, then GET); other callers get what they may have."""
    first: list[str | None] = []

    def judged(request: Request, answer: Answering) -> Script:
        caller = request.header("Authorization")
        if not first:
            first.append(caller)
        return fault(request, answer) if caller == first[0] else answer(request)

    return judged


def _refused_later(gate: Stall) -> Fault:
    """Not let in any more, after a while."""

    def fault(request: Request, answer: Answering) -> Script:
        return [gate, *status(403)(request, answer)]

    return _for_the_first(fault)


@pytest.mark.parametrize(
    ("kind", "path"), [("manifests", "manifests/2.0"), ("blobs", f"blobs/{Digest.of(_LAYER)}"), ("tags", "tags/list")]
)
async def test_one_joins_what_another_is_refused(private: FakeRegistry, tmp_path: Path, kind: str, path: str) -> None:
    """Work that is under way for one who turns out to have no right fails for that one alone."""
    async with _verifying(tmp_path, private) as mirror:
        mirror.clock.forward(61)  # lists are remembered so long
        gate = Stall()
        private.fail(kind, _refused_later(gate), times=8)
        bob = asyncio.create_task(_status(mirror, path, _BOB))
        await reached(gate)
        alice = asyncio.create_task(_status(mirror, path, _ALICE))
        for _ in range(500):
            # alice comes to where bob waits, or past it
            await asyncio.sleep(0)
        gate.release()
        assert (await bob, await alice) == (403, 200)


async def test_one_without_a_right_joins_a_flight(private: FakeRegistry, tmp_path: Path) -> None:
    """Nothing that is fetched for alice goes to a caller without the right: no whole, no part, no 304."""
    assert private.rights
    private.rights["carol"] = set()
    private.users["carol"] = "carols-word"
    carol, digest = _basic("carol", "carols-word"), Digest.of(_LAYER)
    async with _verifying(tmp_path, private) as mirror:
        gate = Stall()
        private.fail("blobs", stall(gate, after=20_000))
        alice = asyncio.create_task(_status(mirror, f"blobs/{digest}", _ALICE))
        await reached(gate)
        more: list[dict[str, str]] = [
            {},
            {"Range": "bytes=0-9"},
            {"If-None-Match": f'"{digest}"'},
            {"If-None-Match": "*"},
        ]
        for who, refused in ((carol, 404), ({}, 401)):
            assert [await _status(mirror, f"blobs/{digest}", who, **one) for one in more] == [refused] * 4
        gate.release()
        assert await alice == 200
        assert [await _status(mirror, f"blobs/{digest}", carol, **one) for one in more] == [404] * 4


async def test_one_has_no_pulls_left(private: FakeRegistry, tmp_path: Path) -> None:
    """Registries count by account: a caller whose account is used up or throttled waits alone, and keeps waiting."""
    async with _verifying(tmp_path, private) as mirror:
        private.budget = (100, 0)
        assert await _status(mirror, "manifests/1.0", _BOB) == 429
        private.budget = (100, 50)
        assert await _status(mirror, "manifests/1.0", _ALICE) == 200
        assert await _status(mirror, "manifests/2.0", _BOB) == 429
        private.budget = None
        private.fail("blobs", status(429, {"Retry-After": "60"}))
        assert await _status(mirror, f"blobs/{Digest.of(b'other')}", _BOB) == 429
        assert await _status(mirror, f"blobs/{Digest.of(_LAYER)}", _ALICE) == 200


async def test_a_shared_name_is_not_locked_out(private: FakeRegistry, tmp_path: Path) -> None:
    """Robots share user names (`AWS`): wrong passwords at one registry lock the name out there alone, and not for those
    whose credentials that registry has accepted."""
    with FakeRegistry(tokens=True, users={"alice": "other-word"}) as other:
        other.rights = {"alice": {_NAME, "team/second"}}
        for name in (_NAME, "team/second"):
            other.add_image(name, "1.0", [_LAYER])
        registries = {
            "reg.example": {"url": private.url, "access": "verify"},
            "other.example": {"url": other.url, "access": "verify"},
        }
        async with live_mirror(tmp_path, registries) as mirror:

            async def status_of(host: str, who: dict[str, str], name: str = _NAME) -> int:
                return (await mirror.ask(f"/v2/{name}/manifests/1.0?ns={host}", headers=who)).status

            elsewhere = _basic("alice", "other-word")
            assert await status_of("other.example", elsewhere) == 200
            guesses = [await status_of("reg.example", _basic("alice", f"guess {number}")) for number in range(12)]
            assert guesses[-1] == 429
            # this registry has not been asked about these yet
            assert await status_of("reg.example", _ALICE) == 429
            # another registry, and there even after as many guesses, what it has accepted before
            assert await status_of("other.example", elsewhere) == 200
            guesses = [await status_of("other.example", _basic("alice", f"guess {number}")) for number in range(12)]
            assert guesses[-1] == 429
            assert await status_of("other.example", elsewhere, "team/second") == 200


async def test_one_guesses_the_password_of_another(private: FakeRegistry, tmp_path: Path) -> None:
    """After some that upstream has refused it is not asked about more of this name, from this place, for a minute; who
    was let in before goes on, and other names do.
    """
    async with _verifying(tmp_path, private) as mirror:
        steady = [0.0]
        verifier = mirror.app.front._access._verifier_of("reg.example")  # type: ignore[union-attr]  # there is one
        assert verifier
        verifier._now = lambda: steady[0]
        path = "manifests/1.0"
        assert [await _status(mirror, path, who) for who in (_ALICE, _BOB)] == [200, 200]
        guesses = [await _status(mirror, path, _basic("alice", f"guess {number}")) for number in range(15)]
        assert guesses == [404] * 10 + [429] * 5
        before = len(private.requests)
        token = (await mirror.ask("/token", headers=_basic("alice", "guess 20"))).json["token"]
        assert await _status(mirror, path, {"Authorization": f"Bearer {token}"}) == 429
        assert await _status(mirror, path, _basic("alice", "guess 3")) == 404
        assert len(private.requests) == before
        assert await _status(mirror, path, _ALICE) == 200
        assert await _status(mirror, path, _basic("carol", "guess")) == 404
        steady[0] = 61.0
        assert await _status(mirror, path, _basic("alice", "guess 20")) == 404
        # not any faster side by side
        steady[0] = 200.0
        private.forget()
        many = [asyncio.create_task(_status(mirror, path, _basic("alice", f"new {number}"))) for number in range(200)]
        counted = Counter(await asyncio.gather(*many))
        assert counted.keys() == {404, 429}
        assert counted[404] <= 10 + 32
        assert private.count("token") <= 10 + 32
        # nor by one name after the other: upstream would lock the mirror out
        steady[0] = 300.0
        private.forget()
        names = [await _status(mirror, path, _basic(f"name{number}", "guess")) for number in range(150)]
        assert names == [404] * 100 + [429] * 50
        assert private.count("token") == 100
        assert [await _status(mirror, path, who) for who in (_ALICE, _BOB)] == [200, 200]
        # what one has is asked for side by side
        bob = _basic("bob", "bobs-word")
        steady[0] = 1000.0
        verifier._verdicts.clear()
        paths = [f"blobs/{Digest.of(b'%d' % number)}" for number in range(100)]
        assert set(await asyncio.gather(*[_status(mirror, one, bob) for one in paths])) == {404}
        assert await _status(mirror, path, bob) == 200


async def test_a_token_of_ours_is_shown_to_no_upstream(private: FakeRegistry, tmp_path: Path) -> None:
    """One that has run out, or is another mirror's, is refused; taken for a password, it would go to the registry."""
    async with _verifying(tmp_path / "a", private) as mirror:
        token = (await mirror.ask("/token", headers=_ALICE)).json["token"]
    assert token.startswith("mirror-1.")
    private.forget()
    async with live_mirror(tmp_path / "b", {"reg.example": {"url": private.url, "access": "verify"}}) as mirror:
        for path in ("/token", f"/v2/{_NAME}/manifests/1.0"):
            assert (await mirror.ask(path, headers=_basic("alice", token))).status == 401
    assert not private.requests


async def test_one_goes_by_the_name_of_another(private: FakeRegistry, tmp_path: Path) -> None:
    """The audit log names the caller whom upstream has verified; a name that is only claimed is marked."""
    mallory = _basic("alice", "a guess")
    with FakeRegistry() as shared:
        shared.add_image("library/app", "1.0", [b"layer"])
        upstreams: dict[str, Any] = {
            "docker.io": shared.url,
            "reg.example": {"url": private.url, "access": "verify"},
        }
        audit = tmp_path / "audit"
        async with live_mirror(tmp_path / "store", upstreams, access={"audit_log": audit}) as mirror:
            await mirror.ask("/token", headers=mallory)
            await mirror.ask("/v2/library/app/manifests/1.0", headers=mallory)
            await mirror.ask(f"/v2/reg.example/{_NAME}/manifests/1.0", headers=mallory)
            await mirror.ask(f"/v2/reg.example/{_NAME}/manifests/1.0", headers=_ALICE)
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    claimed = "upstream:alice (not verified)"
    assert [(line["caller"], line["status"]) for line in lines] == [
        (claimed, 200),
        (claimed, 200),
        (claimed, 404),
        ("upstream:alice", 200),
    ]


async def test_a_mirror_without_anonymous_callers(private: FakeRegistry, tmp_path: Path) -> None:
    """Credentials that only one upstream could judge open nothing else: no catalog, no other registry."""
    with FakeRegistry() as shared:
        shared.add_image("library/app", "1.0", [b"layer"])
        upstreams: dict[str, Any] = {
            "docker.io": shared.url,
            "reg.example": {"url": private.url, "access": "verify"},
        }
        access = {"anonymous": False, "token": [{"name": "ci", "token": "s3cret"}]}
        async with live_mirror(tmp_path, upstreams, access=access) as mirror:
            target = "/v2/library/app/manifests/1.0"
            assert (await mirror.ask(target, headers={"Authorization": "Bearer s3cret"})).status == 200
            for who in (_ALICE, _basic("ci", "wrong"), _basic("x", "y")):
                assert (await mirror.ask(target, headers=who)).status == 401
                assert (await mirror.ask("/v2/_catalog", headers=who)).json == {"repositories": []}
                secret = f"/v2/reg.example/{_NAME}/manifests/1.0"
                assert (await mirror.ask(secret, headers=who)).status == (200 if who == _ALICE else 404)
            assert (await mirror.ask("/v2/_catalog")).status == 401
