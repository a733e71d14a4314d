"""The object stores that other tests start: what those rely on."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.engines.fault_proxy import (
    Answer,
    CutAnswer,
    CutRequest,
    FaultProxy,
    FlippedAnswer,
    FlippedRequest,
    LostAnswer,
    Reset,
    StaleListing,
)
from tests.support.engines.rclone import Rclone
from tests.support.engines.s3_engine import BUCKET, OWNER, READER, S3Engine
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.engines.signed_calls import S3Answer, S3Keys, call

CONTENT = bytes(range(256)) * 1000


@pytest.fixture(params=["seaweedfs", "radosgw"])
def engine(request: pytest.FixtureRequest) -> S3Engine:
    """Each S3 store that keeps its promises."""
    found: S3Engine = request.getfixturevalue(request.param)
    return found


def test_objects_past_the_mirror(engine: S3Engine) -> None:
    """Made, read, deleted; absent is not empty."""
    engine.put_object("engines/object", CONTENT)
    assert engine.object("engines/object") == CONTENT
    engine.delete_object("engines/object")
    assert engine.object("engines/object") is None


def test_who_may_do_what(engine: S3Engine) -> None:
    """The reader reads and lists; nobody else does anything."""
    engine.put_object("engines/rights", b"1")
    path = f"/{BUCKET}/engines/rights"
    listing = f"/{BUCKET}?list-type=2&prefix=engines%2Frights"
    assert [engine.call("GET", each, keys=READER).status for each in (path, listing)] == [200, 200]
    assert engine.call("PUT", path, b"2", keys=READER).status == 403
    assert engine.call("DELETE", path, keys=READER).status == 403
    assert engine.call("GET", path, keys=S3Keys(OWNER.access, "wrong")).status == 403
    assert engine.call("GET", path, keys=S3Keys("nobody", "wrong")).status == 403


def test_conditions(engine: S3Engine, rclone: Rclone) -> None:
    """Kept by the good stores, and ignored without a word by the bad one."""
    condition = {"If-None-Match": "*"}
    for store, second in ((engine, 412), (rclone, 200)):
        path = f"/{BUCKET}/engines/condition-{engine.name}"
        assert call(store.endpoint, OWNER, "PUT", path, b"1", condition).status == 200
        assert call(store.endpoint, OWNER, "PUT", path, b"2", condition).status == second


def test_a_store_that_is_killed(tmp_path: Path) -> None:
    """It comes back at the same address, and has what it had."""
    with SeaweedFS(tmp_path) as engine:
        before = engine.endpoint
        engine.put_object("kept", CONTENT)
        engine.kill()
        with pytest.raises(OSError, match="refused"):
            engine.object("kept")
        engine.start()
        assert engine.endpoint == before
        assert engine.object("kept") == CONTENT


class TestFaultProxy:
    """Each fault, by requests that are signed by hand."""

    @pytest.fixture
    def proxy(self, seaweedfs: SeaweedFS) -> Iterator[FaultProxy]:
        """Before SeaweedFS, with an object behind it."""
        seaweedfs.put_object("proxied/object", CONTENT)
        with FaultProxy(seaweedfs.endpoint) as running:
            yield running

    def ask(self, proxy: FaultProxy, method: str, key: str, body: bytes = b"") -> S3Answer:
        """One request through the proxy."""
        return call(proxy.url, OWNER, method, f"/{BUCKET}/proxied/{key}", body)

    def test_without_a_fault(self, proxy: FaultProxy) -> None:
        """Everything passes, several requests on one connection among it."""
        assert self.ask(proxy, "PUT", "new", b"1").status == 200
        assert self.ask(proxy, "GET", "object").body == CONTENT
        assert self.ask(proxy, "HEAD", "object").headers["content-length"] == str(len(CONTENT))
        assert self.ask(proxy, "DELETE", "new").status == 204
        assert self.ask(proxy, "GET", "new").status == 404
        connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=60)
        for _ in range(3):
            headers = OWNER.sign("GET", f"{proxy.url}/{BUCKET}/proxied/object", {}, "UNSIGNED-PAYLOAD")
            connection.request("GET", f"/{BUCKET}/proxied/object", headers=headers)
            assert connection.getresponse().read() == CONTENT
        connection.close()
        assert proxy.count("GET", "proxied/object") == 4

    def test_the_store_is_not_asked(self, proxy: FaultProxy) -> None:
        """Connections that break and errors come before it has seen anything."""
        proxy.cause(Reset(), times=1)
        proxy.cause(Answer(503, "SlowDown", {"Retry-After": "1"}), times=1)
        with pytest.raises(ConnectionError):
            self.ask(proxy, "PUT", "unseen", b"1")
        refused = self.ask(proxy, "PUT", "unseen", b"1")
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert b"<Code>SlowDown</Code>" in refused.body
        assert self.ask(proxy, "GET", "unseen").status == 404

    def test_lost_answers(self, proxy: FaultProxy) -> None:
        """The store has done what it was asked."""
        proxy.cause(LostAnswer(), where=lambda call: call.method == "PUT")
        with pytest.raises(ConnectionError):
            self.ask(proxy, "PUT", "done", b"1")
        assert self.ask(proxy, "GET", "done").body == b"1"
        proxy.heal()
        assert self.ask(proxy, "PUT", "done", b"2").status == 200
        assert proxy.happened == {LostAnswer: 1}

    def test_bodies_that_are_cut(self, proxy: FaultProxy) -> None:
        """Of answers and of requests, which leave nothing behind."""
        proxy.cause(CutAnswer(after=1000), times=1)
        with pytest.raises(OSError, match=r"IncompleteRead|reset"):
            self.ask(proxy, "GET", "object")
        proxy.cause(CutRequest(after=1000), times=1)
        with pytest.raises(OSError, match=r"reset|Broken pipe|IncompleteRead"):
            self.ask(proxy, "PUT", "torn", CONTENT)
        assert self.ask(proxy, "GET", "torn").status == 404

    def test_flipped_bits(self, proxy: FaultProxy) -> None:
        """On the way back and forth."""
        proxy.cause(FlippedAnswer(), times=1)
        assert self.ask(proxy, "GET", "object").body == CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
        proxy.cause(FlippedRequest(), times=1)
        self.ask(proxy, "PUT", "flipped", b"\x00\x00")
        assert self.ask(proxy, "GET", "flipped").body in (b"\x00\x01", self.ask(proxy, "GET", "missing").body)

    def test_stale_listings(self, proxy: FaultProxy) -> None:
        """They lack what was written last, and have all else."""
        self.ask(proxy, "PUT", "late", b"1")
        listing = f"/{BUCKET}?list-type=2&prefix=proxied%2F"
        assert b"proxied/late" in call(proxy.url, OWNER, "GET", listing).body
        proxy.cause(StaleListing("proxied/late"), where=lambda call: call.lists)
        seen = call(proxy.url, OWNER, "GET", listing).body
        assert b"proxied/late" not in seen
        assert b"proxied/object" in seen
