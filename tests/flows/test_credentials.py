"""Credentials that are issued, seen through the whole mirror: what clients get, and what stands nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.clouds import Azure, AzureRegistry
from tests.support.fake_registry import FakeRegistry
from tests.support.helper_program import HelperProgram
from tests.support.live_mirror import live_mirror

SECRET = "canary-secret"
V1 = "/v2/library/app/manifests/v1"


async def test_a_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A private image is pulled with what the helper says; its secret is not in the log."""
    helper = HelperProgram(tmp_path, "cloud")
    helper.answers("user", SECRET)
    monkeypatch.setenv("PATH", helper.environment["PATH"])
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {"docker.io": "cloud"}}))
    with FakeRegistry(tokens=True, users={"user": SECRET}) as registry:
        registry.add_image("library/app", "v1", [b"layer"])
        upstream = {"url": registry.url, "docker_config": str(tmp_path / "config.json")}
        async with live_mirror(tmp_path / "store", {"docker.io": upstream}) as mirror:
            assert (await mirror.ask(V1)).status == 200
            assert SECRET not in mirror.log_text
    assert helper.runs == ["docker.io"]


async def test_a_helper_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients learn why there is nothing; tags that are here are served stale, and all is well when it is mended."""
    helper = HelperProgram(tmp_path, "cloud")
    helper.answers("user", SECRET)
    monkeypatch.setenv("PATH", helper.environment["PATH"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"credsStore": "cloud"}))
    with FakeRegistry(users={"user": SECRET}) as registry:
        registry.add_image("library/app", "v1", [b"layer"])
        upstream = {"url": registry.url, "docker_config": str(path)}
        async with live_mirror(tmp_path / "store", {"docker.io": upstream}) as mirror:
            assert (await mirror.ask(V1)).status == 200
        helper.does(f"echo {SECRET} >&2; exit 7")
        async with live_mirror(tmp_path / "store", {"docker.io": upstream}) as mirror:
            mirror.clock.forward(301)
            # nobody has asked us yet who we are: the registry does now
            stale = await mirror.ask(V1)
            assert (stale.status, "Warning" in stale.headers) == (200, True)
            failed = await mirror.ask("/v2/library/app/manifests/v2")
            assert (failed.status, failed.code) == (503, "UNAVAILABLE")
            assert b"docker-credential-cloud failed with exit status 7" in failed.body
            [line] = mirror.events("no credentials")
            assert (line["issuer"], line["failures"]) == ("docker-credential-cloud", 1)
            assert SECRET not in mirror.log_text
            helper.answers("user", SECRET)
            path.write_text(json.dumps({"credHelpers": {"docker.io": "cloud"}}))
            mirror.clock.forward(301)
            assert "Warning" not in (await mirror.ask(V1)).headers


async def test_a_cloud(tmp_path: Path) -> None:
    """Azure's registry with the machine's identity, through all of the mirror; no token is in the log."""
    with Azure() as azure, AzureRegistry(azure) as registry:
        registry.add_image("library/app", "v1", [b"layer"])
        upstream = {"url": registry.url, "provider": "acr", "metadata_url": azure.url}
        async with live_mirror(tmp_path / "store", {"docker.io": upstream}) as mirror:
            assert (await mirror.ask(V1)).status == 200
            assert registry.users["refresh"] not in mirror.log_text
            assert azure.issued[0] not in mirror.log_text
