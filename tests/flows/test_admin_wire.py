"""What the admin API answers to odd requests: methods, parameters, bodies and headers that nobody should send."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from http.client import HTTPMessage
from urllib.parse import urlencode

import pytest

from mirror.server.admin.operations import OPERATIONS, PREFIX
from tests.support.fake_registry import FakeRegistry
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, eventually


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MirrorProcess]:
    """One worker, asked over TCP; no test changes anything."""
    with FakeRegistry() as registry:
        config = write_config(
            tmp_path_factory.mktemp("mirror"),
            {"docker.io": registry.url},
            workers=1,
            more='[admin]\nlisten = "127.0.0.1:0"',
        )
        with MirrorProcess(config) as running:
            yield running


def _ask(
    mirror: MirrorProcess,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, HTTPMessage, bytes]:
    def question() -> str | None:
        said = [line["address"] for line in mirror.log if line.get("event") == "admin listening"]
        return next((one for one in said if not one.startswith("unix:")), None)

    address = eventually(question, "the admin API listens")
    with closing(http.client.HTTPConnection(address, timeout=PATIENCE)) as connection:
        connection.request(method, target, body=body, headers={"Mirror-Admin": "1", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def _message(body: bytes) -> str:
    [error] = json.loads(body)["errors"]
    return str(error["message"])


def test_head_is_get_without_its_body(mirror: MirrorProcess) -> None:
    """On each path that can be got and needs no name; it says how long the body of GET would be."""
    for one in OPERATIONS:
        if one.method == "GET" and "{" not in one.path:
            query = urlencode(dict.fromkeys(one.query_required, "corp/app"))
            status, headers, body = _ask(mirror, "HEAD", f"{PREFIX}{one.path}?{query}")
            assert (status, body) == (200, b""), one.path
            assert int(headers["Content-Length"]) > 0, one.path


def test_methods_that_are_not_allowed(mirror: MirrorProcess) -> None:
    """Each path refuses what its operations do not know, and names what they do."""
    allowed: dict[str, set[str]] = {"/": {"GET", "HEAD"}, "/page.js": {"GET", "HEAD"}}
    for one in OPERATIONS:
        methods = allowed.setdefault(f"{PREFIX}{one.path}".replace("{", "").replace("}", ""), set())
        methods |= {"GET", "HEAD"} if one.method == "GET" else {one.method}
    for path, methods in allowed.items():
        for method in {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"} - methods:
            status, headers, _ = _ask(mirror, method, path)
            assert status == 405, (method, path)
            assert set(headers["Allow"].split(", ")) == methods, (method, path)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("/images?limit=501", "limit"),
        ("/images?limit=" + "0" * 19 + "59", "limit"),
        ("/images?limit=" + "0" * 19 + "1" + "9" * 5000, "limit"),
        ("/images?limit=%D9%A1", "limit"),
        ("/images?limit=1&limit=2", "more than once"),
        ("/images?nope=1", "no such parameter"),
        ("/images?after=x", "after"),
        ("/eviction?bytes=0", "bytes"),
        (f"/images/sha256:{'a' * 64}", f"write NAME@sha256:{'a' * 64}"),
        ("/images/%00", "repository name"),
        ("/images/%FF", "repository name"),
        ("/images/..%2F..%2Fetc", "name of a registry"),
    ],
)
def test_targets_that_cannot_be_used(mirror: MirrorProcess, target: str, says: str) -> None:
    """They are refused with what is wrong with them, whatever they hold."""
    status, _, body = _ask(mirror, "GET", f"{PREFIX}{target}")
    assert (status, says in _message(body)) == (400, True), body


@pytest.mark.parametrize(
    ("method", "target", "body", "status"),
    [
        ("PUT", "/pins/app:v1", b'{"reason": "\\ud800"}', 400),
        ("PUT", "/pins/app:v1", b'{"\\udfff": 1}', 400),
        ("PUT", "/pins/app:v1", b"\xff\xfe{", 400),
        ("PUT", f"/pins/sha256:{'a' * 64}", None, 400),
        ("POST", "/prefetch", b"[" * 100_000, 400),
        ("POST", "/prefetch", b'{"images": ["sha256:' + b"a" * 64 + b'"]}', 400),
        ("POST", "/prefetch", None, 400),
        ("POST", "/prefetch", b'"' + b"x" * (1 << 20) + b'"', 413),
    ],
)
def test_bodies_that_cannot_be_used(
    mirror: MirrorProcess, method: str, target: str, body: bytes | None, status: int
) -> None:
    """They are refused, and nothing is written down of them."""
    assert _ask(mirror, method, f"{PREFIX}{target}", body)[0] == status
    assert json.loads(_ask(mirror, "GET", f"{PREFIX}/pins")[2]) == {"pins": [], "expired": [], "unreadable": []}
    assert json.loads(_ask(mirror, "GET", f"{PREFIX}/jobs")[2]) == {"jobs": []}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:5001"}, 200),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[bad"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_names_and_origins_that_are_not_ours(mirror: MirrorProcess, headers: Mapping[str, str], status: int) -> None:
    """A name that was bound to our address by somebody else, and pages of others, are turned away."""
    assert _ask(mirror, "GET", f"{PREFIX}/status", headers=headers)[0] == status


def test_files_are_not_sent_twice(mirror: MirrorProcess) -> None:
    """A browser that has the page's files is told that they are the same, and gets them where they are not."""
    for path in ("/", "/page.css", "/page.js", "/hosted.js"):
        _, headers, content = _ask(mirror, "GET", path)
        status, again, body = _ask(mirror, "GET", path, headers={"If-None-Match": f'"other", W/{headers["ETag"]}'})
        assert (status, body, again["ETag"]) == (304, b"", headers["ETag"])
        assert _ask(mirror, "GET", path, headers={"If-None-Match": '"other"'})[::2] == (200, content)
