"""Whether the mirror's own credentials are to be had, and let it in: what is remembered of it for whoever looks."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from mirror.caller import on_behalf_of
from mirror.errors import MirrorError
from mirror.oci.authorization import CallerCredentials
from mirror.server.admin.worker_status import Workers
from mirror.upstream.credentials.docker_config import DockerConfig
from mirror.upstream.credentials.of_caller import CallersCredentials
from mirror.upstream.credentials.renewal import Issued, Renewed
from mirror.upstream.credentials.source import (
    Credentials,
    CredentialsUnavailable,
    GivenCredentials,
    LoginState,
)
from mirror.upstream.registry import RegistryUpstream
from tests.ports.conftest import Pulling
from tests.support.clock import Clock
from tests.support.fake_registry import FakeRegistry, status
from tests.support.helper_program import HelperProgram

SECRET = "canary-secret"


def failing(upstream: RegistryUpstream) -> list[tuple[str, str]]:
    """Provider and reason of what does not work now."""
    [health] = upstream.health()
    failures = [(login.provider, login.reason) for login in health.logins if login.reason is not None]
    assert SECRET not in str(failures)
    return failures


async def ask(upstream: RegistryUpstream, name: str = "team/app") -> str:
    """Its tag v1; the name of the error where that fails."""
    try:
        return str((await upstream.resolve(name, "v1")).digest)
    except MirrorError as error:
        return type(error).__name__


def test_attempts(clock: Clock) -> None:
    """A failure stands with its beginning and its latest reason until it works again."""
    attempts = LoginState("google", clock)
    assert attempts.reason is None
    attempts.failed("one")
    clock.time += 60
    attempts.failed("two" * 1000)
    assert (attempts.since, attempts.failed_at) == (clock.time - 60, clock.time)
    assert attempts.reason is not None
    assert attempts.reason.startswith("twotwo")
    assert len(attempts.reason) == 500
    attempts.worked()
    assert (attempts.reason, attempts.worked_at) == (None, clock.time)
    clock.time += 60
    attempts.failed("three")
    assert attempts.since == clock.time


async def test_an_issuer_that_fails(pulling: Pulling, clock: Clock) -> None:
    """It is told also while older credentials are still good, and no more once it gives some."""
    broken = False

    async def obtain() -> Issued:
        if broken:
            raise CredentialsUnavailable("google: the token service does not answer", upstream="a.test")
        return Issued(Credentials("user", SECRET), 300, 3600)

    with FakeRegistry(tokens=True, users={"user": SECRET}) as registry:
        registry.add_image("team/app", "v1", [b"layer"])
        upstream = pulling(registry, Renewed("a.test", "google", obtain, clock=clock, now=clock))
        assert (await ask(upstream)).startswith("sha256:")
        assert failing(upstream) == []
        broken = True
        clock.time += 301
        assert (await ask(upstream)).startswith("sha256:")
        await upstream._credentials._once.run("renew", _nothing)  # type: ignore[attr-defined]
        assert failing(upstream) == [("google", "google: the token service does not answer")]
        broken = False
        clock.time += 3600
        assert (await ask(upstream)).startswith("sha256:")
        assert failing(upstream) == []


async def _nothing() -> None:
    """To wait for what is under way."""


async def test_a_library_that_fails_unexpectedly(pulling: Pulling, clock: Clock) -> None:
    """Its exception's class is told, its text never: it may quote a secret."""

    async def obtain() -> Issued:
        raise RuntimeError(f"with {SECRET}")

    with FakeRegistry(tokens=True, users={"user": SECRET}) as registry:
        upstream = pulling(registry, Renewed("a.test", "ecr", obtain, clock=clock, now=clock))
        assert await ask(upstream) == "CredentialsUnavailable"
        assert failing(upstream) == [("ecr", "ecr failed unexpectedly (RuntimeError)")]


@pytest.mark.parametrize("tokens", [True, False])
async def test_a_login_that_is_refused(tokens: bool, pulling: Pulling, clock: Clock) -> None:
    """By the token service, or by a registry that takes passwords; gone as soon as one of ours is taken."""
    with FakeRegistry(tokens=tokens, users={"user": "another"}) as registry:
        registry.add_image("team/app", "v1", [b"layer"])
        upstream = pulling(registry, GivenCredentials(Credentials("user", SECRET)))
        assert await ask(upstream) == "CredentialsRefused"
        whom = "the token service" if tokens else "the registry"
        assert failing(upstream) == [("password", f"{whom} refuses the credentials (401)")]
        registry.users["user"] = SECRET
        assert (await ask(upstream)).startswith("sha256:")
        assert failing(upstream) == []


async def test_a_403_of_the_token_service(pulling: Pulling, clock: Clock) -> None:
    """Some answer so for a name that does not exist: it counts only where no login has worked lately."""
    with FakeRegistry(tokens=True, users={"user": SECRET}) as registry:
        registry.add_image("team/app", "v1", [b"layer"])
        upstream = pulling(registry, GivenCredentials(Credentials("user", SECRET)))
        assert (await ask(upstream)).startswith("sha256:")
        registry.fail("token", status(403), times=9)
        assert await ask(upstream, "team/nope") == "UpstreamDenied"
        assert failing(upstream) == []
        clock.time += 901
        assert await ask(upstream, "team/nope") == "CredentialsRefused"
        assert failing(upstream) == [("password", "the token service refuses the credentials (403)")]


async def test_who_is_anonymous_has_nothing_to_be_refused(pulling: Pulling) -> None:
    """A private registry that turns strangers away is no fault of credentials."""
    with FakeRegistry(tokens=True, users={"user": SECRET}) as registry:
        registry.add_image("team/app", "v1", [b"layer"])
        upstream = pulling(registry, GivenCredentials())
        assert await ask(upstream) == "UpstreamDenied"
        assert failing(upstream) == []


@pytest.mark.parametrize("tokens", [True, False])
async def test_credentials_of_callers(tokens: bool, pulling: Pulling) -> None:
    """Whoever asks with a wrong password of their own does not make the mirror's look wrong, nor right ones good."""
    with FakeRegistry(tokens=tokens, users={"user": "right", "caller": "right"}) as registry:
        registry.add_image("team/app", "v1", [b"layer"])
        own = GivenCredentials(Credentials("user", SECRET))
        upstream = pulling(registry, CallersCredentials(own))
        with on_behalf_of(CallerCredentials("caller", "wrong")):
            assert await ask(upstream) == "UpstreamDenied"
        assert failing(upstream) == []
        assert await ask(upstream) == "CredentialsRefused"
        [failure] = failing(upstream)
        with on_behalf_of(CallerCredentials("caller", "right")):
            assert (await ask(upstream)).startswith("sha256:")
        assert failing(upstream) == [failure]


async def test_a_docker_config_that_is_gone_or_spoiled(tmp_path: Path, pulling: Pulling) -> None:
    """What it said last is used on; that it cannot be read is told, nothing of what stands in it is."""
    path = tmp_path / "config.json"
    good = json.dumps({"auths": {"a.test": {"username": "user", "password": SECRET}}})
    path.write_text(good)
    with FakeRegistry(users={"user": SECRET}) as registry:
        registry.add_image("team/app", "v1", [b"layer"])
        source = DockerConfig(path, ["a.test"])
        source.check()
        upstream = pulling(registry, source)
        path.write_text(f'{{"auths": {{"a.test": {SECRET}')
        assert (await ask(upstream)).startswith("sha256:")
        assert failing(upstream) == [
            ("docker_config", f"{path}: not a docker config.json; its last content stays in use")
        ]
        path.unlink()
        assert failing(upstream) == [
            ("docker_config", f"{path}: No such file or directory; its last content stays in use")
        ]
        path.write_text(good)
        assert failing(upstream) == []


async def test_a_helper(tmp_path: Path, pulling: Pulling, clock: Clock) -> None:
    """It is called by its program's name; what it wrote is not told."""
    helper = HelperProgram(tmp_path, "cloud")
    helper.does(f"echo {SECRET}; exit 7")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"credsStore": "cloud"}))
    with FakeRegistry(users={"user": SECRET}) as registry:
        registry.add_image("team/app", "v1", [b"layer"])
        source = DockerConfig(path, ["a.test"], environment=helper.environment, clock=clock, now=clock)
        upstream = pulling(registry, source)
        assert await ask(upstream) == "CredentialsUnavailable"
        [(provider, reason)] = failing(upstream)
        assert provider == "docker-credential-cloud"
        assert "failed with exit status 7" in reason
        helper.answers("user", SECRET)
        clock.time += 3600
        assert (await ask(upstream)).startswith("sha256:")
        assert failing(upstream) == []


class _Board:
    """What other workers say."""

    def __init__(self, *statuses: dict[str, Any]) -> None:
        self._statuses = list(statuses)

    def others(self) -> list[dict[str, Any]]:
        return self._statuses

    def open(self) -> None: ...

    def publish(self, status: Any) -> None: ...

    def close(self) -> None: ...


class _NoFlights:
    def active(self) -> list[Any]:
        return []


def _login(reason: str | None, *, since: float = 0.0, failed: float = 0.0, worked: float = 0.0) -> dict[str, Any]:
    return {"provider": "google", "reason": reason, "since": since, "failed_at": failed, "worked_at": worked}


def _worker(number: int, *logins: dict[str, Any] | None) -> dict[str, Any]:
    endpoint = {"url": "https://a.test", "state": "ok", "failures": 0, "retry_at": 0}
    if logins:
        endpoint["logins"] = list(logins)
    return {"worker": number, "started": 1.0, "flights": [], "upstreams": [_upstream(endpoint)]}


def _upstream(endpoint: dict[str, Any]) -> dict[str, Any]:
    return {"name": "a.test", "endpoints": [endpoint], "budget": None}


_FINE = _login(None, worked=50.0)


@pytest.mark.parametrize(
    ("statuses", "merged"),
    [
        ([[_FINE, _FINE], [_FINE, _FINE]], None),
        ([[_login("x", since=60.0, failed=70.0), _FINE], [_FINE, _FINE]], ("x", 60)),
        ([[_login("x", since=60.0, failed=70.0), _FINE], [_login(None, worked=71.0), _FINE]], None),
        (
            [[_login("x", since=60.0, failed=70.0), _FINE], [_login("y", since=55.0, failed=80.0), _FINE]],
            ("y", 55),
        ),
        (
            [[_login("x", since=60.0, failed=70.0), _login("refused", since=61.0, failed=80.0)], [_FINE, _FINE]],
            ("x", 60),
        ),
        ([[_FINE, _login("refused", since=61.0, failed=80.0)], [_FINE, _FINE], [_FINE, _FINE]], ("refused", 61)),
        ([[_login("x", since=60.0, failed=70.0), _FINE], []], ("x", 60)),
    ],
)
async def test_what_workers_say_together(statuses: list[list[dict[str, Any]]], merged: tuple[str, int] | None) -> None:
    """Whichever says it, and in whatever order: the latest word counts, and another version's silence does not."""
    for order in itertools.permutations(statuses):
        others = [_worker(number, *logins) for number, logins in enumerate(order)]
        workers = Workers(_Board(*others), _NoFlights(), list)  # type: ignore[arg-type]  # no flights are asked for
        [upstream] = await workers.upstreams()
        [endpoint] = upstream["endpoints"]
        failure = endpoint["credentials"]
        if merged is None:
            assert failure is None
        else:
            reason, since = merged
            at = f"1970-01-01T00:{since // 60:02}:{since % 60:02}Z"
            assert failure == {"provider": "google", "reason": reason, "since": at}
