"""Which registry a request means, seen from outside: what is asked of whom."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror


@pytest.fixture
def other() -> Iterator[FakeRegistry]:
    """A second upstream."""
    with FakeRegistry() as running:
        yield running


@pytest.fixture
async def mirror(registry: FakeRegistry, other: FakeRegistry, tmp_path: Path) -> AsyncIterator[LiveMirror]:
    """docker.io with its aliases, and ghcr.io, which has a host of its own at the mirror."""
    upstreams = {
        "docker.io": {"url": registry.url, "aliases": ["index.docker.io", "registry-1.docker.io"]},
        "ghcr.io": {"url": other.url, "host_headers": ["ghcr.mirror.test"]},
    }
    async with live_mirror(tmp_path / "store", upstreams) as running:
        yield running


def _asked(registry: FakeRegistry) -> set[str]:
    return {request.path for request in registry.requests}


@pytest.mark.parametrize(
    "target",
    [
        "/v2/app/manifests/v1",
        "/v2/library/app/manifests/v1",
        "/v2/app/manifests/v1?ns=docker.io",
        "/v2/library/app/manifests/v1?ns=index.docker.io",
        "/v2/library/app/manifests/v1?ns=registry-1.docker.io",
        "/v2/library/app/manifests/v1?ns=DOCKER.IO",
        "/v2/docker.io/app/manifests/v1",
        "/v2/docker.io/library/app/manifests/v1",
        "/v2/index.docker.io/library/app/manifests/v1",
        "/v2/docker.io/library/app/manifests/v1?ns=docker.io",
        "/v2/registry-1.docker.io/app/manifests/v1?ns=docker.io",
        "/v2/library%2Fapp/manifests/v1",
    ],
)
async def test_many_names_of_one_image(
    registry: FakeRegistry, other: FakeRegistry, mirror: LiveMirror, target: str
) -> None:
    """By default, by `ns`, by path, by both, by alias: it is one image of one registry."""
    digest = registry.add_image("library/app", "v1", [b"layer"])
    answer = await mirror.ask(target)
    assert answer.status == 200
    assert answer.headers["Docker-Content-Digest"] == str(digest)
    assert _asked(registry) == {"/v2/library/app/manifests/v1", f"/v2/library/app/manifests/{digest}"}
    assert not other.requests


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("/v2/owner/app/manifests/v1?ns=ghcr.io", None),
        ("/v2/ghcr.io/owner/app/manifests/v1", None),
        ("/v2/ghcr.io/owner/app/manifests/v1?ns=ghcr.io", None),
        ("/v2/owner/app/manifests/v1", "ghcr.mirror.test"),
        ("/v2/owner/app/manifests/v1", "GHCR.mirror.test:5000"),
        ("/v2/ghcr.io/owner/app/manifests/v1", "ghcr.mirror.test"),
        ("/v2/owner/app/manifests/v1?ns=docker.io", "ghcr.mirror.test"),
    ],
)
async def test_the_other_registry(
    registry: FakeRegistry, other: FakeRegistry, mirror: LiveMirror, target: str, host: str | None
) -> None:
    """A configured Host goes before `ns`, which goes before the path, which goes before the default."""
    digest = other.add_image("owner/app", "v1", [b"layer"])
    answer = await mirror.ask(target, headers={"Host": host} if host else None)
    assert answer.status == 200
    assert answer.headers["Docker-Content-Digest"] == str(digest)
    assert not registry.requests


async def test_one_part_names_are_only_special_on_docker_hub(other: FakeRegistry, mirror: LiveMirror) -> None:
    """`library/` is Docker Hub's own rule."""
    other.add_image("app", "v1", [b"layer"])
    assert (await mirror.ask("/v2/app/manifests/v1?ns=ghcr.io")).status == 200


@pytest.mark.parametrize("ns", ["evil.example", "169.254.169.254", "localhost:1", "quay.io"])
async def test_70_an_unknown_ns_contacts_no_host(
    registry: FakeRegistry, other: FakeRegistry, mirror: LiveMirror, ns: str
) -> None:
    """Row 70: `ns` leads to configured registries only; another one is 404 and nobody is asked."""
    for kind in ("manifests/v1", "tags/list"):
        answer = await mirror.ask(f"/v2/library/app/{kind}?ns={ns}")
        assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
    assert not registry.requests
    assert not other.requests


@pytest.mark.parametrize("ns", ["http://evil.example", "a@b", "..", "ghcr.io/x", "%00", "a%0d%0ab", "a" * 300])
async def test_70_odd_ns_is_refused(registry: FakeRegistry, mirror: LiveMirror, ns: str) -> None:
    """Row 70: what is no name of a registry is refused before anything else."""
    answer = await mirror.ask(f"/v2/library/app/manifests/v1?ns={ns}")
    assert (answer.status, answer.code) == (400, "NAME_INVALID")
    assert not registry.requests


async def test_70_an_unknown_host_header_contacts_no_host(
    registry: FakeRegistry, other: FakeRegistry, mirror: LiveMirror
) -> None:
    """Row 70: a Host that is not configured is not a name of a registry; the default one is meant."""
    registry.add_image("library/app", "v1", [b"layer"])
    answer = await mirror.ask("/v2/library/app/manifests/v1", headers={"Host": "169.254.169.254"})
    assert answer.status == 200
    assert not other.requests
    assert all("169.254" not in value for request in registry.requests for _, value in request.headers)


async def test_unconfigured_registry_in_the_path(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """A first part that looks like a host but is not configured is just a name of the default registry."""
    registry.add_blob("evil.example/app", b"so that the repository exists")
    answer = await mirror.ask("/v2/evil.example/app/manifests/v1")
    assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")
    assert _asked(registry) == {"/v2/evil.example/app/manifests/v1"}


async def test_no_default(registry: FakeRegistry, tmp_path: Path) -> None:
    """Without a default registry a request must name one."""
    registry.add_image("library/app", "v1", [b"layer"])
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, default_registry="") as mirror:
        answer = await mirror.ask("/v2/library/app/manifests/v1")
        assert (answer.status, answer.code) == (404, "NAME_UNKNOWN")
        assert not registry.requests
        assert (await mirror.ask("/v2/library/app/manifests/v1?ns=docker.io")).status == 200


async def test_wildcard(registry: FakeRegistry, tmp_path: Path) -> None:
    """Below a wildcard each host is a registry of its own; the domain itself and look-alikes are none.

    Nothing answers at these names (RFC 6761, 6.4), so that a routed request is told by how it fails.
    """
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url, "*.mirror.invalid": {}}) as mirror:
        for ns in ("mirror.invalid", "xmirror.invalid", "*.mirror.invalid"):
            answer = await mirror.ask(f"/v2/owner/app/manifests/v1?ns={ns}")
            assert answer.status in (400, 404), ns
            assert answer.code in ("NAME_UNKNOWN", "NAME_INVALID")
        for target in ("/v2/owner/app/manifests/v1?ns=eu.mirror.invalid", "/v2/a.eu.mirror.invalid/app/manifests/v1"):
            answer = await mirror.ask(target)
            assert (answer.status, answer.code) == (503, "UNAVAILABLE")
            assert answer.headers["Retry-After"]
    assert not registry.requests


async def test_same_name_on_two_registries(registry: FakeRegistry, other: FakeRegistry, mirror: LiveMirror) -> None:
    """Content is filed under its registry: equal names do not mix, also not from the cache."""
    mine = registry.add_image("owner/app", "v1", [b"mine"])
    theirs = other.add_image("owner/app", "v1", [b"theirs"])
    for _ in range(2):
        assert (await mirror.ask("/v2/owner/app/manifests/v1")).headers["Docker-Content-Digest"] == str(mine)
        answer = await mirror.ask("/v2/owner/app/manifests/v1?ns=ghcr.io")
        assert answer.headers["Docker-Content-Digest"] == str(theirs)
