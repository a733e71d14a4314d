"""The bucket by way of obstore, in front of a real store that is slow, cut, down, or refuses."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from mirror import telemetry
from mirror.errors import (
    BucketDenied,
    BucketUnavailable,
    RecordChanged,
    StoreError,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from mirror.ports import ABSENT, Aborted, Bucket, StoredObject, SupportsSplice
from mirror.store.local.pump import pump
from tests.support.bucket_suite import stored, whole
from tests.support.certificates import Certificate
from tests.support.engines.access import BucketAccess
from tests.support.engines.fault_proxy import (
    Answer,
    CutAnswer,
    CutRequest,
    FaultProxy,
    FlippedRequest,
    LostAnswer,
    Meanwhile,
    Reset,
    Silence,
    StalledAnswer,
    StoreCall,
)
from tests.support.engines.s3_engine import S3Engine
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.opened_bucket import opened_bucket
from tests.support.process import eventually
from tests.support.relay import Relay, pipe

#: Time limits that a store keeps on a machine that is busy four times over.
_PATIENT = {"connect_timeout": "30s", "read_timeout": "30s", "timeout": "90s", "retries": 2}
#: The same, but for transfers that stall: short enough to wait for it.
_STALLING = {**_PATIENT, "read_timeout": "3s"}
_LARGE = os.urandom(20_000_000)

_places = itertools.count()


@pytest.fixture
def access(seaweedfs: SeaweedFS) -> BucketAccess:
    """An empty prefix of its own."""
    return seaweedfs.access.below(f"obstore-bucket/{next(_places)}")


@pytest.fixture
def proxy(seaweedfs: SeaweedFS) -> Iterator[FaultProxy]:
    """Before the store."""
    with FaultProxy(seaweedfs.endpoint) as running:
        yield running


@pytest.fixture
def bucket(tmp_path: Path, access: BucketAccess, proxy: FaultProxy) -> Iterator[Bucket]:
    """By way of the proxy. It was used already, so that the probe of its conditions is done."""
    opened = opened_bucket(tmp_path, access.changed(endpoint=proxy.url), **_PATIENT)
    opened.write("used", b"", expect=ABSENT)
    yield opened
    opened.close()


@pytest.fixture
def direct(tmp_path: Path, access: BucketAccess) -> Iterator[Bucket]:
    """The same, without the proxy: another process."""
    folder = tmp_path / "direct"
    folder.mkdir()
    opened = opened_bucket(folder, access, **_PATIENT)
    yield opened
    opened.close()


@pytest.fixture(params=["plain", "library"])
def reading(
    request: pytest.FixtureRequest, tmp_path: Path, access: BucketAccess, proxy: FaultProxy
) -> Iterator[Bucket]:
    """By way of the proxy, once so that bodies come from a socket, and once so that obstore reads them."""
    by_library = {"requester_pays": request.param == "library"}
    opened = opened_bucket(tmp_path, access.changed(endpoint=proxy.url), **_STALLING, **by_library)
    opened.write("used", b"", expect=ABSENT)
    yield opened
    opened.close()


def _writes(call: StoreCall) -> bool:
    return call.method == "PUT"


# ------------------------------------------------------------------------------------------------------- writing


def test_a_create_whose_answer_was_lost_has_succeeded(bucket: Bucket, proxy: FaultProxy) -> None:
    """Repeated, it finds its own object; whoever comes later finds it taken, also with the same content."""
    proxy.cause(LostAnswer(), times=1, where=_writes)
    version = bucket.write("key", b"mine", expect=ABSENT)
    assert proxy.happened[LostAnswer] == 1
    assert bucket.read("key", 10) == StoredObject(b"mine", version)
    with pytest.raises(RecordChanged):
        bucket.write("key", b"mine", expect=ABSENT)


def test_a_replacement_whose_answer_was_lost_has_succeeded(bucket: Bucket, proxy: FaultProxy) -> None:
    """It goes on from its version."""
    first = bucket.write("key", b"one", expect=ABSENT)
    proxy.cause(LostAnswer(), times=1, where=_writes)
    second = bucket.write("key", b"two", expect=first)
    third = bucket.write("key", b"three", expect=second)
    assert bucket.read("key", 10) == StoredObject(b"three", third)


def test_a_lost_answer_does_not_hide_somebody_else(bucket: Bucket, direct: Bucket, proxy: FaultProxy) -> None:
    """If another one was first, with the same content, a repeated create has not succeeded."""
    proxy.cause(Reset(), times=1, where=_writes)
    proxy.cause(Meanwhile(lambda: direct.write("key", b"same", expect=ABSENT)), times=1, where=_writes)
    with pytest.raises(RecordChanged):
        bucket.write("key", b"same", expect=ABSENT)


def test_a_conflict_with_a_request_of_its_own_says_nothing(bucket: Bucket, proxy: FaultProxy) -> None:
    """A first request that was not answered may still be under way when the store refuses the others because of it: it
    is not certain that nothing was written.
    """
    proxy.cause(Reset(), times=1, where=_writes)
    proxy.cause(Answer(409, "ConditionalRequestConflict"), where=_writes)
    with pytest.raises(BucketUnavailable):
        bucket.write("key", b"mine", expect=ABSENT)
    proxy.heal()
    proxy.cause(Answer(409, "ConditionalRequestConflict"), where=_writes)
    with pytest.raises(RecordChanged):
        bucket.write("other", b"mine", expect=ABSENT)


def test_bytes_that_change_on_the_way_are_sent_again(bucket: Bucket, proxy: FaultProxy) -> None:
    """The store refuses them."""
    proxy.cause(FlippedRequest(), times=1, where=_writes)
    bucket.write("key", b"right")
    assert proxy.happened[FlippedRequest] == 1
    assert stored(bucket, "key") == b"right"


def test_throttling_and_passing_failures_are_waited_for(bucket: Bucket, proxy: FaultProxy) -> None:
    """A few of them; then the caller is told when to come again."""
    for status, code in ((503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests")):
        proxy.cause(Answer(status, code), times=1)
        bucket.write("key", code.encode())
        assert stored(bucket, "key") == code.encode()
    proxy.cause(Answer(503, "SlowDown"))
    with pytest.raises(BucketUnavailable, match="throttles") as refused:
        bucket.head("key")
    assert refused.value.retry_after >= 1


# ------------------------------------------------------------------------------------------------------- outages


def test_a_bucket_that_is_down_is_left_alone_and_comes_back(bucket: Bucket, proxy: FaultProxy) -> None:
    """After three failures it is an outage; later one request tries, and then all go through."""
    bucket.write("key", b"1")
    proxy.cause(Reset())
    with pytest.raises(BucketUnavailable, match=r"closed before the answer|reset"):
        bucket.head("key")
    assert bucket.health().down_since is not None
    proxy.heal()

    def answers() -> bool:
        try:
            return bucket.head("key") is not None
        except BucketUnavailable:
            return False

    eventually(answers, "the bucket answers again")
    assert stored(bucket, "key") == b"1"


def test_a_bucket_that_was_deleted_is_down_until_it_is_there_again(bucket: Bucket, proxy: FaultProxy) -> None:
    """The first answer that says so begins the outage; one that may be about the object alone does not end it."""
    bucket.write("key", b"1")
    proxy.cause(Answer(404, "NoSuchBucket"))
    with pytest.raises(BucketUnavailable, match="the bucket does not exist"):
        bucket.read("key", 10)
    health = bucket.health()
    assert health.down_since is not None
    assert "404 NoSuchBucket" in health.reason
    proxy.heal()
    proxy.cause(Answer(404, ""))

    before = len(proxy.calls)

    def asked() -> bool:
        with pytest.raises(BucketUnavailable):
            bucket.head("absent")
        return len(proxy.calls) > before

    eventually(asked, "one request is let through")
    assert bucket.health().down_since is not None
    proxy.heal()

    def answers() -> bool:
        try:
            return bucket.read("absent", 10) is None
        except BucketUnavailable:
            return False

    eventually(answers, "the bucket is there again")
    assert bucket.health().down_since is None


def test_a_large_upload_does_not_wait_for_its_turn_for_ever(
    access: BucketAccess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused with the reason, and small ones go on."""
    monkeypatch.setattr("mirror.store.cloud.obstore_bucket._UPLOADS", 0)
    monkeypatch.setattr("mirror.store.cloud.obstore_bucket._LONGEST_TURN", 0.0)
    file = tmp_path / "file"
    file.write_bytes(_LARGE)
    busy = opened_bucket(tmp_path, access, **_PATIENT)
    with closing(busy):
        with pytest.raises(BucketUnavailable, match="large uploads have been under way") as refused:
            busy.upload("large", file, len(_LARGE))
        assert refused.value.retry_after == 10
        busy.write("small", b"1")


def test_an_upload_during_an_outage_is_a_small_request_first(bucket: Bucket, proxy: FaultProxy, tmp_path: Path) -> None:
    """Nobody sends a large file to find out whether somebody listens."""
    file = tmp_path / "file"
    file.write_bytes(_LARGE)
    proxy.cause(Reset())
    with pytest.raises(BucketUnavailable):
        bucket.head("key")
    proxy.heal()
    before = len(proxy.calls)

    def uploaded() -> bool:
        try:
            bucket.upload("large", file, len(_LARGE))
        except BucketUnavailable:
            return False
        return True

    eventually(uploaded, "uploads go through again")
    assert proxy.calls[before].method == "HEAD"


def test_a_store_that_nobody_listens_at(tmp_path: Path, access: BucketAccess) -> None:
    """The reason names the address and the cause; what clients are shown does not."""
    bucket = opened_bucket(tmp_path, access.changed(endpoint="http://127.0.0.1:9"), **_PATIENT)
    with pytest.raises(BucketUnavailable, match=r"127\.0\.0\.1:9: the connection is refused") as refused:
        bucket.read("key", 10)
    assert "127" not in refused.value.public


# ------------------------------------------------------------------------------------- the bucket, and its credentials


def test_a_bucket_that_does_not_exist_is_not_an_empty_one(tmp_path: Path, access: BucketAccess) -> None:
    """Nothing in it is absent: not even where the answer to a request does not say that it is the bucket."""
    missing = BucketAccess("s3://nosuch/prefix", access.settings)
    bucket = opened_bucket(tmp_path, missing, **_PATIENT)
    for call in (
        lambda: bucket.head("key"),
        lambda: bucket.read("key", 1),
        lambda: bucket.open("key"),
        lambda: bucket.write("key", b"1"),
        lambda: list(bucket.list("")),
        lambda: bucket.delete(["key"]),
    ):
        with pytest.raises(BucketUnavailable, match="does not exist"):
            call()


def test_a_missing_permission_is_named(tmp_path: Path, seaweedfs: SeaweedFS, access: BucketAccess) -> None:
    """Of somebody who may read only."""
    reader = seaweedfs.read_only
    bucket = opened_bucket(tmp_path, reader.below("reader"), **_PATIENT)
    assert bucket.head("key") is None
    with pytest.raises(BucketDenied, match="it takes s3:PutObject"):
        bucket.write("key", b"1")
    file = tmp_path / "file"
    file.write_bytes(_LARGE)
    with pytest.raises(BucketDenied, match="s3:PutObject"):
        bucket.upload("key", file, len(_LARGE))


def test_keys_that_are_rotated(tmp_path: Path, access: BucketAccess) -> None:
    """Wrong ones are told by name and without the secret; once the file has the right one, it is used."""
    secret = tmp_path / "secret"
    secret.write_text("not-the-secret")
    right = str(access.settings["secret_key"])
    settings = {name: value for name, value in access.settings.items() if name != "secret_key"}
    bucket = opened_bucket(tmp_path, BucketAccess(access.url, settings), secret_key_file=str(secret), **_PATIENT)
    with pytest.raises(BucketDenied, match=r"refuses to read \(403") as refused:
        bucket.head("key")
    assert "not-the-secret" not in str(refused.value)
    secret.write_text(right)

    def accepted() -> bool:
        try:
            return bucket.head("key") is None
        except BucketDenied:
            return False

    eventually(accepted, "the right secret is used")


# ------------------------------------------------------------------------------------------------- large objects


def test_a_body_that_breaks_goes_on_from_the_next_byte(reading: Bucket, proxy: FaultProxy) -> None:
    """Cut or stalled, and only with the same object."""
    bucket = reading
    bucket.write("large", _LARGE[:5_000_000])
    for fault in (CutAnswer(2_000_000), StalledAnswer(2_000_000)):
        body = bucket.open("large", 1000)
        assert body is not None
        proxy.cause(fault, times=1)
        assert whole(bucket.open("large", 1000)) == _LARGE[1000:5_000_000]
        assert whole(body) == _LARGE[1000:5_000_000]
    proxy.cause(CutAnswer(2_000_000), times=1)
    body = bucket.open("large")
    assert body is not None
    proxy.cause(Meanwhile(lambda: bucket.write("large", _LARGE[:4_000_000])), times=1)
    with pytest.raises(UpstreamInvalid, match="changed while it was read"):
        whole(body)


@pytest.mark.parametrize(
    ("fault", "error"),
    [(CutAnswer(0), UpstreamUnavailable), (StalledAnswer(0), UpstreamTimeout)],
    ids=["cut", "stalled"],
)
def test_a_body_that_breaks_all_the_time(
    reading: Bucket, proxy: FaultProxy, fault: CutAnswer | StalledAnswer, error: type[Exception]
) -> None:
    """Whoever reads it gets an error that says so, and can go on from the same byte later."""
    bucket = reading
    bucket.write("large", _LARGE[:5_000_000])
    proxy.cause(fault)
    body = bucket.open("large")
    assert body is not None
    with pytest.raises(error):
        whole(body)


def test_a_body_is_spliced(bucket: Bucket, tmp_path: Path) -> None:
    """The kernel moves it into a file, from the byte on that is asked for."""
    bucket.write("large", _LARGE[:5_000_000])
    body = bucket.open("large", 1000)
    assert isinstance(body, SupportsSplice)
    hashing = hashlib.sha256(_LARGE[:1000])
    grown: list[int] = []
    with (tmp_path / "file").open("wb+") as file:
        file.write(_LARGE[:1000])
        file.flush()
        pump(body, file.fileno(), hashing, start=1000, limit=5_000_000, grown=grown.append)
        file.seek(0)
        assert file.read() == _LARGE[:5_000_000]
    assert hashing.digest() == hashlib.sha256(_LARGE[:5_000_000]).digest()
    assert body.plain_socket() is None
    assert grown[-1] == 5_000_000


def test_an_upload_that_is_cut_is_repeated_part_by_part(bucket: Bucket, proxy: FaultProxy, tmp_path: Path) -> None:
    """Nobody sees a part of it, and nothing is left of it."""
    file = tmp_path / "file"
    file.write_bytes(_LARGE)
    proxy.cause(CutRequest(4_000_000), times=2, where=lambda call: "partNumber" in call.target)
    proxy.cause(LostAnswer(), times=1, where=lambda call: call.method == "POST" and "uploadId" in call.target)
    bucket.upload("large", file, len(_LARGE))
    assert proxy.happened == {CutRequest: 2, LostAnswer: 1}
    assert whole(bucket.open("large")) == _LARGE
    assert bucket.abort_uploads("", 2e10) == Aborted(0)


@pytest.mark.parametrize("where", ["partNumber=2", "uploadId="], ids=["a part", "the end"])
def test_nothing_is_left_of_an_upload_that_fails(
    bucket: Bucket, direct: Bucket, proxy: FaultProxy, tmp_path: Path, where: str
) -> None:
    """Neither an object nor parts that are billed for ever."""
    file = tmp_path / "file"
    file.write_bytes(_LARGE)

    def fits(call: StoreCall) -> bool:
        return where in call.target and call.method in ("PUT", "POST")

    proxy.cause(Answer(500, "InternalError"), where=fits)
    with pytest.raises(BucketUnavailable, match="500 InternalError"):
        bucket.upload("large", file, len(_LARGE))
    assert proxy.happened[Answer] >= 1
    assert direct.head("large") is None
    assert direct.abort_uploads("", 2e10) == Aborted(0)


def test_unfinished_uploads_are_found_by_age_and_prefix(
    direct: Bucket, seaweedfs: SeaweedFS, access: BucketAccess
) -> None:
    """Those of others, and those that are young, stay."""
    prefix = access.url.removeprefix("s3://")
    for key in ("hosted/a", "hosted/b+ é&", "cache/c"):
        quoted = key.replace("+ é&", "%2B%20%C3%A9%26")
        assert seaweedfs.call("POST", f"/{prefix}/{quoted}?uploads=").status == 200
    assert direct.abort_uploads("hosted/", 1_000_000_000) == Aborted(0)
    assert direct.abort_uploads("hosted/", 2e10) == Aborted(2)
    assert direct.abort_uploads("", 2e10) == Aborted(1)
    assert direct.abort_uploads("", 2e10) == Aborted(0)


def test_listings_go_on_after_a_failed_page(bucket: Bucket, proxy: FaultProxy) -> None:
    """No object is given twice, and none is left out."""
    keys = [f"list/{number}" for number in range(10)]
    for key in keys:
        bucket.write(key, b"1")
    proxy.cause(Answer(503, "SlowDown"), times=1, where=lambda call: call.lists)
    assert [info.key for info in bucket.list("list/")] == keys
    proxy.cause(CutAnswer(100), times=1, where=lambda call: call.lists)
    assert [info.key for info in bucket.list("list/")] == keys


# ------------------------------------------------------------------------------------------- processes and metrics


def test_a_fork_is_refused_and_does_not_hang(bucket: Bucket) -> None:
    """The library's threads are not copied; and nothing carries the credentials to another process."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            bucket.head("key")
            answer = b"answered"
        except StoreError as error:
            answer = str(error).encode()
        os.write(writing, answer)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        assert b"forked" in answers.read()
    os.waitpid(child, 0)
    with pytest.raises(TypeError):
        pickle.dumps(bucket)


_PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from mirror.app.bucket import open_bucket
from mirror.config import load
bucket = open_bucket(load(Path(sys.argv[1])))
def work(number):
    bucket.write(f"exit/{number}", bytes(200_000))
    body = bucket.open(f"exit/{number}")
    buffer = memoryview(bytearray(65536))
    while body.readinto(buffer):
        pass
    return sum(1 for _ in bucket.list("exit/"))
file = Path(sys.argv[1]).with_name(sys.argv[2])
file.write_bytes(bytes(9_000_000))
with ThreadPoolExecutor(8) as threads:
    uploaded = threads.submit(bucket.upload, f"exit/{sys.argv[2]}", file, 9_000_000)
    assert min(threads.map(work, range(16))) > 0
    uploaded.result()
# one that is left in the middle
body = bucket.open(f"exit/{sys.argv[2]}")
assert body.readinto(memoryview(bytearray(65536)))
sys.exit(7)
"""


def test_processes_keep_their_exit_status(tmp_path: Path, direct: Bucket) -> None:
    """obstore's asynchronous calls abort up to half of all processes when they end; these are the blocking ones.

    MIRROR_BUCKET_EXITS makes the loop longer: four processes in each round.
    """
    assert direct.head("exit/0") is None
    configuration = tmp_path / "direct" / "bucket.toml"
    command = [sys.executable, "-c", _PROGRAM, str(configuration)]
    names = [f"file{number}" for number in range(4)]
    for _ in range(int(os.environ.get("MIRROR_BUCKET_EXITS", "1"))):
        running = [subprocess.Popen([*command, name]) for name in names]
        assert [process.wait() for process in running] == [7] * 4


def test_requests_are_counted(bucket: Bucket, proxy: FaultProxy) -> None:
    """By operation and result."""

    def count(operation: str, result: str) -> float:
        return float(telemetry.BUCKET_REQUESTS.labels(operation, result)._value.get())

    before = [count("read", "absent"), count("write", "ok"), count("write", "throttled")]
    assert bucket.head("nothing") is None
    proxy.cause(Answer(503, "SlowDown"), times=1, where=_writes)
    bucket.write("key", b"12345")
    after = [count("read", "absent"), count("write", "ok"), count("write", "throttled")]
    assert [one - other for one, other in zip(after, before, strict=True)] == [1, 1, 1]


def test_a_slow_bucket_does_not_take_every_thread(tmp_path: Path, access: BucketAccess, proxy: FaultProxy) -> None:
    """So many calls wait for it at the same time, and further ones are refused after a while."""
    bucket = opened_bucket(tmp_path, access.changed(endpoint=proxy.url), timeout="3s", retries=2)
    proxy.cause(Silence(), where=lambda call: call.method == "HEAD")
    with ThreadPoolExecutor(40) as threads:
        waiting = [threads.submit(bucket.head, "key") for _ in range(40)]
        errors = [call.exception() for call in waiting]
    assert all(isinstance(error, BucketUnavailable) for error in errors)
    assert proxy.count("HEAD") >= 3
    assert any("does not answer" in str(error) or "is slow" in str(error) for error in errors)


# --------------------------------------------------------------------------------------------------- connections


class _TlsFront(Relay):
    """Speaks TLS to clients, and plain HTTP to the server behind it."""

    def __init__(self, certificate: Certificate, port: int) -> None:
        super().__init__()
        self._context = certificate.server()
        self._behind = port

    def _serve(self, client: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            client,
            socket.create_connection(("127.0.0.1", self._behind)) as inner,
            self._context.wrap_socket(client, server_side=True) as outer,
        ):
            with self._lock:
                self._open |= {outer, inner}
            back = threading.Thread(target=pipe, args=(inner, outer), daemon=True)
            back.start()
            pipe(outer, inner)
            with contextlib.suppress(OSError):
                inner.shutdown(socket.SHUT_WR)
            back.join()


def test_a_certificate_authority_of_ones_own(tmp_path: Path, seaweedfs: SeaweedFS, access: BucketAccess) -> None:
    """It is trusted if it is given; without it, the error says what to do."""
    certificate = Certificate(tmp_path / "tls", extensions=["basicConstraints=CA:FALSE"])
    port = urlsplit(seaweedfs.endpoint).port
    assert port
    with _TlsFront(certificate, port) as front:
        tls = access.changed(endpoint=f"https://127.0.0.1:{front.port}", allow_http=False)
        bucket = opened_bucket(tmp_path, tls, ca_file=str(certificate.certificate))
        bucket.write("key", b"1", expect=ABSENT)
        assert stored(bucket, "key") == b"1"
        assert bucket.abort_uploads("", 2e10) == Aborted(0)
        with pytest.raises(BucketUnavailable, match=r"certificate .*(ca_file|not valid)"):
            opened_bucket(tmp_path, tls, **_PATIENT).head("key")


@pytest.mark.parametrize(("engine", "signed"), [("seaweedfs", False), ("radosgw", True)])
def test_uploads_go_unsigned_only_where_checksums_count(
    tmp_path: Path, request: pytest.FixtureRequest, engine: str, signed: bool
) -> None:
    """With `sign_payload = false`, over TLS: a store that takes bytes with a wrong checksum gets signed ones."""
    store: S3Engine = request.getfixturevalue(engine)
    certificate = Certificate(tmp_path / "tls", extensions=["basicConstraints=CA:FALSE"])
    file = tmp_path / "file"
    file.write_bytes(_LARGE)
    with FaultProxy(store.endpoint) as proxy, _TlsFront(certificate, proxy.port) as front:
        tls = store.access.below("unsigned").changed(endpoint=f"https://127.0.0.1:{front.port}", allow_http=False)
        bucket = opened_bucket(tmp_path, tls, ca_file=str(certificate.certificate), sign_payload=False)
        bucket.upload("key", file, len(_LARGE))
        assert whole(bucket.open("key")) == _LARGE
        parts = [call for call in proxy.calls if "partNumber" in call.target]
        hashes = {call.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD" for call in parts}
        assert hashes == {not signed}
        assert all("x-amz-checksum-crc64nvme" in call.headers for call in parts)
        assert [info.key for info in bucket.list("")] == ["key"]


def test_proxies(tmp_path: Path, access: BucketAccess, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is given; those of the environment only if the settings say so."""
    nobody = "http://127.0.0.1:9"
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, nobody)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    bucket = opened_bucket(tmp_path, access)
    bucket.write("key", b"1")
    assert bucket.abort_uploads("", 2e10) == Aborted(0)
    for proxy in ("env", nobody):
        bucket = opened_bucket(tmp_path, access, proxy=proxy, **_PATIENT)
        with pytest.raises(BucketUnavailable, match="refused"):
            bucket.head("key")


def test_keys_of_the_environment(
    tmp_path: Path, access: BucketAccess, seaweedfs: SeaweedFS, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve for everything, also for what the library cannot do."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", str(access.settings["access_key"]))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", str(access.settings["secret_key"]))
    settings = {name: value for name, value in access.settings.items() if name not in ("access_key", "secret_key")}
    bucket = opened_bucket(tmp_path, BucketAccess(access.url, settings))
    bucket.write("key", b"1")
    assert seaweedfs.call("POST", f"/{access.url.removeprefix('s3://')}/left?uploads=").status == 200
    assert bucket.abort_uploads("", 2e10) == Aborted(1)
