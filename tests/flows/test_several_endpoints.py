"""Several endpoints of one upstream, seen through the whole mirror."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.config import load
from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from tests.support.certificates import Certificate
from tests.support.fake_registry import FakeRegistry, cut, status
from tests.support.live_mirror import live_mirror, noise
from tests.support.proxy import HttpProxy

LAYER = noise(3_000_000)


@pytest.fixture
def near() -> Iterator[FakeRegistry]:
    """A mirror of the registry."""
    with FakeRegistry() as running:
        yield running


async def test_a_pull_over_several_endpoints(registry: FakeRegistry, near: FakeRegistry, tmp_path: Path) -> None:
    """The client notices nothing of a mirror that breaks off: the blob goes on at the registry, from the same byte."""
    for one in (registry, near):
        digest = one.add_image("library/app", "v1", [LAYER])
    near.fail("blobs", cut(1_000_000))
    upstream = {"url": registry.url, "endpoints": [near.url]}
    async with live_mirror(tmp_path / "store", {"docker.io": upstream}) as mirror:
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
        assert registry.requests == []
        answer = await mirror.ask(f"/v2/library/app/blobs/{Digest.of(LAYER)}")
        assert (answer.status, answer.body == LAYER) == (200, True)
        [resumed] = registry.of_kind("blobs")
        assert 0 < resumed.start <= 1_000_000
        near.fail("manifests", status(404), times=2)
        mirror.clock.forward(301)
        assert (await mirror.ask("/v2/library/app/manifests/v1")).headers["Docker-Content-Digest"] == str(digest)
        assert registry.count("manifests") == 1
        text = (await mirror.ask("/metrics")).body.decode()
        assert f'mirror_endpoint_failures_total{{endpoint="{near.url}"' in text


async def test_an_endpoint_with_settings_of_its_own(near: FakeRegistry, tmp_path: Path) -> None:
    """Its credentials and its proxy are its own."""
    near.users = {"user": "near"}
    near.add_image("library/app", "v1", [LAYER])
    with FakeRegistry(users={"user": "far"}) as registry, HttpProxy() as proxy:
        registry.add_image("library/app", "far", [b"x"])
        upstream = {
            "url": registry.url,
            "username": "user",
            "password": "far",
            "endpoints": [{"url": near.url, "username": "user", "password": "near", "proxy": proxy.url}],
        }
        async with live_mirror(tmp_path / "store", {"docker.io": upstream}) as mirror:
            assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 200
            assert registry.requests == []
            assert (await mirror.ask("/v2/library/app/manifests/far")).status == 200
        assert len(proxy.requests) == near.count("manifests")


@pytest.mark.parametrize(
    ("lines", "mistake"),
    [
        ('endpoints = ["ftp://x"]', "upstream[1].endpoints[1].url: not an http or https URL"),
        ('endpoints = [{url = "https://x", username = "u"}]', "belong together"),
        ('endpoints = [{url = "https://x", ca_file = "/no/such"}]', "endpoints[1].ca_file: /no/such cannot be read"),
        ('client_key = "/k"', "client_certificate and client_key belong together"),
        ('proxy = "socks5://canary"', "proxy is neither http://host:port"),
        ('proxy_file = "/no/such"', "proxy_file: /no/such"),
        ("hedge_after = 0", "must be more than 0"),
    ],
)
def test_mistakes_about_endpoints(tmp_path: Path, lines: str, mistake: str) -> None:
    """Each is named, with its place."""
    path = tmp_path / "mirror.toml"
    path.write_text(f'[[upstream]]\nname = "docker.io"\n{lines}\n')
    with pytest.raises(ConfigError) as failure:
        load(path)
    assert mistake in str(failure.value)
    assert "canary" not in str(failure.value)


def test_endpoints_of_a_wildcard(tmp_path: Path) -> None:
    """Each host below a domain is its own."""
    path = tmp_path / "mirror.toml"
    path.write_text('default_registry = ""\n[[upstream]]\nname = "*.pkg.dev"\nendpoints = ["https://x"]\n')
    with pytest.raises(ConfigError, match="endpoints: not possible for a wildcard"):
        load(path)


def test_secrets_of_endpoints_are_read(tmp_path: Path) -> None:
    """As those of the upstream itself, from files."""
    (tmp_path / "secret").write_text("s3cret\n")
    (tmp_path / "proxy").write_text("http://me:pw@proxy:3128\n")
    path = tmp_path / "mirror.toml"
    path.write_text(
        f"""
[[upstream]]
name = "docker.io"
proxy_file = "{tmp_path}/proxy"
[[upstream.endpoints]]
url = "https://near.test/"
username = "u"
password_file = "{tmp_path}/secret"
"""
    )
    [upstream] = load(path).upstream
    [endpoint] = upstream.endpoints
    assert (endpoint.url, endpoint.username) == ("https://near.test", "u")
    assert endpoint.password is not None
    assert endpoint.password.get_secret_value() == "s3cret"
    assert upstream.proxy is not None
    assert upstream.proxy.get_secret_value() == "http://me:pw@proxy:3128"
    assert "pw" not in repr(upstream)


@pytest.mark.parametrize("place", ["", "endpoints"])
@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"client_certificate": "cert", "client_key": "other"}, "do not belong together"),
        ({"ca_file": "junk"}, "contains no certificate"),
        ({"docker_config": "junk"}, "not a docker config.json"),
    ],
)
async def test_files_that_are_no_use_show_at_start(
    tmp_path: Path, settings: dict[str, str], mistake: str, place: str
) -> None:
    """Not with the first pull, which may be at three in the morning: when it is checked, and when it begins."""
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder in (mine, other):
        folder.mkdir()
    files = {
        "cert": Certificate(mine).certificate,
        "other": Certificate(other).key,
        "junk": tmp_path / "junk",
    }
    files["junk"].write_text("junk")
    table: dict[str, Any] = {"url": "https://127.0.0.1:1", **{name: str(files[one]) for name, one in settings.items()}}
    upstream = {"endpoints": [table]} if place else table
    with pytest.raises(ConfigError, match=mistake):
        async with live_mirror(tmp_path / "store", {"docker.io": upstream}):
            pass
    lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    heading = ["[[upstream.endpoints]]"] if place else []
    path = tmp_path / "mirror.toml"
    path.write_text("\n".join(["[[upstream]]", 'name = "docker.io"', *heading, *lines]))
    with pytest.raises(ConfigError, match=mistake) as failure:
        load(path)
    assert f"upstream[1]{'.endpoints[1]' if place else ''}." in str(failure.value)
