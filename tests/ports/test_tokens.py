"""Bearer and Basic challenges against a registry with a token service, and where the secrets come from."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.aio.memo import Memo
from mirror.errors import (
    ConfigError,
    UpstreamDenied,
    UpstreamError,
    UpstreamInvalid,
    UpstreamThrottled,
    UpstreamUnavailable,
)
from mirror.oci.challenge import Challenge, Scope
from mirror.policy.upstream.token_lifetime import usable_seconds
from mirror.upstream.credentials.docker_config import DockerConfig
from mirror.upstream.credentials.source import Credentials, CredentialSource, GivenCredentials
from mirror.upstream.http.client import open_session
from mirror.upstream.http.transport import Endpoint, Timeouts
from mirror.upstream.parameters import Clocks
from mirror.upstream.tokens import TokenSource
from tests.support.clock import Clock
from tests.support.fake_registry import FakeRegistry, html, status, throttle
from tests.support.redis_server import RedisServer
from tests.support.scripted import Answering, Request, Script, Scripted, Stall, reply, reply_json

APP, OTHER = Scope.pull("team/app"), Scope.pull("team/other")
SECRET = "canary-password"
ANONYMOUS = GivenCredentials()
USER = GivenCredentials(Credentials("user", SECRET))


Build = Callable[..., TokenSource]


@pytest.fixture
async def build(clock: Clock) -> AsyncIterator[Build]:
    sessions: list[aiohttp.ClientSession] = []
    memos: list[Memo] = []

    def make(url: str, credentials: CredentialSource = ANONYMOUS, **more: Any) -> TokenSource:
        timeouts = Timeouts(answer=more.pop("timeout", 20.0))
        endpoint = Endpoint("test", url, token_hosts=more.pop("allowed", ()), timeouts=timeouts)
        sessions.append(open_session(endpoint))
        memos.append(more.pop("memo", None) or Memo(now=clock))
        session = sessions[-1]
        return TokenSource(endpoint, lambda: session, credentials, memos[-1], clocks=Clocks(now=clock), **more)

    yield make
    for memo in memos:
        await memo.aclose()
    for session in sessions:
        await session.close()


def bearer(realm: str, service: str = "fake", scope: str = "") -> list[Challenge]:
    return [Challenge("bearer", {"realm": realm, "service": service, "scope": scope})]


async def test_before_a_challenge_nothing_is_sent(build: Build) -> None:
    """Nobody is told who we are before they ask."""
    with FakeRegistry(tokens=True) as registry:
        assert await build(registry.url, USER).authorization(APP) is None
        assert not registry.requests


async def test_a_token_is_fetched_once_and_remembered(build: Build, clock: Clock) -> None:
    """Kept per scope until shortly before it expires, then fetched anew before upstream would refuse it."""
    with FakeRegistry(tokens=True) as registry:
        tokens = build(registry.url)
        assert await tokens.learn(bearer(f"{registry.url}/token"), APP)
        first = await tokens.authorization(APP)
        assert first is not None
        assert first.startswith("Bearer ")
        clock.time += 269
        assert await tokens.authorization(APP) == first
        clock.time += 2
        assert await tokens.authorization(APP) != first
        (request, _) = registry.of_kind("token")
        assert request.query == {"service": ["fake"], "scope": ["repository:team/app:pull"]}
        assert request.header("Authorization") is None


async def test_many_who_need_a_token_cause_one_exchange(build: Build) -> None:
    """Faults row 64: a thousand at once, one request to the token service."""
    with FakeRegistry(tokens=True) as registry:
        tokens = build(registry.url)
        await tokens.learn(bearer(f"{registry.url}/token"), APP)
        answers = await asyncio.gather(*(tokens.authorization(APP) for _ in range(1000)))
        assert len(set(answers)) == 1
        assert registry.count("token") == 1


async def test_what_one_repository_taught_holds_for_the_next(build: Build) -> None:
    """Realm and service are the registry's; the scope is each repository's own."""
    with FakeRegistry(tokens=True) as registry:
        tokens = build(registry.url)
        await tokens.learn(bearer(f"{registry.url}/token", scope="repository:team/app:pull,push aws"), APP)
        await tokens.authorization(OTHER)
        await tokens.authorization(APP)
        scopes = [request.query["scope"] for request in registry.of_kind("token")]
        assert scopes == [["aws", "repository:team/other:pull"], ["aws", "repository:team/app:pull,push"]]


async def test_a_rejected_token_is_dropped_once(build: Build) -> None:
    """Faults row 11: many whose token was refused cause one refresh; a newer token is not dropped with the old one."""
    with FakeRegistry(tokens=True) as registry:
        tokens = build(registry.url)
        await tokens.learn(bearer(f"{registry.url}/token"), APP)
        old = await tokens.authorization(APP) or ""

        async def refused() -> str | None:
            await tokens.reject(APP, old)
            return await tokens.authorization(APP)

        renewed = await asyncio.gather(*(refused() for _ in range(100)))
        assert len(set(renewed)) == 1
        assert renewed[0] != old
        await tokens.reject(APP, old)
        assert await tokens.authorization(APP) == renewed[0]
        assert registry.count("token") == 2


async def test_credentials_go_to_the_realm(build: Build) -> None:
    """Basic towards the token service; its token towards the registry."""
    with FakeRegistry(tokens=True, users={"user": SECRET}) as registry:
        tokens = build(registry.url, USER)
        await tokens.learn(bearer(f"{registry.url}/token?existing=1"), APP)
        assert SECRET not in (await tokens.authorization(APP) or "")
        (request,) = registry.of_kind("token")
        assert request.header("Authorization") == "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()
        assert request.target.startswith("/token?existing=1&service=fake&")
        assert SECRET not in request.target


async def test_an_identity_token_is_posted(build: Build) -> None:
    """An OAuth2 refresh token travels in a form, never in a URL."""
    with FakeRegistry(tokens=True, users={"user": SECRET}) as registry:
        registry.token_field = "access_token"
        tokens = build(registry.url, GivenCredentials(Credentials(identity_token=SECRET)))
        await tokens.learn(bearer(f"{registry.url}/token"), APP)
        assert await tokens.authorization(APP)
        (request,) = registry.of_kind("token", "POST")
        assert b"grant_type=refresh_token" in request.body
        assert f"refresh_token={SECRET}".encode() in request.body
        assert request.target == "/token"


async def test_tokens_stay_in_this_process(build: Build, clock: Clock) -> None:
    """Whatever else the memo shares through Redis: nothing of tokens and challenges gets there."""
    with RedisServer() as server, FakeRegistry(tokens=True) as registry:
        memo = Memo(shared=server.cache(budget=20), budget=20, now=clock)
        tokens = build(registry.url, memo=memo)
        await tokens.learn(bearer(f"{registry.url}/token"), APP)
        old = await tokens.authorization(APP)
        await tokens.reject(APP, old or "")
        assert await tokens.authorization(APP) != old
        assert server.command("DBSIZE") == b":0\r\n"
        await memo.put("reached", 1, 60)
        assert server.command("DBSIZE") == b":1\r\n"
        await memo.aclose()


async def test_refused_credentials(build: Build) -> None:
    """Wrong credentials are a 401 of upstream, without a word of them."""
    with FakeRegistry(tokens=True, users={"user": "other"}) as registry:
        tokens = build(registry.url, USER)
        await tokens.learn(bearer(f"{registry.url}/token"), APP)
        with pytest.raises(UpstreamDenied) as refusal:
            await tokens.authorization(APP)
        assert refusal.value.status == 401
        assert SECRET not in str(refusal.value)


async def test_changed_credentials_are_another_token(build: Build, tmp_path: Path) -> None:
    """A rotated secret takes effect at once, and its token is not that of the old one."""
    path = tmp_path / "config.json"
    with FakeRegistry(tokens=True, users={"user": "one"}) as registry:
        path.write_text(json.dumps({"auths": {registry.host: {"username": "user", "password": "one"}}}))
        tokens = build(registry.url, DockerConfig(path, [registry.host]))
        await tokens.learn(bearer(f"{registry.url}/token"), APP)
        first = await tokens.authorization(APP)
        registry.users = {"user": "second"}
        path.write_text(json.dumps({"auths": {registry.host: {"username": "user", "password": "second"}}}))
        assert await tokens.authorization(APP) != first


@pytest.mark.parametrize(
    "realm",
    [
        "http://evil.example/token",
        "http://169.254.169.254/latest/meta-data",
        "http://[fd00:ec2::254]/token",
        "ftp://127.0.0.1/token",
        "http://user:pass@127.0.0.1/token",
        "junk",
    ],
)
async def test_a_realm_off_limits(build: Build, realm: str) -> None:
    """Faults row 71: no request, no credentials; the answer of upstream is not believed."""
    with FakeRegistry(tokens=True) as registry:
        with pytest.raises(UpstreamInvalid):
            await build(registry.url, USER).learn(bearer(realm), APP)
        assert not registry.requests


async def test_a_realm_name_that_resolves_off_limits(build: Build) -> None:
    """Faults row 71: an allowed name whose address is ours is not dialled for an upstream that is not there."""
    with FakeRegistry(tokens=True) as registry:
        tokens = build("http://registry.example.com", USER, allowed=["localhost"])
        await tokens.learn(bearer(f"http://localhost:{registry.host.partition(':')[2]}/token"), APP)
        with pytest.raises(UpstreamInvalid):
            await tokens.authorization(APP)
        assert not registry.requests


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_token_service_that_wants_a_slash(build: Build, code: int) -> None:
    """A redirect within the token service is followed, with the query and the credentials; not without end."""
    with FakeRegistry(tokens=True, users={"user": SECRET}) as registry:
        for loops in (False, True):

            def slash(request: Request, answer: Answering, loops: bool = loops) -> Script:
                path, _, query = request.target.partition("?")
                ends = path.endswith("/") and not loops
                return answer(request) if ends else reply(code, b"", {"Location": f"{path.rstrip('/')}/?{query}"})

            registry.heal()
            registry.forget()
            registry.fail("token", slash, times=9)
            tokens = build(registry.url, USER)
            await tokens.learn(bearer(f"{registry.url}/token"), APP)
            if loops:
                with pytest.raises(UpstreamInvalid):
                    await tokens.authorization(APP)
            else:
                assert await tokens.authorization(APP)
            assert registry.count("token") == (3 if loops else 2)
            assert {request.query["scope"][0] for request in registry.of_kind("token")} == {"repository:team/app:pull"}


async def test_a_token_call_is_not_redirected(build: Build) -> None:
    """Faults row 71: a realm that sends elsewhere would take the credentials along."""
    with Scripted() as service, Scripted() as elsewhere:
        service.on("/token", reply(307, b"", {"Location": f"{elsewhere.url}/token"}))
        tokens = build(service.url, USER)
        await tokens.learn(bearer(f"{service.url}/token"), APP)
        with pytest.raises(UpstreamInvalid):
            await tokens.authorization(APP)
        assert not elsewhere.requests


@pytest.mark.parametrize(
    "answer",
    [
        reply(200, b"<html>login</html>", {"Content-Type": "text/html"}),
        reply(200, b"{" + b" " * 100_000 + b'"token":"x"}'),
        reply(200, b'{"token":"' + b"x" * 100_000 + b'"}'),
        reply(200, b"[" * 60_000),
        reply_json(200, {}),
        reply_json(200, []),
        reply_json(200, {"token": ""}),
        reply_json(200, {"token": 5}),
        reply_json(200, {"token": "a b"}),
        reply_json(200, {"token": "a\r\nX: y"}),
        reply(204),
        reply(404, b"no"),
    ],
    ids=lambda answer: answer[1][:20].decode(),
)
async def test_an_answer_that_holds_no_token(build: Build, answer: Any) -> None:
    """Faults row 17: HTML, huge, or lacking the token: not believed, and not remembered."""
    with Scripted() as service:
        service.once("/token", answer)
        service.once("/token", reply_json(200, {"token": "good"}))
        tokens = build(service.url)
        await tokens.learn(bearer(f"{service.url}/token"), APP)
        with pytest.raises(UpstreamInvalid):
            await tokens.authorization(APP)
        assert await tokens.authorization(APP) == "Bearer good"


@pytest.mark.parametrize(
    ("expires_in", "usable"),
    [
        (None, 54),
        (300, 270),
        (3600.0, 3240),
        (60, 54),
        (20, 15),
        (4, 2),
        (0, 54),
        (-5, 54),
        ("300", 54),
        (True, 54),
        (float("nan"), 54),
        (float("inf"), 54),
        (10**20, 54),
        ([], 54),
    ],
)
def test_a_lifetime_that_is_absent_or_absurd_is_a_minute(expires_in: object, usable: float) -> None:
    """Faults row 17: and each is used a little shorter than it lasts."""
    assert usable_seconds(expires_in) == usable


async def test_an_answer_without_lifetime(build: Build, clock: Clock) -> None:
    """Faults row 17: sixty seconds, as the specification says."""
    with FakeRegistry(tokens=True) as registry:
        registry.expires_in = None
        tokens = build(registry.url)
        await tokens.learn(bearer(f"{registry.url}/token"), APP)
        first = await tokens.authorization(APP)
        clock.time += 53
        assert await tokens.authorization(APP) == first
        clock.time += 2
        assert await tokens.authorization(APP) != first


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (throttle(9), UpstreamThrottled),
        (status(503, {"Retry-After": "9"}), UpstreamThrottled),
        (status(503), UpstreamUnavailable),
        (status(500), UpstreamUnavailable),
        (html(403), UpstreamDenied),
    ],
)
async def test_a_token_service_in_trouble(build: Build, fault: Any, error: type[UpstreamError]) -> None:
    """Its class of error stays what it is, and nothing is remembered of it."""
    with FakeRegistry(tokens=True) as registry:
        registry.fail("token", fault)
        tokens = build(registry.url)
        await tokens.learn(bearer(f"{registry.url}/token"), APP)
        with pytest.raises(error) as failure:
            await tokens.authorization(APP)
        assert getattr(failure.value, "retry_after", 9) == 9
        assert await tokens.authorization(APP)


async def test_a_token_service_that_hangs(build: Build) -> None:
    """Faults row 7: the exchange has a time-out as a whole."""
    with Scripted() as service:
        service.on("/token", reply(200, b"", length=10), b"{", Stall())
        tokens = build(service.url, timeout=0.05)
        await tokens.learn(bearer(f"{service.url}/token"), APP)
        with pytest.raises(UpstreamUnavailable):
            await tokens.authorization(APP)


async def test_basic(build: Build) -> None:
    """Where upstream asks for Basic it gets it, if we have something to give."""
    with FakeRegistry(users={"user": SECRET}) as registry:
        tokens = build(registry.url, USER)
        assert await tokens.learn([Challenge("basic", {"realm": "x"})], APP)
        assert await tokens.authorization(APP) == USER.given.basic if USER.given else None
        anonymous = build(registry.url)
        assert await anonymous.learn([Challenge("basic", {"realm": "x"})], APP)
        assert await anonymous.authorization(APP) is None


@pytest.mark.parametrize("parameters", [{}, {"realm": ""}, {"service": "x"}])
async def test_a_bearer_that_names_no_realm(build: Build, parameters: dict[str, str]) -> None:
    """There is no token to be had of it: the password goes, if the registry takes one as well."""
    with Scripted() as service:
        tokens = build(service.url, USER)
        challenge = Challenge("bearer", parameters)
        assert not await tokens.learn([challenge], APP)
        assert await tokens.learn([challenge, Challenge("basic", {})], APP)
        assert (await tokens.authorization(APP) or "").startswith("Basic ")


async def test_odd_words_of_a_token_service(build: Build) -> None:
    """A challenge without `service` is answered without it; 201 is as good as 200, and text of a lifetime is none."""
    with Scripted() as service:
        service.on("/token/", reply_json(201, {"access_token": "good", "token": None, "expires_in": "300"}))
        tokens = build(service.url)
        assert await tokens.learn(bearer(f"{service.url}/token/", service=""), APP)
        assert await tokens.authorization(APP) == "Bearer good"
        (request,) = service.requests
        assert request.target == "/token/?scope=repository%3Ateam%2Fapp%3Apull"


async def test_bearer_is_chosen_before_basic(build: Build) -> None:
    """A token says less than a password. Ways that we do not know lead nowhere."""
    with FakeRegistry(tokens=True) as registry:
        tokens = build(registry.url)
        both = [Challenge("basic", {"realm": "x"}), *bearer(f"{registry.url}/token"), Challenge("negotiate")]
        assert await tokens.learn(both, APP)
        assert (await tokens.authorization(APP) or "").startswith("Bearer ")
        assert not await tokens.learn([Challenge("negotiate")], APP)
        assert not await tokens.learn([Challenge("bearer", {"service": "x"})], APP)
        assert not await tokens.learn([], APP)


# ------------------------------------------------------------------------------------------------- credentials


def test_credentials_show_no_secret() -> None:
    """Faults row 76: neither repr nor str, nor of what holds them."""
    credentials = Credentials("user", SECRET, SECRET)
    for shown in (repr(credentials), str(credentials), repr(GivenCredentials(credentials)), credentials.fingerprint):
        assert "canary" not in shown
    assert credentials.fingerprint != Credentials("user", SECRET).fingerprint


def auth(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("registry", "entries", "expected"),
    [
        ("docker.io", {"https://index.docker.io/v1/": {"auth": auth("u", "p:q")}}, Credentials("u", "p:q")),
        ("registry-1.docker.io", {"https://index.docker.io/v1/": {"auth": auth("u", "p")}}, Credentials("u", "p")),
        ("ghcr.io", {"ghcr.io": {"auth": auth("u", "p")}}, Credentials("u", "p")),
        ("ghcr.io", {"https://ghcr.io": {"username": "u", "password": "p"}}, Credentials("u", "p")),
        ("ghcr.io", {"https://ghcr.io/v2/": {"auth": auth("u", "p")}}, Credentials("u", "p")),
        ("h:5000", {"h:5000": {"auth": auth("u", "p")}, "h": {"auth": auth("x", "y")}}, Credentials("u", "p")),
        ("a.io", {"a.io": {"auth": auth("<token>", ""), "identitytoken": "t"}}, Credentials(identity_token="t")),
        ("a.io", {"a.io": {"username": "<token>", "password": "t"}}, Credentials(identity_token="t")),
        ("a.io", {"a.io": {"auth": auth("u", "p"), "identitytoken": "t"}}, Credentials("u", "p", "t")),
        ("a.io", {"a.io": {}}, None),
        ("a.io", {"b.io": {"auth": auth("u", "p")}}, None),
        ("a.io", {}, None),
    ],
)
async def test_docker_config(tmp_path: Path, registry: str, entries: Any, expected: Credentials | None) -> None:
    """The spellings that docker and podman write."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"auths": entries, "credHelpers": {"other.io": "other"}}))
    config = DockerConfig(path, [registry])
    config.check()
    assert await config.credentials() == expected


async def test_docker_config_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """Rotated secrets take effect; a file half written or gone counts as what it last was."""
    path = tmp_path / "config.json"
    config = DockerConfig(path, ["a.io"])
    assert await config.credentials() is None
    path.write_text(json.dumps({"auths": {"a.io": {"auth": auth("u", "one")}}}))
    assert await config.credentials() == Credentials("u", "one")
    path.write_text('{"auths": {"a.io"')
    assert await config.credentials() == Credentials("u", "one")
    path.unlink()
    assert await config.credentials() == Credentials("u", "one")
    fresh = tmp_path / "fresh.json"
    fresh.write_text(json.dumps({"auths": {"a.io": {"auth": auth("u", "two")}}}))
    os.replace(fresh, path)
    assert await config.credentials() == Credentials("u", "two")


@pytest.mark.parametrize("text", ["", "canary", "[]", '{"auths": []}', '{"auths": {"a.io": {"auth": "canary!"}}}'])
def test_a_docker_config_that_is_none(tmp_path: Path, text: str) -> None:
    """A mistake is named at start, without quoting the file."""
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as mistake:
        DockerConfig(path, ["a.io"]).check()
    assert "canary" not in str(mistake.value)
    with pytest.raises(ConfigError):
        DockerConfig(tmp_path / "missing", ["a.io"]).check()
