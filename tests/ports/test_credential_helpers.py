"""Docker's credential helpers, as real programs, and how long what they say is believed."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from mirror import telemetry
from mirror.aio.memo import Memo
from mirror.errors import ConfigError, UpstreamDenied, UpstreamUnavailable
from mirror.policy.upstream.token_lifetime import pause_after
from mirror.upstream.credentials.credential_helpers import CredentialHelper
from mirror.upstream.credentials.docker_config import DockerConfig
from mirror.upstream.credentials.renewal import Issued, Renewed
from mirror.upstream.credentials.source import Credentials, CredentialsUnavailable
from tests.support.clock import Clock
from tests.support.fake_registry import FakeRegistry
from tests.support.helper_program import HelperProgram
from tests.support.live_mirror import PATIENCE, until
from tests.support.registry_upstream import registry_upstream

HUB = "https://index.docker.io/v1/"
SECRET = "canary-secret"


@pytest.fixture
def helper(tmp_path: Path) -> HelperProgram:
    program = HelperProgram(tmp_path, "cloud")
    program.answers("user", SECRET)
    return program


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """What is logged meanwhile."""
    output, before, root = io.StringIO(), structlog.get_config(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    telemetry.set_up_logging("debug", output)
    try:
        yield output
    finally:
        structlog.configure(**before)
        root.handlers[:] = handlers
        root.setLevel(level)


def configured(tmp_path: Path, content: Any, registry: str, helper: HelperProgram, clock: Clock) -> DockerConfig:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    return DockerConfig(path, [registry], environment=helper.environment, clock=clock)


@pytest.mark.parametrize(
    ("registry", "content", "server"),
    [
        ("us-docker.pkg.dev", {"credHelpers": {"us-docker.pkg.dev": "cloud"}}, "us-docker.pkg.dev"),
        ("a.io", {"credHelpers": {"a.io": "cloud"}, "auths": {"a.io": {"username": "u", "password": "p"}}}, "a.io"),
        ("a.io", {"credHelpers": {"b.io": "other"}, "credsStore": "cloud", "auths": {"a.io": {}}}, "a.io"),
        ("docker.io", {"credsStore": "cloud", "auths": {HUB: {}}}, HUB),
        ("docker.io", {"credHelpers": {"docker.io": "cloud"}}, "docker.io"),
    ],
)
async def test_the_helper_of_a_registry(
    tmp_path: Path, helper: HelperProgram, clock: Clock, registry: str, content: Any, server: str
) -> None:
    """It is asked for the registry's entry, by the name under which the file has it."""
    config = configured(tmp_path, content, registry, helper, clock)
    config.check()
    assert await config.credentials() == Credentials("user", SECRET)
    assert helper.runs == [server]


async def test_no_helper_for_others(tmp_path: Path, helper: HelperProgram, clock: Clock) -> None:
    """Another registry's helper is not asked, and a secret in the file goes before the common store."""
    content = {
        "credHelpers": {"b.io": "cloud", "c.io": ""},
        "credsStore": "cloud",
        "auths": {"a.io": {"username": "u", "password": "p"}, "c.io": {"username": "c", "password": "p"}},
    }
    assert await configured(tmp_path, content, "a.io", helper, clock).credentials() == Credentials("u", "p")
    assert await configured(tmp_path, content, "c.io", helper, clock).credentials() == Credentials("c", "p")
    assert helper.runs == []


async def test_an_identity_token(tmp_path: Path, helper: HelperProgram, clock: Clock) -> None:
    """The user name <token> says that the secret is a refresh token."""
    helper.answers("<token>", SECRET)
    config = configured(tmp_path, {"credsStore": "cloud"}, "a.io", helper, clock)
    assert await config.credentials() == Credentials(identity_token=SECRET)


@pytest.mark.parametrize(
    "script",
    ["echo 'credentials not found in native keychain'; exit 1", """echo '{"Username": "", "Secret": ""}'"""],
)
async def test_a_helper_that_has_none(tmp_path: Path, helper: HelperProgram, clock: Clock, script: str) -> None:
    """Then the registry is asked anonymously; the helper is not run again for every pull."""
    helper.does(script)
    config = configured(tmp_path, {"credsStore": "cloud"}, "a.io", helper, clock)
    assert await config.credentials() is None
    assert await config.credentials() is None
    assert helper.runs == ["a.io"]
    clock.time += 61
    helper.answers("user", SECRET)
    assert await config.credentials() == Credentials("user", SECRET)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (f"echo {SECRET}; echo {SECRET} >&2; exit 3", "exit status 3"),
        (f"echo {SECRET}", "no credentials"),
        (f"""echo '{{"Username": "{SECRET}"}}'""", "no credentials"),
        ("echo '[]'", "no credentials"),
        ("head -c 200000 /dev/zero", "no credentials"),
        ("kill -9 $$", "exit status -9"),
    ],
)
async def test_a_helper_that_fails(tmp_path: Path, helper: HelperProgram, clock: Clock, script: str, why: str) -> None:
    """It is named, with what to try; what it wrote, which may be a secret, is nowhere."""
    helper.does(script)
    config = configured(tmp_path, {"credHelpers": {"a.io": "cloud"}}, "a.io", helper, clock)
    with logged() as output, pytest.raises(CredentialsUnavailable) as failure:
        await config.credentials()
    assert why in str(failure.value)
    assert "echo a.io | docker-credential-cloud get" in str(failure.value)
    assert why in output.getvalue()
    assert SECRET not in str(failure.value) + output.getvalue()


async def test_a_helper_that_is_not_there(tmp_path: Path, helper: HelperProgram, clock: Clock) -> None:
    """The message says where it must be; once it is, it is found."""
    config = configured(tmp_path, {"credsStore": "later"}, "a.io", helper, clock)
    with pytest.raises(UpstreamUnavailable, match="docker-credential-later is not on the PATH"):
        await config.credentials()
    HelperProgram(tmp_path, "later").answers("user", SECRET)
    with pytest.raises(UpstreamUnavailable):
        await config.credentials()
    clock.time += 3
    assert await config.credentials() == Credentials("user", SECRET)


async def test_a_program_that_cannot_be_run(tmp_path: Path, helper: HelperProgram, clock: Clock) -> None:
    """The system's reason is passed on."""
    program = tmp_path / "bin/docker-credential-broken"
    program.write_bytes(b"#!/nowhere/interpreter\n")
    program.chmod(0o700)
    with pytest.raises(UpstreamUnavailable, match="cannot be run"):
        await configured(tmp_path, {"credsStore": "broken"}, "a.io", helper, clock).credentials()


def is_running(pid: str) -> bool:
    """A zombie that nobody has waited for yet does not count."""
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


async def test_a_helper_that_hangs(tmp_path: Path, helper: HelperProgram) -> None:
    """It is ended after its time, with everything that it started."""
    pids = tmp_path / "pids"
    helper.does(f"sleep 1000 & echo $! > {pids}; echo $$ >> {pids}; wait")
    for seconds in (1.0, 10.0, 60.0):
        hanging = CredentialHelper("a.io", "cloud", "a.io", timeout=seconds, environment=helper.environment)
        with pytest.raises(UpstreamUnavailable, match=f"no answer within {seconds:g} s"):
            await hanging.obtain()
        # on a busy machine its time may be over before it has begun
        if pids.exists() and len(pids.read_text().split()) == 2:
            break
    assert len(pids.read_text().split()) == 2
    # the kernel ends a killed process when it next has a turn on a core
    await until(lambda: not [pid for pid in pids.read_text().split() if is_running(pid)])


@pytest.mark.parametrize("name", ["../evil", "a b", "a;b", "a/b", "$(id)", ".hidden", "x" * 101, 5, ["cloud"], "é"])
@pytest.mark.parametrize("setting", ["credsStore", "credHelpers"])
def test_a_name_that_is_none(tmp_path: Path, name: Any, setting: str) -> None:
    """Nothing that a path or a shell would take for more; the mistake is named without quoting the file."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({setting: name if setting == "credsStore" else {"a.io": name}}))
    with pytest.raises(ConfigError) as mistake:
        DockerConfig(path, ["a.io"]).check()
    assert setting in str(mistake.value)
    assert str(name) not in str(mistake.value).replace(str(tmp_path), "")
    with pytest.raises(ValueError, match="not the name"):
        CredentialHelper("a.io", name, "a.io")


async def test_the_environment_of_a_helper(
    tmp_path: Path, helper: HelperProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds its own configuration; our settings, and what else may be secret, it does not see."""
    for name, value in helper.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MIRROR__INDEX__URL", f"redis://:{SECRET}@x")
    monkeypatch.setenv("SOME_SECRET", SECRET)
    monkeypatch.setenv("CLOUDSDK_CONFIG", "/etc/gcloud")
    await CredentialHelper("a.io", "cloud", "a.io").obtain()
    assert helper.seen >= {"HOME", "PATH", "CLOUDSDK_CONFIG"}
    assert not helper.seen & {"MIRROR__INDEX__URL", "SOME_SECRET", "PYTEST_CURRENT_TEST"}


async def test_many_wait_for_one_run(tmp_path: Path, helper: HelperProgram, clock: Clock) -> None:
    """A hundred pulls that begin together run it once, and later ones not until its answer has aged."""
    config = configured(tmp_path, {"credsStore": "cloud"}, "a.io", helper, clock)
    credentials = await asyncio.gather(*(config.credentials() for _ in range(100)))
    assert set(credentials) == {Credentials("user", SECRET)}
    clock.time += 299
    assert await config.credentials() == Credentials("user", SECRET)
    assert helper.runs == ["a.io"]
    helper.answers("user", "second")
    clock.time += 2
    # nobody waits for the renewal
    assert await config.credentials() == Credentials("user", SECRET)
    await until(lambda: len(helper.runs) == 2)
    async with asyncio.timeout(PATIENCE):
        while await config.credentials() != Credentials("user", "second"):  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
    assert len(helper.runs) == 2


async def test_a_changed_file_leads_to_another_helper(tmp_path: Path, helper: HelperProgram, clock: Clock) -> None:
    """As every change of it, at once; a file that was only touched does not forget what the helper said."""
    other = HelperProgram(tmp_path, "other")
    other.answers("other", "x")
    config = configured(tmp_path, {"credsStore": "cloud"}, "a.io", helper, clock)
    assert await config.credentials() == Credentials("user", SECRET)
    os.utime(tmp_path / "config.json", (1, 1))
    assert await config.credentials() == Credentials("user", SECRET)
    assert helper.runs == ["a.io"]
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "other", "comment": "longer"}))
    assert await config.credentials() == Credentials("other", "x")


@pytest.mark.parametrize("tokens", [True, False], ids=["bearer", "basic"])
async def test_credentials_that_upstream_refuses_are_had_anew(
    tmp_path: Path, helper: HelperProgram, clock: Clock, tokens: bool
) -> None:
    """Faults row 11: a secret that expired earlier than believed costs one run of the helper and no failed pull."""
    with FakeRegistry(tokens=tokens, users={"user": SECRET}) as registry, ThreadPoolExecutor(2) as executor:
        digest = registry.add_image("team/app", "v1", [b"layer"])
        config = configured(tmp_path, {"credsStore": "cloud"}, registry.host, helper, clock)
        memo = Memo(now=clock)
        upstream = registry_upstream(
            "a.io", registry.url, executor=executor, memo=memo, credentials=config, clock=clock
        )
        assert (await upstream.resolve("team/app", "v1")).digest == digest
        clock.time += 120
        registry.users = {"user": "second"}
        registry.expire_tokens()
        helper.answers("user", "second")
        descriptors = await asyncio.gather(*(upstream.resolve("team/app", "v1") for _ in range(20)))
        assert {descriptor.digest for descriptor in descriptors} == {digest}
        assert len(helper.runs) == 2
        # and where the helper has nothing better, it is not run for every pull that is refused
        registry.users = {"user": "third"}
        registry.expire_tokens()
        for _ in range(5):
            with pytest.raises(UpstreamDenied):
                await upstream.resolve("team/app", "v1")
        assert len(helper.runs) == 2
        await upstream.aclose()
        await memo.aclose()


# --------------------------------------------------------------------------------------------------- renewal


class Issuer:
    """Gives "1", "2", …, each good for an hour, or fails."""

    def __init__(self) -> None:
        self.calls = 0
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def obtain(self) -> Issued:
        self.calls += 1
        await self.gate.wait()
        if self.failure:
            raise self.failure
        return Issued(Credentials("user", str(self.calls)), 3000, 3600)


@pytest.fixture
async def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
async def renewed(issuer: Issuer, clock: Clock) -> AsyncIterator[Renewed]:
    source = Renewed("a.io", "the issuer", issuer.obtain, clock=clock)
    yield source
    await source.aclose()
    await source.aclose()


async def password(renewed: Renewed) -> str:
    credentials = await renewed.credentials()
    assert credentials
    return credentials.password


async def test_renewed_before_they_expire(issuer: Issuer, renewed: Renewed, clock: Clock) -> None:
    """Once, for all who ask meanwhile."""
    assert await password(renewed) == "1"
    clock.time += 2999
    assert await password(renewed) == "1"
    clock.time += 1
    issuer.gate.clear()
    assert {await answer for answer in [password(renewed) for _ in range(10)]} == {"1"}
    issuer.gate.set()
    await until(lambda: not renewed._renewing)
    assert await password(renewed) == "2"
    assert issuer.calls == 2


async def test_renewed_when_they_are_over(issuer: Issuer, renewed: Renewed, clock: Clock) -> None:
    """Whoever comes later than that waits for new ones."""
    assert await password(renewed) == "1"
    clock.time += 3600
    assert await password(renewed) == "2"


async def test_a_renewal_that_fails_uses_up_the_old_ones(issuer: Issuer, renewed: Renewed, clock: Clock) -> None:
    """An issuer that is away for a while is not noticed until what it gave has really expired."""
    assert await password(renewed) == "1"
    clock.time += 3100
    issuer.failure = UpstreamUnavailable("away", upstream="a.io")
    assert await password(renewed) == "1"
    await until(lambda: not renewed._renewing)
    assert await password(renewed) == "1"
    assert issuer.calls == 2
    clock.time += 600
    with pytest.raises(UpstreamUnavailable, match="away"):
        await password(renewed)
    issuer.failure = None
    clock.time += 60
    assert await password(renewed) == "4"


async def test_closing_ends_a_renewal(issuer: Issuer, renewed: Renewed, clock: Clock) -> None:
    """A mirror that stops does not wait for an issuer."""
    assert await password(renewed) == "1"
    clock.time += 3100
    issuer.gate.clear()
    assert await password(renewed) == "1"
    await until(lambda: issuer.calls == 2)
    await renewed.aclose()
    assert not renewed._renewing


async def test_a_broken_issuer_is_left_alone(issuer: Issuer, renewed: Renewed, clock: Clock) -> None:
    """Everybody gets its error, the issuer hears of few of them, and ever fewer."""
    issuer.failure = UpstreamDenied("not you", upstream="a.io", status=403)
    failures = await asyncio.gather(*(renewed.credentials() for _ in range(100)), return_exceptions=True)
    assert {str(failure) for failure in failures} == {"not you"}
    assert issuer.calls == 1
    for _ in range(100):
        clock.time += 1
        with pytest.raises(UpstreamDenied):
            await renewed.credentials()
    assert issuer.calls == 6
    assert [pause_after(number) for number in (1, 2, 3, 6, 7, 1000)] == [2, 4, 8, 60, 60, 60]


async def test_an_unexpected_error_of_an_issuer(issuer: Issuer, renewed: Renewed) -> None:
    """Its class is named; its text, which may hold anything, is not."""
    issuer.failure = RuntimeError(SECRET)
    with pytest.raises(CredentialsUnavailable, match="the issuer failed unexpectedly \\(RuntimeError\\)"):
        await renewed.credentials()


async def test_rejected_credentials_are_dropped(issuer: Issuer, renewed: Renewed, clock: Clock) -> None:
    """Unless they are very young, or others have taken their place already."""
    first = await renewed.credentials()
    assert first
    await renewed.reject(first)
    assert await password(renewed) == "1"
    clock.time += 30
    await renewed.reject(first)
    assert await password(renewed) == "2"
    clock.time += 30
    await renewed.reject(first)
    assert await password(renewed) == "2"


async def test_one_who_leaves_does_not_end_the_renewal(issuer: Issuer, renewed: Renewed) -> None:
    """The others still get what was asked for."""
    issuer.gate.clear()
    leaving = asyncio.ensure_future(renewed.credentials())
    staying = asyncio.ensure_future(renewed.credentials())
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    issuer.gate.set()
    credentials = await staying
    assert credentials is not None
    assert credentials.password == "1"
    assert leaving.cancelled()
