"""What is sent to endpoints of events, and what becomes of answers that no endpoint should give."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.ports import Reply
from mirror.upstream.http.event_posts import EventAddress, EventPosts
from mirror.upstream.http.proxies import Proxies
from tests.support.certificates import Certificate
from tests.support.scripted import Close, Reset, Scripted, Stall, head, reply


@pytest.fixture
def endpoint() -> Iterator[Scripted]:
    """An endpoint that does what the test says."""
    with Scripted() as endpoint:
        yield endpoint


@asynccontextmanager
async def _posts(url: str, **more: Any) -> AsyncIterator[EventPosts]:
    posts = EventPosts({"ci": EventAddress(url, **more)}, "registry-mirror/1", now=lambda: 1_700_000_000.0)
    try:
        yield posts
    finally:
        await posts.aclose()
        await posts.aclose()


async def _send(endpoint: Scripted, path: str = "/hook", **more: Any) -> Reply:
    async with _posts(endpoint.url + path, **more) as posts:
        return await posts.send("ci", b'{"id": 1}', {"Content-Type": "application/cloudevents+json", "X-Mine": "yes"})


async def test_one_post_with_the_headers_and_the_query(endpoint: Scripted) -> None:
    """The URL is used as it is written."""
    endpoint.on("/hook", *reply(202, b"thank you"))
    assert await _send(endpoint, "/hook?token=a%2Fb") == Reply(202)
    [request] = endpoint.requests
    assert (request.method, request.target, request.body) == ("POST", "/hook?token=a%2Fb", b'{"id": 1}')
    assert request.header("X-Mine") == "yes"
    assert request.header("User-Agent") == "registry-mirror/1"
    assert request.header("Content-Length") == "9"


async def test_connections_are_used_again(endpoint: Scripted) -> None:
    """Short answers are read for that."""
    endpoint.on("/hook", *reply(200, b"x" * 5000))
    async with _posts(f"{endpoint.url}/hook") as posts:
        for _ in range(3):
            assert (await posts.send("ci", b"{}", {})).status == 200
    assert endpoint.connections == 1


async def test_a_redirect_is_not_followed(endpoint: Scripted) -> None:
    """What is signed for one address is not sent to another."""
    endpoint.on("/hook", *reply(307, b"", {"Location": f"{endpoint.url}/elsewhere"}))
    assert await _send(endpoint) == Reply(307)
    assert [request.path for request in endpoint.requests] == ["/hook"]


async def test_a_huge_answer_is_not_read(endpoint: Scripted) -> None:
    """The status counts, and the connection is closed."""
    gate = Stall()
    endpoint.on("/hook", head(200, {"Content-Length": str(1 << 40)}), b"x" * 100_000, gate)
    assert await _send(endpoint) == Reply(200)
    gate.release()


async def test_an_answer_without_end_takes_no_longer_than_the_limit(endpoint: Scripted) -> None:
    """Even if bytes trickle in: it counts as none."""
    gate = Stall()
    endpoint.on("/hook", head(200, {"Content-Length": "1000"}), b"x", gate)
    answer = await _send(endpoint, timeout=0.2)
    gate.release()
    assert answer == Reply(None, "ci did not answer in time")


async def test_no_answer_in_time(endpoint: Scripted) -> None:
    """The endpoint hangs."""
    gate = Stall()
    endpoint.on("/hook", gate, *reply(200))
    answer = await _send(endpoint, timeout=0.2)
    gate.release()
    assert answer == Reply(None, "ci did not answer in time")


@pytest.mark.parametrize(
    "script",
    [[b"nonsense\r\n\r\n", Close()], [b"HTTP/1.1 abc\r\n\r\n", Close()], [Close()], [Reset()], [b"\0" * 100, Close()]],
)
async def test_nonsense_is_no_answer(endpoint: Scripted, script: list[Any]) -> None:
    """Whatever it is, there is no status; the problem names the endpoint and no address."""
    endpoint.on("/hook", *script)
    answer = await _send(endpoint, "/hook?token=secret")
    assert answer.status is None
    assert answer.problem
    assert "secret" not in answer.problem
    assert "127.0.0.1" not in answer.problem


async def test_nobody_listens() -> None:
    """The connection is refused."""
    with Scripted() as closed:
        url = closed.url
    async with _posts(f"{url}/hook?token=secret") as posts:
        answer = await posts.send("ci", b"{}", {})
    assert answer == Reply(None, "no connection to ci: Connection refused")


@pytest.mark.parametrize(("text", "seconds"), [("17", 17.0), ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0), ("soon", None)])
async def test_retry_after(endpoint: Scripted, text: str, seconds: float | None) -> None:
    """In seconds, or as a date."""
    endpoint.on("/hook", *reply(429, b"", {"Retry-After": text}))
    assert await _send(endpoint) == Reply(429, retry_after=seconds)


async def test_a_metadata_service_is_not_an_endpoint() -> None:
    """Private addresses are the operator's choice; those that give out credentials of the machine are not."""
    async with _posts("http://169.254.169.254/hook") as posts:
        answer = await posts.send("ci", b"{}", {})
    assert answer.status is None
    assert "169.254" not in answer.problem or "private or reserved" in answer.problem


async def test_tls_with_an_authority_of_its_own(tmp_path: Path) -> None:
    """Trusted if `ca_file` says so, and not otherwise."""
    certificate = Certificate(tmp_path / "tls")
    with Scripted(tls=certificate.server()) as endpoint:
        endpoint.on("/hook", *reply(204))
        assert await _send(endpoint, ca_file=certificate.certificate) == Reply(204)
        refused = await _send(endpoint)
    assert refused.status is None
    assert "is not trusted" in refused.problem


async def test_through_a_proxy(endpoint: Scripted) -> None:
    """With http, the proxy gets the whole URL and its credentials."""
    endpoint.on("*", *reply(204))
    proxies = Proxies.given(f"http://me:secret@127.0.0.1:{endpoint.port}")
    async with _posts("http://ci.example.test/hook", proxies=proxies) as posts:
        assert await posts.send("ci", b"{}", {}) == Reply(204)
    [request] = endpoint.requests
    assert request.target == "http://ci.example.test/hook"
    assert (request.header("Proxy-Authorization") or "").startswith("Basic ")


async def test_repr_shows_no_url() -> None:
    """It may be a secret."""
    address = EventAddress("https://example.test/hook?token=secret")
    assert "secret" not in repr(address)
    async with _posts("https://example.test/hook?token=secret") as posts:
        assert "secret" not in repr(posts)
    await asyncio.sleep(0)
