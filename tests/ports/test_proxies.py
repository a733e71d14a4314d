"""Proxies and client certificates, between us and a registry: both ways in which we speak to it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mirror.aio.memo import Memo
from mirror.errors import UpstreamError, UpstreamInvalid, UpstreamUnavailable
from mirror.oci.digest import Digest
from mirror.policy.upstream.url_bounds import UrlRefused, parse_url
from mirror.upstream.http.proxies import Proxies, Proxy
from mirror.upstream.registry import RegistryUpstream
from tests.support.certificates import Certificate
from tests.support.fake_registry import FakeRegistry
from tests.support.proxy import HttpProxy
from tests.support.registry_upstream import registry_upstream
from tests.support.scripted import Scripted

NAME = "team/app"
LAYER = bytes(range(256)) * 1024
SECRET = "canary-proxy"


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return Certificate(tmp_path)


@pytest.fixture
def proxy() -> Iterator[HttpProxy]:
    with HttpProxy() as running:
        yield running


Build = Callable[..., RegistryUpstream]


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    opened: list[RegistryUpstream] = []
    executor, memo = ThreadPoolExecutor(4), Memo()

    def make(url: str, **more: Any) -> RegistryUpstream:
        opened.append(registry_upstream("a.io", url, executor=executor, memo=memo, retries=0, **more))
        return opened[-1]

    yield make
    for upstream in opened:
        await upstream.aclose()
    await memo.aclose()
    executor.shutdown()


async def pull_all(upstream: RegistryUpstream) -> None:
    """A tag, its manifest, a blob: by both clients."""
    descriptor = await upstream.resolve(NAME, "v1")
    await upstream.manifest(NAME, descriptor.digest)
    async with upstream.blob(NAME, Digest.of(LAYER)) as body:
        room = memoryview(bytearray(1 << 20))
        got = bytearray()
        while count := await asyncio.to_thread(body.readinto, room):
            got += room[:count]
    assert got == LAYER


async def test_a_tunnel(certificate: Certificate, proxy: HttpProxy, build: Build) -> None:
    """An https registry is spoken to through CONNECT, its tokens and blobs on another host too."""
    with FakeRegistry(tls=certificate.server(), tokens=True, cdn=True) as registry:
        registry.add_image(NAME, "v1", [LAYER])
        await pull_all(build(registry.url, verify=certificate.client(), proxies=Proxies.given(proxy.url)))
        assert {request.split(" ")[0] for request in proxy.requests} == {"CONNECT"}
        assert f"CONNECT {registry.host} HTTP/1.1" in {request.partition("\r\n")[0] for request in proxy.requests}
        assert "Bearer" not in "".join(proxy.requests)


async def test_plain_http(proxy: HttpProxy, build: Build) -> None:
    """An http registry gets whole URLs through it."""
    with FakeRegistry(tokens=True) as registry:
        registry.add_image(NAME, "v1", [LAYER])
        await pull_all(build(registry.url, proxies=Proxies.given(proxy.url)))
        lines = [request.partition("\r\n")[0] for request in proxy.requests]
        assert all(registry.url in line for line in lines)
        assert any(f"GET {registry.url}/v2/{NAME}/blobs/" in line for line in lines)


@pytest.mark.parametrize("tls", [True, False])
async def test_a_proxy_that_wants_a_password(certificate: Certificate, build: Build, tls: bool) -> None:
    """It gets it; the registry behind it does not, and no error holds it."""
    with (
        FakeRegistry(tls=certificate.server() if tls else None) as registry,
        HttpProxy(users={"me": SECRET}) as proxy,
    ):
        registry.add_image(NAME, "v1", [LAYER])
        verify = certificate.client()
        allowed = proxy.url.replace("//", f"//me:{SECRET}@")
        await pull_all(build(registry.url, verify=verify, proxies=Proxies.given(allowed)))
        assert all(request.header("Proxy-Authorization") is None for request in registry.requests)
        for url in (proxy.url, proxy.url.replace("//", "//me:canary-wrong@")):
            refused = build(registry.url, verify=verify, proxies=Proxies.given(url))
            with pytest.raises(UpstreamError) as failure:
                await refused.resolve(NAME, "v1")
            assert "407" in str(failure.value)
            with pytest.raises(UpstreamError) as failure:
                await pull_all_blob(refused)
            assert "407" in str(failure.value)
            assert "canary" not in str(failure.value)


async def pull_all_blob(upstream: RegistryUpstream) -> None:
    async with upstream.blob(NAME, Digest.of(LAYER)):
        raise AssertionError("it came")


async def test_a_proxy_that_is_not_there(certificate: Certificate, build: Build) -> None:
    """As any dial that fails."""
    with HttpProxy() as gone:
        pass
    upstream = build("https://registry.test", proxies=Proxies.given(gone.url))
    with pytest.raises(UpstreamUnavailable):
        await upstream.resolve(NAME, "v1")
    with pytest.raises(UpstreamUnavailable):
        await pull_all_blob(upstream)


async def test_names_are_resolved_by_the_proxy(certificate: Certificate, build: Build) -> None:
    """A registry that only the proxy can find."""
    with FakeRegistry(tls=certificate.server()) as registry:
        registry.add_image(NAME, "v1", [LAYER])
        port = int(registry.host.rpartition(":")[2])
        context = certificate.client()
        context.check_hostname = False
        with HttpProxy(hosts={"registry.invalid:443": ("127.0.0.1", port)}) as proxy:
            await pull_all(build("https://registry.invalid", verify=context, proxies=Proxies.given(proxy.url)))


async def test_literal_addresses_stay_forbidden(proxy: HttpProxy, build: Build) -> None:
    """Faults rows 71 and 72: a redirect to a metadata address does not go out through the proxy either."""
    upstream = build("http://registry.test", proxies=Proxies.given(proxy.url))
    with pytest.raises(UpstreamInvalid):
        await asyncio.to_thread(upstream._blob_client._transfer.get, "http://169.254.169.254/x", {})
    assert proxy.requests == []


async def test_the_environment(proxy: HttpProxy, build: Build) -> None:
    """As its variables say, hosts that are spared included."""
    with FakeRegistry() as registry:
        registry.add_image(NAME, "v1", [LAYER])
        spared = Proxies.environment({"HTTP_PROXY": proxy.url, "NO_PROXY": "127.0.0.0/8"})
        await pull_all(build(registry.url, proxies=spared))
        assert proxy.requests == []
        await pull_all(build(registry.url, proxies=Proxies.environment({"http_proxy": proxy.url})))
        assert len(proxy.requests) >= 3


def test_which_proxy() -> None:
    """Lower case goes before upper case, each scheme has its own, and no secret is shown."""
    proxies = Proxies.environment(
        {"HTTPS_PROXY": "http://upper:1", "https_proxy": f"http://u:{SECRET}@lower:3128/", "NO_PROXY": "spared.io"}
    )
    proxy = proxies.for_url(parse_url("https://a.io/v2/"))
    assert proxy
    assert (proxy.url.authority, proxy.username, proxy.password) == ("lower:3128", "u", SECRET)
    assert SECRET not in repr(proxy)
    assert proxies.for_url(parse_url("http://a.io/")) is None
    assert proxies.for_url(parse_url("https://x.spared.io/")) is None
    assert Proxies.given(None).for_url(parse_url("https://a.io/")) is None
    assert Proxy.parse("proxy.internal:3128").url.authority == "proxy.internal:3128"


@pytest.mark.parametrize("text", ["https://p:1", "socks5://p:1", "http://", "", f"http://{SECRET} x"])
def test_a_proxy_that_is_none(text: str) -> None:
    """Refused without being quoted."""
    with pytest.raises((UrlRefused, ValueError)) as mistake:
        Proxies.given(text)
    assert SECRET not in str(mistake.value)


# --------------------------------------------------------------------------------------- client certificates


async def test_a_client_certificate(tmp_path: Path, build: Build) -> None:
    """A registry that asks for one gets it, by both clients; a host that it redirects to does not."""
    certificate = Certificate(tmp_path)
    (tmp_path / "client").mkdir()
    mine = Certificate(tmp_path / "client")
    asking = certificate.server()
    asking.load_verify_locations(mine.certificate)
    asking.verify_mode = ssl.CERT_REQUIRED
    identity = certificate.client()
    identity.load_cert_chain(mine.certificate, mine.key)
    with FakeRegistry(tls=asking) as registry:
        registry.add_image(NAME, "v1", [LAYER])
        await pull_all(build(registry.url, verify=certificate.client(), identity=identity))
        with pytest.raises(UpstreamUnavailable):
            await build(registry.url, verify=certificate.client()).resolve(NAME, "v1")
    shown: list[bool] = []
    curious = certificate.server()
    curious.load_verify_locations(mine.certificate)
    curious.verify_mode = ssl.CERT_OPTIONAL
    with FakeRegistry(tls=curious, cdn=True) as registry:
        registry.add_image(NAME, "v1", [LAYER])
        assert registry._cdn
        for server in (registry._front, registry._cdn):
            _note_certificates(server, shown)
        upstream = build(registry.url, verify=certificate.client(), identity=identity)
        async with upstream.blob(NAME, Digest.of(LAYER)) as body:
            assert body.size == len(LAYER)
        assert shown == [True, False]


def _note_certificates(server: Scripted, shown: list[bool]) -> None:
    """Whether each connection that asks something has shown one."""
    answer = server._answer

    def noting(connection: Any, request: Any) -> bool:
        shown.append(bool(connection.getpeercert()))
        return answer(connection, request)

    server._answer = noting  # type: ignore[method-assign]
