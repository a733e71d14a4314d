"""Private images in a shared cache: each caller's own credentials must open at upstream what they are given here."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.config import load
from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import Clock, LiveMirror, live_mirror

_ALICE, _BOB = {"alice": "alices-word"}, {"bob": "bobs-word"}
_SECRET, _PUBLIC = "acme/secret", "acme/public"


@pytest.fixture(params=["bearer", "basic"])
def private(request: pytest.FixtureRequest) -> Iterator[FakeRegistry]:
    """A registry with two users and one repository that only alice may pull; with tokens, one is for everybody."""
    with FakeRegistry(tokens=request.param == "bearer", users={**_ALICE, **_BOB}) as registry:
        registry.rights = {"alice": {_SECRET, _PUBLIC}, "bob": {_PUBLIC}, "": {_PUBLIC}}
        yield registry


def _basic(user: dict[str, str]) -> dict[str, str]:
    [(name, word)] = user.items()
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{word}".encode()).decode()}


@asynccontextmanager
async def _verifying(
    root: Path, registry: FakeRegistry | str, clock: Clock | None = None, **more: Any
) -> AsyncIterator[LiveMirror]:
    url = registry if isinstance(registry, str) else registry.url
    async with live_mirror(root, {"reg.example": {"url": url, "access": "verify"}}, clock=clock, **more) as mirror:
        yield mirror


def _targets(registry: FakeRegistry, name: str) -> tuple[Digest, list[str]]:
    layer = f"layer of {name}".encode() * 1000
    digest = registry.add_image(name, "1.0", [layer])
    paths = ["manifests/1.0", f"manifests/{digest}", f"blobs/{Digest.of(layer)}", "tags/list", f"referrers/{digest}"]
    return digest, [f"/v2/{name}/{path}" for path in paths]


async def _statuses(mirror: LiveMirror, targets: list[str], headers: dict[str, str]) -> list[int]:
    return [(await mirror.ask(target, headers=headers)).status for target in targets]


def _everything(root: Path) -> bytes:
    return b"".join(file.read_bytes() for file in root.rglob("*") if file.is_file())


async def test_what_one_has_pulled_is_not_served_to_another(private: FakeRegistry, tmp_path: Path) -> None:
    """Alice pulls it with her own credentials, bob and the anonymous are refused everything of it, cached or not."""
    _, targets = _targets(private, _SECRET)
    async with _verifying(tmp_path, private) as mirror:
        assert await _statuses(mirror, targets, _basic(_BOB)) == [404] * 5
        assert await _statuses(mirror, targets, _basic(_ALICE)) == [200] * 5
        assert await _statuses(mirror, targets, _basic(_ALICE)) == [200] * 5
        assert await _statuses(mirror, targets, _basic(_BOB)) == [404] * 5
        assert await _statuses(mirror, targets, {}) == [401] * 5
        assert await _statuses(mirror, targets, _basic({"alice": "wrong"})) == [404] * 5
        for word in (*_ALICE.values(), *_BOB.values()):
            assert word not in mirror.log_text
    everything = await asyncio.to_thread(_everything, tmp_path)
    assert not [word for word in (*_ALICE.values(), *_BOB.values()) if word.encode() in everything]


async def test_the_other_order(private: FakeRegistry, tmp_path: Path) -> None:
    """In another process that has never seen alice, what lies on the disk is bob's no more than before."""
    _, targets = _targets(private, _SECRET)
    async with _verifying(tmp_path, private) as mirror:
        assert await _statuses(mirror, targets, _basic(_ALICE)) == [200] * 5
        await mirror.idle()
    async with _verifying(tmp_path, private) as mirror:
        # blobs first: what proves the right then is a manifest that is here
        assert await _statuses(mirror, targets[::-1], _basic(_BOB)) == [404] * 5
        assert await _statuses(mirror, targets[::-1], _basic(_ALICE)) == [200] * 5


async def test_a_blob_that_two_repositories_share(private: FakeRegistry, tmp_path: Path) -> None:
    """Bytes are shared, the right is not: by the name of a repository that lacks it, upstream has the word."""
    shared = b"shared" * 1000
    private.add_image(_SECRET, "1.0", [shared])
    digest = Digest.of(shared)
    async with _verifying(tmp_path, private) as mirror:
        assert (await mirror.ask(f"/v2/{_SECRET}/blobs/{digest}", headers=_basic(_ALICE))).status == 200
        await mirror.landed(digest)
        assert (await mirror.ask(f"/v2/{_PUBLIC}/blobs/{digest}", headers=_basic(_BOB))).status == 404
        assert (await mirror.ask(f"/v2/{_SECRET}/blobs/{digest}", headers=_basic(_BOB))).status == 404


async def test_logging_in(private: FakeRegistry, tmp_path: Path) -> None:
    """`/token` takes what is for upstream to judge; the token stands for it, encrypted."""
    _, targets = _targets(private, _SECRET)
    async with _verifying(tmp_path, private) as mirror:
        assert "Bearer realm=" in (await mirror.ask("/v2/")).headers["WWW-Authenticate"]
        tokens = {}
        for user in (_ALICE, _BOB):
            answer = await mirror.ask("/token?service=mirror", headers=_basic(user))
            tokens[next(iter(user))] = answer.json["token"]
            assert next(iter(user.values())) not in answer.json["token"]
        statuses = [await _statuses(mirror, targets, {"Authorization": f"Bearer {one}"}) for one in tokens.values()]
        assert statuses == [[200] * 5, [404] * 5]
        [blob] = [target for target in targets if "/blobs/" in target]
        assert {line["status"] for line in await mirror.logged("request", path=blob, caller="upstream:alice")} == {200}
        callers = {line["caller"] for line in mirror.events("request") if line["path"] == blob}
        assert callers == {"upstream:alice", "upstream:bob (not verified)"}


async def test_public_images_need_no_login(tmp_path: Path) -> None:
    """Where upstream gives it to everybody, so do we: anonymous, and with an account that is none there."""
    with FakeRegistry(tokens=True, users=_ALICE) as registry:
        registry.rights = {"": {_PUBLIC}, "alice": {_PUBLIC}}
        _, targets = _targets(registry, _PUBLIC)
        access = {"token": [{"name": "ci", "token": "s3cret"}]}
        async with _verifying(tmp_path, registry, access=access) as mirror:
            assert await _statuses(mirror, targets, {}) == [200] * 5
            assert await _statuses(mirror, targets, {"Authorization": "Bearer s3cret"}) == [200] * 5
            assert await _statuses(mirror, targets, _basic({"mallory": "x"})) == [404] * 5


async def test_how_long_a_word_counts(private: FakeRegistry, tmp_path: Path) -> None:
    """A right that is taken away upstream is gone here after `verified_for`; a refusal is looked at again sooner."""
    _, targets = _targets(private, _SECRET)
    async with _verifying(tmp_path, private) as mirror:
        steady = [0.0]
        verifier = mirror.app.front._access._verifier_of("reg.example")  # type: ignore[union-attr]  # there is one
        assert verifier
        verifier._now = lambda: steady[0]
        blob = targets[2:3]
        assert await _statuses(mirror, blob, _basic(_ALICE)) == [200]
        assert private.rights
        private.rights["alice"] = set()
        private.expire_tokens()
        steady[0] = 299.0
        assert await _statuses(mirror, blob, _basic(_ALICE)) == [200]
        steady[0] = 301.0
        assert await _statuses(mirror, blob, _basic(_ALICE)) == [404]
        private.rights["alice"] = {_SECRET}
        private.expire_tokens()
        await mirror.app.shared.questions.memo.aclose()
        steady[0] = 310.0
        assert await _statuses(mirror, blob, _basic(_ALICE)) == [404]
        mirror.clock.forward(400)
        steady[0] = 320.0
        assert await _statuses(mirror, blob, _basic(_ALICE)) == [200]


async def test_while_upstream_is_down(tmp_path: Path) -> None:
    """Who was let in lately stays so, for a bounded time; nobody new is let in."""
    with FakeRegistry(tokens=True, users={**_ALICE, **_BOB}) as registry:
        registry.rights = {"alice": {_SECRET}}
        _, targets = _targets(registry, _SECRET)
        async with _verifying(tmp_path, registry) as mirror:
            steady = [0.0]
            verifier = mirror.app.front._access._verifier_of("reg.example")  # type: ignore[union-attr]  # there is one
            assert verifier
            verifier._now = lambda: steady[0]
            assert await _statuses(mirror, targets[:3], _basic(_ALICE)) == [200] * 3
            await mirror.idle()
            registry.__exit__(None, None, None)
            steady[0] = 3000.0
            assert await _statuses(mirror, targets[1:3], _basic(_ALICE)) == [200] * 2
            assert mirror.events("access not verified again")
            assert await _statuses(mirror, targets[1:3], _basic(_BOB)) == [503] * 2
            steady[0] = 4000.0
            assert await _statuses(mirror, targets[1:3], _basic(_ALICE)) == [503] * 2


async def test_a_shared_upstream_beside_it(private: FakeRegistry, registry: FakeRegistry, tmp_path: Path) -> None:
    """Credentials for one upstream are worth nothing at another: they are not sent there."""
    registry.add_image("library/app", "1.0", [b"layer"])
    _, targets = _targets(private, _SECRET)
    upstreams: dict[str, Any] = {
        "docker.io": registry.url,
        "reg.example": {"url": private.url, "access": "verify"},
    }
    rules = [{"effect": "deny", "callers": ["anonymous"], "repositories": ["docker.io/library/other"]}]
    async with live_mirror(tmp_path, upstreams, access={"rule": rules}) as mirror:
        alice = _basic(_ALICE)
        assert (await mirror.ask("/v2/library/app/manifests/1.0", headers=alice)).status == 200
        assert (await mirror.ask("/v2/library/other/manifests/1.0", headers=alice)).status == 401
        assert (await mirror.ask(f"{targets[0]}?ns=reg.example", headers=alice)).status == 200
        assert not [request for request in registry.requests if request.header("Authorization")]


async def test_a_hundred_callers_ask_upstream_once_each(private: FakeRegistry, tmp_path: Path) -> None:
    """Whoever asks again is remembered; many requests of one caller at once are one question."""
    digest, targets = _targets(private, _SECRET)
    async with _verifying(tmp_path, private) as mirror:
        assert await _statuses(mirror, targets[:2], _basic(_ALICE)) == [200] * 2
        before = len(private.requests)
        await asyncio.gather(*[_statuses(mirror, targets[1:2], _basic(_BOB)) for _ in range(50)])
        asked = [one for one in private.requests[before:] if one.method == "HEAD" and str(digest) in one.target]
        # with a challenge on the way
        assert len(asked) <= 2


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ('access = "verify"\nendpoints = ["https://mirror.example"]', "upstream[1]: endpoints: not possible"),
        ('access = "open"', "upstream[1].access"),
    ],
)
def test_mistakes(text: str, mistake: str, tmp_path: Path) -> None:
    """What cannot be verified is refused at the start."""
    file = tmp_path / "mirror.toml"
    file.write_text(f'default_registry = ""\n[[upstream]]\nname = "reg.example"\n{text}\n')
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert any(one.startswith(mistake) for one in caught.value.mistakes), caught.value.mistakes
    file.write_text('default_registry = ""\noffline = true\n[[upstream]]\nname = "reg.example"\naccess = "verify"\n')
    with pytest.raises(ConfigError, match=r"offline: reg\.example with access = verify"):
        load(file)
