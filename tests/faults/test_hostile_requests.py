"""A caller without an account sends what no client would; the answers and logs reveal nothing."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from mirror.server.admin.api import HEADER
from mirror.server.admin.operations import PREFIX
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import live_mirror

_ACCESS: dict[str, Any] = {"anonymous": False, "token": [{"name": "ci", "token": "s3cret"}]}


@pytest.mark.parametrize(
    ("target", "scope"),
    [
        ("/v2/library/app/manifests/1.0", "library/app"),
        ("/v2/reg.example:5000/app/manifests/1.0", "reg.example:5000/app"),
        ("/v2/a%0d%0aX-Evil:%20yes/manifests/1.0", None),
        ("/v2/a%0aSet-Cookie:%20a=b/tags/list", None),
        ("/v2/a%00/manifests/1.0", None),
        ("/v2/a%22,realm=%22http://evil.example/b/manifests/1.0", None),
        ("/v2/a%0d%0ab/blobs/uploads/", None),
        ("/v2/%e2%80%a8/manifests/1.0", None),
        ("/v2/%ff%fe/tags/list", None),
        (f"/v2/{'a' * 4000}/tags/list", None),
    ],
)
async def test_names_in_a_challenge(target: str, scope: str | None, registry: FakeRegistry, tmp_path: Path) -> None:
    """The content of a path cannot break out of the header or the body; an invalid name is not repeated."""
    async with live_mirror(tmp_path, {"docker.io": registry.url}, access=_ACCESS) as mirror:
        for method in ("GET", "HEAD", "POST", "DELETE"):
            answer = await mirror.ask(target, method=method)
            assert answer.status == 401
            actions = {"POST": "pull,push", "DELETE": "delete"}.get(method, "pull")
            named = f',scope="repository:{scope}:{actions}"' if scope else ""
            realm = f"http://127.0.0.1:{mirror.port}/token"
            assert answer.headers.getall("WWW-Authenticate") == [f'Bearer realm="{realm}",service="mirror"{named}']
            assert not {"X-Evil", "Set-Cookie"} & set(answer.headers)
    assert not registry.requests


_RIGHT = f"Authorization: Basic {base64.b64encode(b'x:s3cret').decode()}\r\n"


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (f"GET /v2/ HTTP/1.1\r\nHost: x\r\n{_RIGHT}", 200),
        (f"GET /v2/ HTTP/1.1\r\nHost: x\r\n{_RIGHT}{_RIGHT}", 401),
        (f"GET /v2/ HTTP/1.1\r\nHost: x\r\n{_RIGHT}Authorization: Bearer s3cret\r\n", 401),
        (f"GET /v2/ HTTP/1.1\r\nHost: x\r\n{_RIGHT.replace('n:', 'n :')}", 400),
        ("GET /v2/ HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Bearer s3cret\r\n", 401),
        ("GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret, Bearer x\r\n", 401),
        ("GET /v2/?access_token=s3cret HTTP/1.1\r\nHost: x\r\n", 401),
        ("GET /v2/ HTTP/1.1\r\nHost: x\r\nCookie: token=s3cret\r\n", 401),
        (f"GET http://evil.example/v2/ HTTP/1.1\r\nHost: x\r\n{_RIGHT}", 200),
        (f"GET http://evil.example/token HTTP/1.1\r\nHost: x\r\n{_RIGHT}", 404),
        (f"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\n{_RIGHT}", 404),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\n", 404),
        ("TRACE /v2/ HTTP/1.1\r\nHost: x\r\nX-Secret: a\r\n", 401),
        (f"TRACE /v2/ HTTP/1.1\r\nHost: x\r\n{_RIGHT}", 405),
        (f"PUT /token HTTP/1.1\r\nHost: x\r\n{_RIGHT}Content-Length: 0\r\n", 400),
        ("GET /v2/ HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n", 401),
    ],
)
async def test_ways_around_the_gate(request_text: str, status: int, registry: FakeRegistry, tmp_path: Path) -> None:
    """Credentials that are given twice, or elsewhere than in the one header, do not count; no other host is asked."""
    async with live_mirror(tmp_path, {"docker.io": registry.url}, access=_ACCESS) as mirror:
        received = await mirror.raw(f"{request_text.rstrip()}\r\nConnection: close\r\n\r\n".encode())
        assert received.split(b" ", 2)[1] == str(status).encode(), received[:200]
        assert b"X-Secret" not in received
        assert "s3cret" not in mirror.log_text or "access_token=s3cret" in request_text
    assert not registry.requests


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
async def test_the_admin_api_is_not_there(method: str, registry: FakeRegistry, tmp_path: Path) -> None:
    """The port for pulls serves no path of it, for any caller and any spelling of the path."""
    access = {**_ACCESS, "rule": [{"effect": "allow", "callers": ["*"], "actions": ["admin", "pull"]}]}
    async with live_mirror(tmp_path, {"docker.io": registry.url}, access=access) as mirror:
        who = {"Authorization": "Bearer s3cret", HEADER: "1", "Host": "localhost"}
        for target in (f"{PREFIX}/status", f"{PREFIX}/eviction", "/", f"/{PREFIX}/status", f"/v2/..{PREFIX}/status"):
            assert (await mirror.ask(target, method=method, headers=who)).status == 404, target


async def test_the_caller_in_the_audit_log(registry: FakeRegistry, tmp_path: Path) -> None:
    """The address is that of the connection, whatever headers claim; only an admitted caller is named, and what the
    caller sent is one line.
    """
    registry.add_image("library/app", "1.0", [b"layer"])
    path = tmp_path / "audit"
    access = {**_ACCESS, "audit_log": path}
    claims = {"X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9", "Forwarded": "for=203.0.113.9"}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=access) as mirror:
        target = "/v2/library/app/manifests/1.0"
        for authorization in ("Bearer s3cret", "Bearer gu3ssed", "Basic !", "Negotiate abc", "Bearer a b", ""):
            await mirror.ask(target, headers={**claims, "Authorization": authorization})
        await mirror.ask("/v2/a%0a%7b%22who%22:%22root%22%7d/manifests/1.0", headers={"Authorization": "Bearer s3cret"})
        await mirror.ask("/v2/library/app/blobs/uploads/?mount=sha256:0&from=secret%0d%0a", method="POST")
        clients = {line["client"] for line in mirror.events("request")}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line.get("caller"), line["status"]) for line in lines] == [
        ("token:ci", 200),
        *[(None, 401)] * 4,
        ("anonymous", 401),
        ("token:ci", 400),
        ("anonymous", 401),
    ]
    assert {line["client"] for line in lines} | clients == {"127.0.0.1"}
    assert not [word for word in ("s3cret", "gu3ssed", "203.0.113.9") if word in path.read_text()]
