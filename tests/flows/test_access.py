"""Who may pull what, over HTTP: one gate before every resource."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bcrypt
import pytest

from mirror.config import load
from mirror.errors import ConfigError
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import Got, LiveMirror, live_mirror

_RULES = [
    {"effect": "allow", "callers": ["authenticated"], "repositories": ["docker.io/**"]},
    {"effect": "deny", "callers": ["user:bob"], "repositories": ["docker.io/secret/**"]},
]


def _basic(name: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def access(tmp_path: Path) -> dict[str, Any]:
    """Two accounts and a token; bob may not see what is secret."""
    hashed = {name: bcrypt.hashpw(f"{name}-pw".encode(), bcrypt.gensalt(4)).decode() for name in ("alice", "bob")}
    (tmp_path / "htpasswd").write_text("".join(f"{name}:{one}\n" for name, one in hashed.items()))
    return {
        "anonymous": False,
        "htpasswd": tmp_path / "htpasswd",
        "token": [{"name": "ci", "token": "s3cret-ci"}],
        "rule": _RULES,
    }


def _targets(registry: FakeRegistry, name: str) -> list[str]:
    """Every resource of a repository that exists."""
    manifest = registry.add_image(name, "1.0", [name.encode()])
    blob = registry.add_blob(name, name.encode())
    return [
        f"/v2/{name}/manifests/1.0",
        f"/v2/{name}/manifests/{manifest}",
        f"/v2/{name}/blobs/{blob}",
        f"/v2/{name}/tags/list",
        f"/v2/{name}/referrers/{manifest}",
    ]


async def _log_in(mirror: LiveMirror, headers: Mapping[str, str], name: str = "secret/app") -> str:
    answer = await mirror.ask(f"/token?service=mirror&scope=repository:{name}:pull", headers=headers)
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json["token"] == answer.json["access_token"]
    assert answer.json["expires_in"] == 300
    return str(answer.json["token"])


async def test_anonymous_callers_are_challenged(registry: FakeRegistry, tmp_path: Path, access: dict[str, Any]) -> None:
    """The same 401 for what is there, what is not, and what is of no registry; it says where to log in."""
    targets = _targets(registry, "secret/app")
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=access) as mirror:
        answers = [
            await mirror.ask(target) for target in [*targets, "/v2/no/such/manifests/1", "/v2/x.example/a/tags/list"]
        ]
        for answer in answers:
            assert (answer.status, answer.code) == (401, "UNAUTHORIZED")
        expected = f'Bearer realm="http://127.0.0.1:{mirror.port}/token",service="mirror"'
        assert answers[0].headers["WWW-Authenticate"] == f'{expected},scope="repository:secret/app:pull"'
        assert (await mirror.ask("/v2/")).headers["WWW-Authenticate"] == expected
        head = await mirror.ask(targets[0], method="HEAD")
        assert (head.status, head.body) == (401, b"")
        assert registry.requests == []


@pytest.mark.parametrize("how", ["basic", "bearer", "token as password", "given token"])
async def test_ways_in(how: str, registry: FakeRegistry, tmp_path: Path, access: dict[str, Any]) -> None:
    """Basic with each request, a token of ours as clients get it, or one of the configuration."""
    targets = _targets(registry, "secret/app")
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=access) as mirror:
        token = await _log_in(mirror, _basic("alice", "alice-pw"))
        headers = {
            "basic": _basic("alice", "alice-pw"),
            "bearer": _bearer(token),
            "token as password": _basic("x", token),
            "given token": _bearer("s3cret-ci"),
        }[how]
        assert (await mirror.ask("/v2/", headers=headers)).status == 200
        for target in targets:
            assert (await mirror.ask(target, headers=headers)).status == 200
        assert {line["caller"] for line in mirror.events("request")} == {
            "user:alice",
            *(["token:ci"] if how == "given token" else []),
        }
        assert "alice-pw" not in mirror.log_text
        assert "s3cret-ci" not in mirror.log_text


async def test_the_wrong_password(registry: FakeRegistry, tmp_path: Path, access: dict[str, Any]) -> None:
    """Refused everywhere, `/v2/` and the token endpoint included, and told the way again."""
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=access) as mirror:
        for headers in (
            _basic("alice", "bob-pw"),
            _basic("carol", "x"),
            _bearer("mirror-1.x"),
            {"Authorization": "Digest x"},
        ):
            for target in ("/v2/", "/v2/secret/app/manifests/1.0", "/token"):
                answer = await mirror.ask(target, headers=headers)
                assert (answer.status, answer.code) == (401, "UNAUTHORIZED"), target
                assert ("WWW-Authenticate" in answer.headers) is (target != "/token")
        assert (await mirror.ask("/token")).status == 401


async def test_two_users_and_one_private_repository(
    registry: FakeRegistry, tmp_path: Path, access: dict[str, Any]
) -> None:
    """What alice has pulled is not there for bob: on no resource, cached or not, not otherwise than an unknown name."""
    secret, shared = _targets(registry, "secret/app"), _targets(registry, "open/app")
    alice, bob = _basic("alice", "alice-pw"), _basic("bob", "bob-pw")
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=access) as mirror:
        for target in [*secret, *shared]:
            assert (await mirror.ask(target, headers=alice)).status == 200
        for target in shared:
            assert (await mirror.ask(target, headers=bob)).status == 200

        def told(answer: Got) -> tuple[int, Any]:
            [error] = answer.json["errors"]
            return answer.status, {**error, "detail": {**error["detail"], "request": ""}}

        unknown = told(await mirror.ask("/v2/secret/nothing/manifests/1.0", headers=bob))
        for target in secret:
            assert told(await mirror.ask(target, headers=bob)) == unknown
        # the same blob by the name of a repository that bob may see
        other = secret[2].replace("/secret/app/", "/open/app/")
        assert (await mirror.ask(other, headers=bob)).status == 404


async def test_the_oauth_form(registry: FakeRegistry, tmp_path: Path, access: dict[str, Any]) -> None:
    """containerd and Docker post a form; a token may stand in for a refresh token. What is no form is 400."""
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=access) as mirror:
        session = mirror.session
        url = f"http://127.0.0.1:{mirror.port}/token"
        for form, status in [
            ({"grant_type": "password", "username": "alice", "password": "alice-pw", "service": "mirror"}, 200),
            ({"grant_type": "refresh_token", "refresh_token": "s3cret-ci", "service": "mirror"}, 200),
            ({"grant_type": "password", "username": "alice", "password": "no"}, 401),
            ({"grant_type": "client_credentials"}, 400),
            ({"x": "y" * 100_000}, 400),
        ]:
            async with session.post(url, data=form) as response:
                assert response.status == status, form
                if status == 200:
                    assert (await response.json())["token"].startswith("mirror-1.")
        async with session.put(url) as response:
            assert response.status == 400


async def test_a_token_is_not_prolonged(registry: FakeRegistry, tmp_path: Path, access: dict[str, Any]) -> None:
    """Shown at the token endpoint, in any way, it comes back as it is: who is an account no more is out in time."""
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=access) as mirror:
        token = await _log_in(mirror, _basic("alice", "alice-pw"))
        shown = [await mirror.ask("/token", headers=headers) for headers in (_bearer(token), _basic("any", token))]
        form = {"grant_type": "refresh_token", "refresh_token": token}
        async with mirror.session.post(f"http://127.0.0.1:{mirror.port}/token", data=form) as response:
            answers = [*(one.json for one in shown), await response.json()]
        assert {answer["token"] for answer in answers} == {token}
        lifetime = mirror.config.access.token_lifetime
        assert all(0 < answer["expires_in"] <= lifetime for answer in answers)


async def test_anonymous_beside_accounts(registry: FakeRegistry, tmp_path: Path, access: dict[str, Any]) -> None:
    """Anonymous pulls go on where rules let them; `/v2/` still asks, because clients learn of the login there."""
    public, secret = _targets(registry, "open/app"), _targets(registry, "secret/app")
    rules = [
        {"effect": "allow", "callers": ["*"], "repositories": ["docker.io/open/**"]},
        {"effect": "allow", "callers": ["user:alice"], "repositories": ["docker.io/**"]},
    ]
    settings = {**access, "anonymous": True, "rule": rules}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=settings) as mirror:
        assert (await mirror.ask("/v2/")).status == 401
        nobody = _bearer(await _log_in(mirror, {}, "open/app"))
        for headers in ({}, nobody, {"Authorization": "Basic Og=="}):
            for target in public:
                assert (await mirror.ask(target, headers=headers)).status == 200
            assert {(await mirror.ask(target, headers=headers)).status for target in secret} == {401}
        for target in secret:
            assert (await mirror.ask(target, headers=_basic("alice", "alice-pw"))).status == 200


async def test_an_open_mirror_has_no_gate(registry: FakeRegistry, tmp_path: Path) -> None:
    """Nobody is asked, credentials that come all the same are not looked at, and there is no token endpoint."""
    [target, *_] = _targets(registry, "open/app")
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        assert (await mirror.ask("/v2/")).status == 200
        assert (await mirror.ask(target, headers=_basic("who", "ever"))).status == 200
        assert (await mirror.ask("/token")).status == 404
        assert all("caller" not in line for line in mirror.events("request"))


@pytest.mark.parametrize(
    ("headers", "realm"),
    [
        ({"Host": "mirror.example:8443"}, "http://mirror.example:8443/token"),
        ({"Host": "[::1]:5000"}, "http://[::1]:5000/token"),
        ({"Host": "mirror.example", "X-Forwarded-Proto": "https"}, "https://mirror.example/token"),
        ({"Host": 'a",scope="x'}, None),
        ({"Host": "a/b"}, None),
    ],
)
async def test_the_realm(
    headers: dict[str, str], realm: str | None, registry: FakeRegistry, tmp_path: Path, access: dict[str, Any]
) -> None:
    """As the client has reached us; nothing that a Host header holds can break out of the challenge."""
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=access) as mirror:
        answer = await mirror.ask("/v2/", headers=headers)
        if realm is None:
            assert answer.status == 400
        else:
            assert answer.headers["WWW-Authenticate"] == f'Bearer realm="{realm}",service="mirror"'
    fixed = {**access, "realm": "https://login.example/token"}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=fixed) as mirror:
        assert 'realm="https://login.example/token"' in (await mirror.ask("/v2/")).headers["WWW-Authenticate"]


async def test_the_audit_log(registry: FakeRegistry, tmp_path: Path, access: dict[str, Any]) -> None:
    """Who pulled what, with which result, logins and refusals included; no secret stands in it."""
    path = tmp_path / "audit"
    [target, *_] = _targets(registry, "secret/app")
    settings = {**access, "audit_log": path}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=settings) as mirror:
        token = await _log_in(mirror, _basic("alice", "alice-pw"))
        await mirror.ask(target, headers=_bearer(token))
        await mirror.ask(target, headers=_basic("bob", "bob-pw"))
        await mirror.ask(target, headers=_basic("bob", "wrong-pw"))
        await mirror.ask(target)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["action"], line.get("caller"), line["status"]) for line in lines] == [
        ("login", "user:alice", 200),
        ("pull", "user:alice", 200),
        ("pull", "user:bob", 404),
        ("pull", None, 401),
        ("pull", "anonymous", 401),
    ]
    assert lines[1]["repository"] == lines[2]["repository"] == "docker.io/secret/app"
    assert lines[1]["reference"] == "1.0"
    assert lines[1]["client"] == "127.0.0.1"
    assert all(line["id"] for line in lines)
    text = path.read_text()
    assert not [secret for secret in ("alice-pw", "bob-pw", "wrong-pw", token) if secret in text]


_BAD = """
[access]
anonymous = false
htpasswd = "{folder}/htpasswd"
token_key_file = "{folder}/key"
client_ca = "{folder}/none.pem"
[[access.token]]
name = "ci"
token = "canary-secret"
[[access.token]]
name = "ci"
token_file = "{folder}/none"
"""


def test_mistakes_in_the_section_are_all_named(tmp_path: Path) -> None:
    """Files that are not there or hold something else, names that stand twice, what needs something else; no secret."""
    (tmp_path / "htpasswd").write_text("alice:canary-secret\n")
    (tmp_path / "key").write_text("canary-secret")
    file = tmp_path / "mirror.toml"
    file.write_text(_BAD.format(folder=tmp_path))
    with pytest.raises(ConfigError) as caught:
        load(file)
    said = "\n".join(caught.value.mistakes)
    for mistake in (
        f"access.htpasswd: {tmp_path}/htpasswd: line 1: the hash of 'alice' is not bcrypt",
        f"access.token_key_file: {tmp_path}/key: not one or more keys",
        f"access.client_ca: {tmp_path}/none.pem cannot be read",
        "access.client_ca: needs server.tls_certificate",
        "access.token: 'ci' is there twice",
        f"access.token[2].token_file: {tmp_path}/none",
    ):
        assert mistake in said
    assert "canary-secret" not in said


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("[access]\nanonymous = false", "access: no client could use"),
        ('[access]\ngroups = { ops = ["a"] }', "access.groups: these are groups of accounts"),
        ('[[access.rule]]\neffect = "allow"\ncallers = ["alice"]', "access.rule[1].callers[1]: 'alice' is none of"),
        ('[[access.rule]]\neffect = "maybe"\ncallers = ["*"]', "access.rule[1].effect"),
        ('[[access.rule]]\neffect = "allow"\ncallers = []', "access.rule[1].callers"),
        ('[[access.token]]\nname = "x"', "access.token[1]: needs either token or token_file"),
        ('[[access.issuer]]\nissuer = "ftp://x"\naudience = "m"', "access.issuer[1].issuer: not an http or https URL"),
        ("[access]\ntoken_lifetime = 5", "access.token_lifetime"),
    ],
)
def test_one_mistake(text: str, mistake: str, tmp_path: Path) -> None:
    """Each is told where it stands."""
    file = tmp_path / "mirror.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert any(one.startswith(mistake) for one in caught.value.mistakes), caught.value.mistakes


async def test_the_catalog(registry: FakeRegistry, tmp_path: Path, access: dict[str, Any]) -> None:
    """What is here, sorted and by pages, by names that can be pulled; only what the caller may see."""
    names = ["open/b", "open/a", "secret/app"]
    targets = [_targets(registry, name)[0] for name in names]
    alice, bob = _basic("alice", "alice-pw"), _basic("bob", "bob-pw")
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access=access) as mirror:
        assert (await mirror.ask("/v2/_catalog", headers=alice)).json == {"repositories": []}
        for target in targets:
            assert (await mirror.ask(target, headers=alice)).status == 200
        mirror.clock.forward(11)
        everything = ["docker.io/open/a", "docker.io/open/b", "docker.io/secret/app"]
        assert (await mirror.ask("/v2/_catalog", headers=alice)).json == {"repositories": everything}
        assert (await mirror.ask("/v2/_catalog", headers=bob)).json == {"repositories": everything[:2]}
        assert (await mirror.ask("/v2/_catalog")).status == 401
        first = await mirror.ask("/v2/_catalog?n=1", headers=bob)
        assert first.json == {"repositories": everything[:1]}
        following = first.headers["Link"].partition(">")[0].removeprefix("<")
        last = await mirror.ask(following, headers=bob)
        assert (last.json, "Link" in last.headers) == ({"repositories": everything[1:2]}, False)
        assert (await mirror.ask(f"/v2/{everything[0]}/manifests/1.0", headers=bob)).status == 200
        assert (await mirror.ask("/v2/_catalog?n=x", headers=bob)).status == 400
        head = await mirror.ask("/v2/_catalog", headers=bob, method="HEAD")
        assert (head.status, head.body) == (200, b"")
