"""A registry that counts pulls, as Docker Hub does: less is asked as little is left, and nothing at zero."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror
from tests.support.redis_server import RedisServer

V1 = "/v2/library/app/manifests/v1"


async def metric(mirror: LiveMirror, name: str) -> float:
    """Its value for the one upstream."""
    lines = (await mirror.ask("/metrics")).body.decode().splitlines()
    return float(next(line.split(" ")[1] for line in lines if line.startswith(f'{name}{{upstream="docker.io"}}')))


async def test_what_is_left_is_shown(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """As the registry last said, by HEAD and by GET."""
    registry.add_image("library/app", "v1", [b"layer"])
    registry.budget = 100, 80
    assert (await mirror.ask(V1)).status == 200
    assert await metric(mirror, "mirror_upstream_budget_limit") == 100
    assert await metric(mirror, "mirror_upstream_budget_remaining") == 79


async def test_no_pull_is_spent_on_what_is_here(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """An unchanged tag is revalidated by HEAD alone, by tag and by digest, however often."""
    digest = registry.add_image("library/app", "v1", [b"layer"])
    registry.budget = 100, 80
    for _ in range(5):
        assert (await mirror.ask(V1)).status == 200
        assert (await mirror.ask(f"/v2/library/app/manifests/{digest}")).status == 200
        mirror.clock.forward(301)
    assert registry.budget == (100, 79)
    assert registry.count("manifests", "HEAD") == 5


async def test_tags_are_believed_longer_as_it_falls(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """With a tenth left, a time of five minutes is twenty-five; with plenty it is five again."""
    registry.add_image("library/app", "v1", [b"layer"])
    registry.budget = 100, 11
    await mirror.ask(V1)
    assert registry.budget == (100, 10)
    mirror.clock.forward(1490)
    assert (await mirror.ask(V1)).cache == "hit"
    assert registry.count("manifests", "HEAD") == 1
    registry.budget = 100, 90
    mirror.clock.forward(20)
    await mirror.ask(V1)
    assert registry.count("manifests", "HEAD") == 2
    mirror.clock.forward(310)
    await mirror.ask(V1)
    assert registry.count("manifests", "HEAD") == 3


async def test_at_zero_what_is_here_is_served_stale(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A tag that moved meanwhile, too: its new image could not be had. With a Warning, and without asking."""
    old = registry.add_image("library/app", "v1", [b"old"])
    registry.budget = 100, 1
    assert (await mirror.ask(V1)).status == 200
    assert registry.budget == (100, 0)
    new = registry.add_image("library/app", "v1", [b"new"])
    mirror.clock.forward(3001)
    registry.forget()
    for _ in range(3):
        answer = await mirror.ask(V1)
        assert answer.headers["Docker-Content-Digest"] == str(old)
        assert "Warning" in answer.headers
        mirror.clock.forward(6)
    # one look, to see whether there is something again
    assert [request.method for request in registry.of_kind("manifests")] == ["HEAD"]
    assert (await mirror.ask(f"/v2/library/app/blobs/{Digest.of(b'old')}")).status == 200
    registry.budget = 100, 100
    mirror.clock.forward(61)
    assert (await mirror.ask(V1)).headers["Docker-Content-Digest"] == str(new)


async def test_at_zero_what_is_not_here_is_429(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """With the time until the window is over, and without spending what is not there."""
    registry.add_image("library/app", "v1", [b"layer"])
    other = registry.add_image("library/app", "v2", [b"other"])
    registry.budget = 100, 1
    await mirror.ask(V1)
    mirror.clock.forward(30)
    registry.forget()
    for target in ("/v2/library/app/manifests/v2", f"/v2/library/app/manifests/{other}"):
        answer = await mirror.ask(target)
        assert (answer.status, answer.code) == (429, "TOOMANYREQUESTS")
        assert int(answer.headers["Retry-After"]) == 21600 - 30
    assert registry.requests == []
    # the window is over: whatever was known is no longer true
    registry.budget = 100, 100
    mirror.clock.forward(21600)
    assert (await mirror.ask("/v2/library/app/manifests/v2")).status == 200


async def test_a_refusal_tells_too(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Faults row 10: a 429 that says that nothing is left is the budget's, however it was spent."""
    registry.add_image("library/app", "v1", [b"layer"])
    digest = registry.add_image("library/app", "v2", [b"other"])
    await mirror.ask(V1)
    registry.budget = 100, 0
    assert (await mirror.ask(f"/v2/library/app/manifests/{digest}")).status == 429
    assert await metric(mirror, "mirror_upstream_budget_remaining") == 0
    registry.forget()
    mirror.clock.forward(59)
    assert (await mirror.ask(f"/v2/library/app/manifests/{digest}")).status == 429
    assert registry.requests == []


@pytest.mark.parametrize("counted", [True, False])
async def test_what_one_process_learns_others_know(registry: FakeRegistry, tmp_path: Path, counted: bool) -> None:
    """Through Redis, replicas share the last word about what is left; a registry that does not count has none."""
    registry.add_image("library/app", "v1", [b"layer"])
    digest = registry.add_image("library/app", "v2", [b"other"])
    with RedisServer() as redis:
        index = {"url": redis.url, "timeout": 20}
        upstreams = {"docker.io": registry.url}
        async with (
            live_mirror(tmp_path / "one", upstreams, index=index) as one,
            live_mirror(tmp_path / "two", upstreams, index=index, clock=one.clock) as two,
        ):
            registry.budget = (100, 1) if counted else None
            assert (await one.ask(V1)).status == 200
            registry.forget()
            answer = await two.ask(f"/v2/library/app/manifests/{digest}")
            assert answer.status == (429 if counted else 200)
            assert len(registry.requests) == (0 if counted else 1)
