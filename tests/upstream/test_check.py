"""`mirror check --online`: what an operator is told before the first pull."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from mirror.errors import (
    ConfigError,
    MirrorError,
    UpstreamDenied,
    UpstreamInvalid,
    UpstreamThrottled,
    UpstreamTimeout,
)
from mirror.upstream.check import advice_for
from mirror.upstream.credentials.source import CredentialsUnavailable
from tests.support.clouds import Azure, AzureRegistry
from tests.support.command import mirror as command
from tests.support.fake_registry import FakeRegistry, status, throttle
from tests.support.helper_program import HelperProgram
from tests.support.scripted import Scripted

SECRET = "canary-password"


def run(tmp_path: Path, upstreams: list[dict[str, Any]], *options: str, **environment: str) -> tuple[int, str]:
    """The command, with a configuration of these upstreams: exit status, and all that it says."""
    lines = ['default_registry = ""', "[store]", f'root = "{tmp_path}/store"']
    for upstream in upstreams:
        lines += ["[[upstream]]", *(f"{name} = {json.dumps(value)}" for name, value in upstream.items())]
    path = tmp_path / "mirror.toml"
    path.write_text("\n".join(lines))
    with mock.patch.dict(os.environ, environment):
        done = command("check", "--config", path, *options)
    assert SECRET not in done.out + done.err
    return done.status, done.out + done.err


def test_registries_that_let_us_in(tmp_path: Path) -> None:
    """By password, by helper, by cloud, and anonymously: each is asked and says ok."""
    helper = HelperProgram(tmp_path, "cloud")
    helper.answers("user", SECRET)
    users = {"user": SECRET}
    with (
        FakeRegistry(tokens=True, users=users) as bearer,
        FakeRegistry(users=users) as basic,
        FakeRegistry() as public,
        FakeRegistry(tokens=True) as anonymous,
        FakeRegistry(users=users) as closed,
        Azure() as azure,
        AzureRegistry(azure) as acr,
    ):
        (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {"basic.test": "cloud"}}))
        upstreams = [
            {"name": "bearer.test", "url": bearer.url, "username": "user", "password": SECRET},
            {"name": "basic.test", "url": basic.url, "docker_config": str(tmp_path / "config.json")},
            {"name": "public.test", "url": public.url, "username": "user", "password": SECRET},
            {"name": "anonymous.test", "url": anonymous.url},
            {"name": "closed.test", "url": closed.url},
            {"name": "acr.test", "url": acr.url, "provider": "acr", "metadata_url": azure.url},
            {"name": "*.wild.test"},
        ]
        code, said = run(tmp_path, upstreams, "--online", "--json", PATH=helper.environment["PATH"])
        assert code == 0, said
        answer = json.loads(said)
        assert answer["upstreams"] == 7
        assert [(one["upstream"], one["ok"]) for one in answer["online"]] == [
            (f"{name}.test", True) for name in ("bearer", "basic", "public", "anonymous", "closed", "acr")
        ]
        details = [one["detail"] for one in answer["online"]]
        assert details == [
            *["answers; accepts the credentials"] * 2,
            "answers; did not ask for credentials",
            "answers; anonymous",
            "answers; anonymous, so only public content",
            "answers; accepts the credentials",
        ]


def test_registries_that_do_not(tmp_path: Path) -> None:
    """Each that fails is named, with its reason and what to do; the others are asked all the same."""
    with Scripted() as gone:
        pass
    with (
        FakeRegistry() as fine,
        FakeRegistry(tokens=True, users={"user": "other"}) as wrong,
        FakeRegistry() as busy,
        FakeRegistry(tokens=True) as lying,
        FakeRegistry() as broken,
        FakeRegistry() as page,
        Azure() as azure,
    ):
        busy.fail("ping", throttle(), times=9)
        broken.fail("ping", status(500), times=9)
        page.fail("ping", status(404), times=9)
        lying.realm = "https://elsewhere.example/token"
        (tmp_path / "config.json").write_text(json.dumps({"credsStore": "missing"}))
        code, said = run(
            tmp_path,
            [
                {"name": "fine.test", "url": fine.url},
                {"name": "wrong.test", "url": wrong.url, "username": "user", "password": SECRET},
                {"name": "busy.test", "url": busy.url},
                {"name": "lying.test", "url": lying.url},
                {"name": "gone.test", "url": gone.url},
                {"name": "helper.test", "url": fine.url, "docker_config": str(tmp_path / "config.json")},
                {"name": "acr.test", "url": fine.url, "provider": "acr", "metadata_url": azure.url},
                {"name": "broken.test", "url": broken.url},
                {"name": "page.test", "url": page.url},
            ],
            "--online",
        )
        assert code == 1
        lines = {line.split()[1]: line for line in said.splitlines() if line.startswith(("ok", "FAILED"))}
        assert lines["fine.test"].startswith("ok")
        assert [name for name, line in lines.items() if line.startswith("FAILED")] == [
            f"{name}.test" for name in ("wrong", "busy", "lying", "gone", "helper", "acr", "broken", "page")
        ]
        assert "the token service refuses our credentials" in lines["wrong.test"]
        assert "docker-credential-missing is not on the PATH" in lines["helper.test"]
        assert "broken.test (127.0.0.1:" in lines["broken.test"]
        advices = ("check the credentials", "wait 7 s", "token_hosts", "network, proxy", "not the registry")
        for advice in (*advices, "its status page", "root of a registry"):
            assert advice in said


def test_without_online_no_host_is_asked(tmp_path: Path) -> None:
    """Checking a file needs no network."""
    with FakeRegistry() as registry:
        code, said = run(tmp_path, [{"name": "a.test", "url": registry.url}], "--json")
        assert (code, json.loads(said)) == (0, {"upstreams": 1, "store": f"{tmp_path}/store"})
        assert not registry.requests


def test_a_sealed_mirror_asks_no_host(tmp_path: Path) -> None:
    """Where no registry may be contacted, a check does not do so either."""
    with FakeRegistry() as registry:
        code, said = run(tmp_path, [{"name": "a.test", "url": registry.url}], "--online", MIRROR__OFFLINE="true")
        assert (code, "offline" in said) == (2, True)
        assert not registry.requests


@pytest.mark.parametrize(
    ("upstream", "mistake"),
    [
        ({"name": "a.test", "provider": "google", "region": "x"}, "region is for provider ecr"),
        ({"name": "a.test", "provider": "ecr"}, "region must be set"),
        ({"name": "a.test", "provider": "azure"}, "must be"),
        ({"name": "a.test", "provider": "acr", "client_secret": SECRET}, "needs tenant_id and client_id"),
        ({"name": "a.test", "provider": "acr", "token_file": "/no/such"}, "/no/such cannot be read"),
        ({"name": "a.test", "provider": "google", "key_file": "/no/such"}, "/no/such cannot be read"),
        ({"name": "a.test", "provider": "acr", "metadata_url": "ftp://x"}, "not an http or https URL"),
        (
            {"name": "a.test", "provider": "google", "username": "u", "password": SECRET},
            "username and provider exclude each other",
        ),
        ({"name": "a.test", "key_file": "/k"}, "key_file is for provider google"),
    ],
)
def test_mistakes_about_providers(tmp_path: Path, upstream: dict[str, Any], mistake: str) -> None:
    """Named before anything is asked, with exit status 2."""
    code, said = run(tmp_path, [upstream], "--online")
    assert code == 2
    assert mistake in said


def test_advice_for_every_kind_of_error() -> None:
    """None leaves the operator alone."""
    errors: list[MirrorError] = [
        CredentialsUnavailable("x", upstream="a"),
        UpstreamDenied("x", upstream="a"),
        UpstreamThrottled("x", upstream="a", retry_after=1),
        UpstreamTimeout("x", upstream="a"),
        UpstreamInvalid("x", upstream="a"),
        ConfigError(["x"]),
    ]
    assert len({advice_for(error) for error in errors}) == len(errors)
