"""Who may push, over HTTP: logins as clients do them, rights that end in the middle, and what strangers are told."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Final

import pytest

from mirror.access.robots import ROBOTS, USES, Grant, create_robot, revoke_robot
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from tests.support.live_mirror import Got, LiveMirror
from tests.support.push_client import CONFIG_TYPE, LAYER_TYPE, PushClient, hosting_mirror

_RULES: Final = (
    {"effect": "allow", "callers": ["token:reader"], "actions": ["pull"], "repositories": ["corp/**"]},
    {"effect": "allow", "callers": ["token:pusher"], "actions": ["pull", "push"], "repositories": ["corp/team/**"]},
    {
        "effect": "allow",
        "callers": ["token:owner"],
        "actions": ["pull", "write", "delete"],
        "repositories": ["corp/**"],
    },
)
_TOKENS: Final = {"token": [{"name": name, "token": f"s-{name}"} for name in ("reader", "pusher", "owner", "stranger")]}


def _as(secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"x:{secret}".encode()).decode()}


class _Client:
    """Docker's way: a token for each repository and action, asked for with the login, and sent as a bearer."""

    def __init__(self, mirror: LiveMirror, secret: str, name: str = "corp/team/app") -> None:
        self.mirror = mirror
        self.secret = secret
        self.name = name
        self.inner = PushClient(mirror, name)

    async def bearer(self, scope: str) -> dict[str, str]:
        answer = await self.mirror.ask(f"/token?service=mirror&scope={scope}", headers=_as(self.secret))
        assert answer.status == 200, answer
        return {"Authorization": f"Bearer {answer.json['token']}"}

    async def blob(self, content: bytes, headers: dict[str, str]) -> Got:
        """Pushed in one request."""
        target = f"/v2/{self.name}/blobs/uploads/?digest={Digest.of(content)}"
        return await self.inner.ask("POST", target, body=content, headers=headers)

    async def manifest(self, tag: str, headers: dict[str, str], *layers: bytes) -> Got:
        """Pushed with a config that is the tag, so that each tag has an image of its own."""
        content = _manifest(tag.encode(), *layers)
        target = f"/v2/{self.name}/manifests/{tag}"
        return await self.inner.ask("PUT", target, body=content, headers={**headers, "Content-Type": OCI_MANIFEST})

    async def image(self, tag: str, headers: dict[str, str]) -> Got:
        """All of an image, one after the other; the first refusal ends it."""
        for content in (tag.encode(), b"layer"):
            if (answer := await self.blob(content, headers)).status != 201:
                return answer
        return await self.manifest(tag, headers, b"layer")


def _manifest(config: bytes, *layers: bytes) -> bytes:
    def described(kind: str, content: bytes) -> dict[str, Any]:
        return {"mediaType": kind, "digest": str(Digest.of(content)), "size": len(content)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(CONFIG_TYPE, config),
        "layers": [described(LAYER_TYPE, layer) for layer in layers],
    }
    return json.dumps(manifest).encode()


async def test_a_push_as_docker_does_it(tmp_path: Path) -> None:
    """`/v2/` asks for a login, the push asks for a scope, and a token with that scope is enough for all of it."""
    async with hosting_mirror(tmp_path, rules=_RULES, access=_TOKENS) as mirror:
        client = _Client(mirror, "s-pusher")
        assert (await mirror.ask("/v2/")).status == 401
        refused = await client.blob(b"layer", {})
        assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
        assert refused.headers["WWW-Authenticate"].endswith('scope="repository:corp/team/app:pull,push"')
        headers = await client.bearer("repository:corp/team/app:pull,push")
        assert (await client.image("v1", headers)).status == 201
        assert (await mirror.ask("/v2/corp/team/app/manifests/v1", headers=_as("s-reader"))).status == 200
        # a new tag is a push, the move of one is more than that
        assert (await client.blob(b"v2", headers)).status == 201
        moved = await client.inner.ask(
            "PUT",
            "/v2/corp/team/app/manifests/v1",
            body=_manifest(b"v2", b"layer"),
            headers={**headers, "Content-Type": OCI_MANIFEST},
        )
        assert (moved.status, moved.code) == (403, "DENIED")
        assert (await client.manifest("v2", headers, b"layer")).status == 201


async def test_a_token_of_one_repository_pushes_to_no_other(tmp_path: Path) -> None:
    """The caller may push there too: the 401 says which scope is needed, and with that it goes on."""
    async with hosting_mirror(tmp_path, rules=_RULES, access=_TOKENS) as mirror:
        client = _Client(mirror, "s-pusher")
        headers = await client.bearer("repository:corp/team/other:pull,push")
        refused = await client.blob(b"layer", headers)
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"].endswith(
            'scope="repository:corp/team/app:pull,push",error="insufficient_scope"'
        )
        only_pull = await client.bearer("repository:corp/team/app:pull")
        assert (await client.blob(b"layer", only_pull)).status == 401
        assert (await client.image("v1", await client.bearer("repository:corp/team/app:pull,push"))).status == 201
        # a scope that the rules do not allow is left out of the token, and the answer is that of the rules
        reader = _Client(mirror, "s-reader")
        refused = await reader.blob(b"layer", await reader.bearer("repository:corp/team/app:pull,push"))
        assert (refused.status, refused.code) == (403, "DENIED")


async def test_a_robot_that_is_revoked_in_the_middle_of_a_push(tmp_path: Path) -> None:
    """What it did stays as it is; its next request is refused, with the token that it holds and with its secret."""
    async with hosting_mirror(tmp_path, rules=_RULES, access=_TOKENS) as mirror:
        records, uses = mirror.app.storage.records(ROBOTS), mirror.app.storage.records(USES)
        allow = [Grant(("push",), ("corp/team/**",))]
        _, secret = create_robot(records, "ci", allow, now=mirror.clock(), expires_at=None)
        client = _Client(mirror, secret)
        headers = await client.bearer("repository:corp/team/app:pull,push")
        assert (await client.blob(b"v1", headers)).status == 201
        location = await client.inner.ask("POST", client.inner.uploads, headers=headers)
        assert location.status == 202
        assert revoke_robot(records, uses, "ci")
        session = location.headers["Location"]
        for answer in (
            await client.inner.ask("PATCH", session, body=b"layer", headers=headers),
            await client.inner.finish(session, Digest.of(b"layer"), b"layer", **headers),
            await client.manifest("v1", headers),
            await client.blob(b"layer", _as(secret)),
        ):
            assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
        assert (await mirror.ask("/v2/corp/team/app/manifests/v1", headers=_as("s-reader"))).status == 404
        assert secret not in mirror.log_text


async def test_a_robot_with_nothing_but_push(tmp_path: Path) -> None:
    """It pushes, and reads nothing: neither what it pushed nor what everybody else may pull."""
    async with hosting_mirror(tmp_path, rules=_RULES, access=_TOKENS) as mirror:
        records = mirror.app.storage.records(ROBOTS)
        allow = [Grant(("push",), ("corp/team/**",))]
        _, secret = create_robot(records, "drop", allow, now=mirror.clock(), expires_at=mirror.clock() + 60)
        client = _Client(mirror, secret)
        headers = await client.bearer("repository:corp/team/app:pull,push")
        assert (await client.image("v1", headers)).status == 201
        for target in ("manifests/v1", "tags/list", f"blobs/{Digest.of(b'layer')}"):
            answer = await mirror.ask(f"/v2/corp/team/app/{target}", headers=headers)
            assert (answer.status, answer.code) == (404, "NAME_UNKNOWN"), target
        assert (await mirror.ask("/v2/library/alpine/tags/list", headers=_as(secret))).status == 404
        mirror.clock.forward(61)
        assert (await client.blob(b"more", headers)).status == 401


#: Headers that differ between any two answers.
_OWN: Final = ("Date", "Content-Length", "X-Request-ID")
_VERBS: Final = [
    ("GET", "manifests/v1"),
    ("HEAD", "manifests/v1"),
    ("PUT", "manifests/v1"),
    ("DELETE", "manifests/v1"),
    ("GET", "tags/list"),
    ("GET", f"referrers/{Digest.of(b'x')}"),
    ("GET", f"blobs/{Digest.of(b'layer')}"),
    ("HEAD", f"blobs/{Digest.of(b'layer')}"),
    ("DELETE", f"blobs/{Digest.of(b'layer')}"),
    ("POST", "blobs/uploads/"),
    ("POST", f"blobs/uploads/?mount={Digest.of(b'layer')}&from=corp/some/base"),
    ("POST", f"blobs/uploads/?mount={Digest.of(b'layer')}"),
    ("POST", f"blobs/uploads/?digest={Digest.of(b'layer')}"),
    ("GET", "blobs/uploads/abc"),
    ("PATCH", "blobs/uploads/abc"),
    ("PUT", f"blobs/uploads/abc?digest={Digest.of(b'layer')}"),
    ("DELETE", "blobs/uploads/abc"),
]


@pytest.mark.parametrize("secret", ["s-stranger", ""])
async def test_strangers_learn_nothing_by_any_verb(secret: str, tmp_path: Path) -> None:
    """The answer about what is here is, word for word, that about what nobody has ever pushed."""
    async with hosting_mirror(tmp_path, rules=_RULES, access=_TOKENS) as mirror:
        owner = _Client(mirror, "s-owner")
        assert (await owner.image("v1", _as("s-owner"))).status == 201
        login = _as(secret) if secret else {}

        async def said(method: str, name: str, target: str) -> tuple[object, ...]:
            answer = await owner.inner.ask(method, f"/v2/{name}/{target}", body=None, headers=login)
            body = json.loads(answer.body)["errors"] if answer.body else None
            for error in body or ():
                error["detail"].pop("request", None)
            kept = {key: value for key, value in answer.headers.items() if key not in _OWN}
            return answer.status, json.dumps([body, kept]).replace(name, "NAME")

        for method, target in _VERBS:
            here, unknown = [await said(method, name, target) for name in ("corp/team/app", "corp/team/not")]
            assert here == unknown, (method, target)
            assert here[0] == (404 if secret else 401), (method, target)


async def test_all_that_is_done_is_in_the_audit_log(tmp_path: Path) -> None:
    """Logins, pushes, moves of tags, mounts and deletions: who, what, where, with which token, and how it ended."""
    path = tmp_path / "audit"
    async with hosting_mirror(tmp_path, rules=_RULES, access={**_TOKENS, "audit_log": path}) as mirror:
        client = _Client(mirror, "s-owner")
        scope = "repository:corp/team/app:pull,push,delete"
        headers = await client.bearer(scope)
        assert (await client.image("v1", headers)).status == 201
        mount = f"/v2/corp/team/app/blobs/uploads/?mount={Digest.of(b'layer')}&from=corp/team/app"
        assert (await client.inner.ask("POST", mount, headers=headers)).status == 201
        assert (await client.inner.ask("DELETE", "/v2/corp/team/app/manifests/v1", headers=headers)).status == 202
        assert (await client.blob(b"x", _as("s-reader"))).status == 403
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # the mirror may begin to collect meanwhile, which is an action of its own
    lines = [line for line in lines if line["caller"] != "mirror"]
    assert [(line["action"], line["status"], line["caller"], line.get("scope")) for line in lines] == [
        ("login", 200, "token:owner", scope),
        ("push", 201, "token:owner", scope),
        ("push", 201, "token:owner", scope),
        ("push", 201, "token:owner", scope),
        ("mount", 201, "token:owner", scope),
        ("delete", 202, "token:owner", scope),
        ("push", 403, "token:reader", None),
    ]
    assert {line["repository"] for line in lines[1:]} == {"corp/team/app"}
    assert (lines[3]["reference"], lines[3]["digest"]) == ("v1", str(Digest.of(_manifest(b"v1", b"layer"))))
    assert lines[5]["reference"] == "v1"


async def test_a_push_does_not_tell_strangers_what_is_cached(tmp_path: Path) -> None:
    """The answer for a cached registry that is closed to the caller is that for a hosted name that is."""
    pulls = {
        "effect": "allow",
        "callers": ["token:reader"],
        "actions": ["pull"],
        "repositories": ["private.example/**"],
    }
    upstreams = dict.fromkeys(("docker.io", "private.example"), "http://127.0.0.1:9")
    async with hosting_mirror(tmp_path, rules=(*_RULES, pulls), access=_TOKENS, upstreams=upstreams) as mirror:
        client = PushClient(mirror)

        async def push(name: str, headers: dict[str, str]) -> tuple[int, str | None, str]:
            answer = await client.ask("POST", f"/v2/{name}/blobs/uploads/", headers=headers)
            return answer.status, answer.code, json.loads(answer.body)["errors"][0]["message"]

        for headers in (_as("s-pusher"), {}):
            told = await push("private.example/team/app", headers)
            assert told == await push("corp/elsewhere/app", headers)
            assert told[0] == (404 if headers else 401)
        assert (await push("private.example/team/app", _as("s-reader")))[:2] == (405, "UNSUPPORTED")
