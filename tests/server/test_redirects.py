"""Clients that are sent to the bucket for blobs, and those that are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import aiohttp
import pytest
import structlog

from mirror import telemetry
from mirror.errors import BlobUnknown, BucketUnavailable, Denied, MirrorError
from mirror.inspect.recent_answers import RecentAnswers
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.clients.networks import Networks
from mirror.policy.clients.redirecting import RedirectRule
from mirror.ports import BlobObject
from mirror.repository.answers import BlobContent, BlobStat, Outcome
from mirror.server.registry.client_addresses import ClientAddresses
from mirror.server.registry.handler import RegistryHandler, RegistryServer
from mirror.server.registry.redirects import Redirects
from tests.support.clock import Clock
from tests.support.live_mirror import PATIENCE
from tests.support.memory_bucket import MemoryBucket

CONTENT = b"layer" * 1000
DIGEST = Digest.of(CONTENT)
KEY = "hosted/sha256/aa/object"
INSIDE, OUTSIDE = "10.1.2.3", "203.0.113.9"
#: A stand-in for what the repository answers when the bytes come from here.
HERE = 404


class OneBlob:
    """A repository with one blob, which is in the bucket."""

    repo = Repo("corp", "app")
    #: See `Router`.
    gives_parts = False

    def __init__(self) -> None:
        self.found: BlobObject | None = BlobObject(DIGEST, KEY, len(CONTENT))
        self.error: MirrorError | None = None
        self.hang: asyncio.Event | None = None
        #: How often the repository was asked for an object, and for the bytes.
        self.asked = self.here = 0

    async def blob_object(self, digest: Digest) -> BlobObject | None:
        self.asked += 1
        if self.hang is not None:
            await self.hang.wait()
        if self.error is not None:
            raise self.error
        return self.found

    async def blob(self, digest: Digest) -> BlobContent:
        self.here += 1
        raise BlobUnknown("from here")

    async def stat_blob(self, digest: Digest) -> BlobStat:
        return BlobStat(len(CONTENT), Outcome.HIT, "corp")

    def resolve(self, name: str, **_: object) -> OneBlob:
        return self

    def when_forgotten(self, forgotten: Callable[[], None]) -> None:
        """See `Router`; nothing is forgotten here."""


class Front:
    """The front of a registry, which redirects clients from 10.0.0.0/8. The test itself is a trusted proxy."""

    def __init__(self) -> None:
        self.blobs = OneBlob()
        self.bucket = MemoryBucket()
        self.bucket.write(KEY, CONTENT)
        self.clock = Clock(0.0)
        self.audit: list[dict[str, Any]] = []
        self.recent = RecentAnswers()
        self.rule = RedirectRule(Networks(["10.0.0.0/8"]), 1000, 60.0)
        self.trusted = Networks(["127.0.0.1"])
        self.patience = PATIENCE
        self.port = 0

    def record(self, **fields: object) -> None:
        """One line of the audit log."""
        self.audit.append(fields)

    def handler(self) -> RegistryHandler:
        """What answers."""
        addresses = ClientAddresses(self.trusted)
        redirects = Redirects(
            self.rule, addresses, self.bucket, self.bucket, patience=self.patience, clock=lambda: self.clock()
        )
        return RegistryHandler(
            cast(Any, self.blobs),
            cast(Any, None),
            {},
            log_requests=True,
            audit=cast(Any, self),
            recent=self.recent,
            addresses=addresses,
            redirects=redirects,
        )

    async def get(self, client: str | None = INSIDE, *, method: str = "GET", **headers: str) -> aiohttp.ClientResponse:
        """One request for the blob, by a client behind the proxy. `If_Range` stands for `If-Range`."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        sent |= {"X-Forwarded-For": client} if client is not None else {}
        url = f"http://127.0.0.1:{self.port}/v2/app/blobs/{DIGEST}"
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE)) as session,
            session.request(method, url, headers=sent, allow_redirects=False) as response,
        ):
            await response.read()
            return response


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    made = Front()
    loop = asyncio.get_running_loop()
    served: list[RegistryHandler] = []

    async def answer(request: Any) -> Any:
        if not served:
            served.append(made.handler())
        return await served[0](request)

    server = RegistryServer(answer, access_log=None)
    listener = await loop.create_server(server, "127.0.0.1", 0)
    made.port = listener.sockets[0].getsockname()[1]
    yield made
    listener.close()
    await server.shutdown(1.0)


async def test_a_client_in_a_network_is_sent_to_the_bucket(front: Front) -> None:
    redirects, asked = telemetry.counted("mirror_bucket_redirects"), telemetry.counted("mirror_bucket_redirected_bytes")
    answer = await front.get()
    assert answer.status == 307
    assert front.bucket.fetch(answer.headers["Location"]) == CONTENT
    assert answer.headers["Location"].endswith("life=60")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Cache-Status"] == "mirror; hit; detail=redirected"
    assert front.blobs.here == 0
    assert telemetry.counted("mirror_bucket_redirects")[0][1] == redirects[0][1] + 1
    assert telemetry.counted("mirror_bucket_redirected_bytes")[0][1] == asked[0][1] + len(CONTENT)


async def test_the_url_is_nowhere_but_in_the_answer(front: Front) -> None:
    with structlog.testing.capture_logs() as lines:
        assert (await front.get()).status == 307
    [line] = [line for line in lines if line["event"] == "request"]
    assert (line["status"], line["cache"], line["redirected"]) == (307, "redirected", len(CONTENT))
    assert line["client"] == INSIDE
    assert front.audit[0]["redirected"] == len(CONTENT)
    assert front.audit[0]["bytes"] == 0
    assert [answer.outcome for answer in front.recent.answers()] == ["redirected"]
    assert "secret" not in f"{lines}{front.audit}{front.recent.answers()}"


async def test_a_part_counts_as_many_bytes_as_it_has(front: Front) -> None:
    assert (await front.get(Range="bytes=10-19")).status == 307
    assert front.audit[0]["redirected"] == 10


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        pytest.param(OUTSIDE, {}, id="another network"),
        pytest.param(f"{INSIDE}, {OUTSIDE}", {}, id="a client that lies"),
        pytest.param(None, {}, id="a proxy that does not say for whom it asks"),
        pytest.param(INSIDE, {"Range": "bytes=0-9,20-29"}, id="several parts"),
        pytest.param(INSIDE, {"Range": "bytes=5-", "If_Range": f'"{DIGEST}"'}, id="a part on a condition"),
        pytest.param(INSIDE, {"Range": "bytes=100000-"}, id="a part outside the blob"),
    ],
)
async def test_others_get_the_bytes_from_here(front: Front, client: str | None, headers: dict[str, str]) -> None:
    assert (await front.get(client, **headers)).status == HERE
    assert front.blobs.here == 1
    assert "redirected" not in {key for key, value in front.audit[0].items() if value is not None}


async def test_what_a_client_writes_does_not_count(front: Front) -> None:
    front.trusted = Networks(["192.168.0.1"])
    assert (await front.get()).status == HERE
    assert front.blobs.asked == 0


async def test_head_is_answered_here(front: Front) -> None:
    assert (await front.get(method="HEAD")).status == 200
    assert front.blobs.asked == 0


async def test_a_client_that_asks_again_gets_the_bytes(front: Front) -> None:
    """Perhaps it cannot reach the bucket; another client can."""
    assert (await front.get()).status == 307
    assert (await front.get()).status == HERE
    assert (await front.get("10.9.9.9")).status == 307
    front.clock.time += 61
    assert (await front.get()).status == 307


async def test_a_blob_that_the_bucket_lacks_is_sent_from_here(front: Front) -> None:
    front.blobs.found = None
    assert (await front.get()).status == HERE
    front.blobs.found = BlobObject(DIGEST, KEY, len(CONTENT) + 1)
    assert (await front.get()).status == HERE
    front.blobs.found = BlobObject(DIGEST, KEY, len(CONTENT))
    front.bucket.lose(KEY)
    assert (await front.get()).status == HERE


async def test_a_small_blob_is_sent_from_here(front: Front) -> None:
    front.rule = RedirectRule(Networks(["10.0.0.0/8"]), len(CONTENT) + 1, 60.0)
    assert (await front.get()).status == HERE
    front.blobs.found = BlobObject(DIGEST, KEY, -1)
    assert (await front.get()).status == HERE


async def test_what_the_rules_refuse_is_refused(front: Front) -> None:
    front.blobs.error = Denied("not this one")
    assert (await front.get()).status == HERE
    assert front.blobs.here == 1


async def test_a_bucket_that_fails_is_left_alone_for_a_while(front: Front) -> None:
    front.blobs.error = BucketUnavailable("down", retry_after=1.0)
    with structlog.testing.capture_logs() as lines:
        assert [(await front.get()).status for _ in range(3)] == [HERE] * 3
    assert [line["event"] for line in lines].count("redirects to bucket suspended") == 1
    assert front.blobs.asked == 1
    front.blobs.error = None
    front.clock.time += 2
    assert (await front.get()).status == 307


async def test_a_bucket_that_hangs_costs_a_short_time(front: Front) -> None:
    front.patience, front.blobs.hang = 0.01, asyncio.Event()
    assert (await front.get()).status == HERE
    assert (await front.get()).status == HERE
    assert front.blobs.asked == 1


async def test_credentials_that_cannot_sign_redirect_nobody(front: Front) -> None:
    front.bucket = MemoryBucket(signs=False)
    front.bucket.write(KEY, CONTENT)
    with structlog.testing.capture_logs() as lines:
        assert (await front.get()).status == HERE
    assert "cannot sign" in str(lines)


async def test_who_has_the_blob_already_is_told_so(front: Front) -> None:
    """The repository decides; nothing is signed."""
    assert (await front.get(If_None_Match=f'"{DIGEST}"')).status == HERE
    assert front.blobs.asked == 0
