"""An upstream redirects each request for a blob to an address that may have expired when it is asked: by whoever then
goes on, the registry is asked for a new one, and it alone gets the credentials.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.aio.memo import Memo
from mirror.errors import AskAgain, UpstreamUnavailable
from mirror.oci.digest import Digest
from mirror.ports import BlobParts, SaysStop
from mirror.upstream.credentials.source import Credentials, GivenCredentials
from mirror.upstream.registry import RegistryUpstream
from tests.support.bodies import read_body
from tests.support.fake_registry import FakeRegistry, ignore_range, status
from tests.support.registry_upstream import registry_upstream

_NAME = "team/app"
_LAYER = bytes(range(256)) * 1024
_DIGEST = Digest.of(_LAYER)
_SIZE = len(_LAYER)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry(tokens=True, users={"u": "p"}, cdn=True) as made:
        made.add_blob(_NAME, _LAYER)
        yield made


@pytest.fixture
async def upstream(registry: FakeRegistry) -> AsyncIterator[RegistryUpstream]:
    executor, memo = ThreadPoolExecutor(8), Memo()
    user = GivenCredentials(Credentials("u", "p"))
    upstream = registry_upstream("test", registry.url, executor=executor, memo=memo, credentials=user, sleep=_no_pause)
    # the challenge is known, and so is what a blob costs
    async with upstream.blob(_NAME, _DIGEST) as body:
        assert await read_body(body) == _LAYER
    registry.forget()
    yield upstream
    assert not any(request.header("Authorization") for request in registry.cdn_requests)
    assert all(request.header("Authorization") for request in registry.of_kind("blobs"))
    await upstream.aclose()
    await memo.aclose()
    executor.shutdown()


async def _no_pause(seconds: float) -> None:
    await asyncio.sleep(0)


async def _small(parts: BlobParts, start: int, stop: int) -> bytes:
    """A part as lazy pulls ask for it."""
    while True:
        await parts.take_turn()
        try:
            async with parts.pull(start, stop) as body:
                assert body.start == start
                assert isinstance(body, SaysStop)
                assert body.stop == stop
                return await read_body(body)
        except AskAgain:
            continue


@pytest.mark.parametrize("start", [0, 1000])
@pytest.mark.parametrize("code", [400, 403, 410])
async def test_a_small_part(registry: FakeRegistry, upstream: RegistryUpstream, code: int, start: int) -> None:
    """Whatever the address is for: an upstream whose addresses expire heeds ranges."""
    parts = upstream.parts(_NAME, _DIGEST)
    assert await _small(parts, 5000, 6000) == _LAYER[5000:6000]
    registry.fail("cdn", status(code))
    assert await _small(parts, start, start + 1000) == _LAYER[start : start + 1000]
    assert await _small(parts, 7000, 8000) == _LAYER[7000:8000]
    parts.release()


@pytest.mark.parametrize("code", [400, 401, 403, 410])
async def test_a_further_connection(registry: FakeRegistry, upstream: RegistryUpstream, code: int) -> None:
    parts = upstream.parts(_NAME, _DIGEST)
    registry.fail("cdn", status(code))
    async with parts.further(5000, 6000, _SIZE) as body:
        assert body is not None
        assert await read_body(body) == _LAYER[5000:6000]
    assert (registry.count("blobs"), registry.count("cdn")) == (2, 2)


async def test_a_further_connection_asks_for_one_new_address(
    registry: FakeRegistry, upstream: RegistryUpstream
) -> None:
    """If that is refused as well, the filler fetches the part."""
    registry.fail("cdn", status(403), times=3)
    with pytest.raises(UpstreamUnavailable):
        async with upstream.parts(_NAME, _DIGEST).further(5000, 6000, _SIZE):
            raise AssertionError
    assert (registry.count("blobs"), registry.count("cdn")) == (2, 2)
    registry.heal()
    registry.fail("blobs", status(403))
    with pytest.raises(UpstreamUnavailable):
        async with upstream.parts(_NAME, _DIGEST).further(5000, 6000, _SIZE):
            raise AssertionError
    # the registry itself has no other address to give
    assert registry.count("blobs") == 3


async def test_a_piece_of_a_fill(registry: FakeRegistry, upstream: RegistryUpstream) -> None:
    """The first one, and one that follows on the same turn."""
    parts = upstream.parts(_NAME, _DIGEST)
    got = b""
    for stop in (100_000, 200_000, None):
        registry.fail("cdn", status(403))
        async with parts.pull(len(got), stop) as body:
            assert body.start in (0, len(got))
            got += (await read_body(body))[len(got) - body.start :]
    assert got == _LAYER


async def test_an_upstream_that_ignores_ranges_is_found_out(registry: FakeRegistry, upstream: RegistryUpstream) -> None:
    """The first part costs one more request, and not each."""
    registry.fail("cdn", ignore_range, times=5)
    parts = upstream.parts(_NAME, _DIGEST)
    await parts.take_turn()
    async with parts.pull(0, 1000) as body:
        assert isinstance(body, SaysStop)
        assert body.stop == _SIZE
        body.abort()
    assert registry.count("cdn") == 2
    parts.release()
