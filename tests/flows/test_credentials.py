"""Credentials that are issued, seen through the whole mirror: what clients get, and what stands nowhere."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.admin_client import ask_admin
from tests.support.clouds import Azure, AzureRegistry
from tests.support.fake_registry import FakeRegistry
from tests.support.helper_program import HelperProgram
from tests.support.live_mirror import live_mirror
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import eventually

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
            [line] = mirror.events("credentials unavailable")
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


def test_messages_for_operators(tmp_path: Path) -> None:
    """Why there are no credentials, since when and whose fault it is: by the admin API, whichever of two workers
    answers, by `mirror status`, and no more once it works again. No secret stands there, in the log or on the board.
    """
    helper = HelperProgram(tmp_path, "cloud")
    helper.does(f"echo {SECRET}; echo {SECRET} >&2; exit 7")
    docker_config = tmp_path / "config.json"
    docker_config.write_text(json.dumps({"credHelpers": {"docker.io": "cloud"}}))
    with FakeRegistry(users={"user": SECRET}) as registry, FakeRegistry(tokens=True, users={"user": "other"}) as strict:
        registry.add_image("library/app", "v1", [b"layer"])
        more = f'docker_config = "{docker_config}"\n[[upstream]]\nname = "quay.io"\nurl = "{strict.url}"\n'
        more += f'username = "user"\npassword = "{SECRET}"'
        config = write_config(tmp_path, {"docker.io": registry.url})
        config.write_text(config.read_text().replace("[[route]]", f"{more}\n[[route]]"))
        with MirrorProcess(config, env={"PATH": helper.environment["PATH"]}) as mirror:
            mirror.wait_for_event("admin listening")
            told: dict[int, Any] = {}

            def failing() -> bool:
                for name in ("docker.io", "quay.io"):
                    mirror.get(f"/v2/{name}/library/app/manifests/v1")
                said = ask_admin(tmp_path / "store/admin.sock", "GET", "/admin/v1/upstreams")
                credentials = {one["name"]: one["endpoints"][0]["credentials"] for one in said.json["upstreams"]}
                if len(credentials) == 2 and all(credentials.values()):
                    told[said.worker] = credentials
                return len(told) == 2

            eventually(failing, "both workers tell of both")
            for credentials in told.values():
                assert credentials["docker.io"]["provider"] == "docker-credential-cloud"
                assert "failed with exit status 7" in credentials["docker.io"]["reason"]
                assert credentials["docker.io"]["since"].startswith("20")
                assert (credentials["quay.io"]["provider"], credentials["quay.io"]["reason"]) == (
                    "password",
                    "the token service refuses the credentials (401)",
                )
            shown = _status(config)
            assert "login:     docker.io by docker-credential-cloud: the credential helper" in shown
            assert "login:     quay.io by password: the token service refuses the credentials (401), since 20" in shown
            helper.answers("user", SECRET)
            strict.users["user"] = SECRET
            # another entry: the pause of the one that failed is not waited for
            docker_config.write_text(json.dumps({"credsStore": "cloud"}))
            fine: set[int] = set()

            def mended() -> bool:
                for name in ("docker.io", "quay.io"):
                    mirror.get(f"/v2/{name}/library/app/manifests/v1")
                said = ask_admin(tmp_path / "store/admin.sock", "GET", "/admin/v1/upstreams")
                if not any(one["endpoints"][0]["credentials"] for one in said.json["upstreams"]):
                    fine.add(said.worker)
                return len(fine) == 2

            eventually(mended, "neither worker tells of it any more")
            assert "login:" not in _status(config)
            said = [json.dumps(mirror.log), json.dumps(list(told.values())), shown]
            said += [path.read_text() for path in (tmp_path / "store").rglob("board/*.json")]
            assert not [text for text in said if SECRET in text]


def _status(config: Path) -> str:
    command = [sys.executable, "-m", "mirror", "status", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_a_password_that_is_rotated(tmp_path: Path) -> None:
    """Both workers send the new one without a SIGHUP: of the upstream itself and of a mirror of it. A file that is gone
    meanwhile is told, and no password stands in the log, in the configuration that is shown, or in an answer.
    """
    old, new = "canary-old", "canary-new"
    own, near = tmp_path / "own", tmp_path / "near"
    with FakeRegistry(users={"user": old}) as registry, FakeRegistry(tokens=True, users={"user": old}) as other:
        more = f'username = "user"\npassword_file = "{own}"\n[[upstream]]\nname = "quay.io"\nurl = "{registry.url}"\n'
        more += f'endpoints = [{{url = "{other.url}", username = "user", password_file = "{near}"}}]\n'
        config = write_config(tmp_path, {"docker.io": registry.url}, tag_ttl="0s")
        config.write_text(config.read_text().replace("[[route]]", f"{more}[[route]]"))
        for path in (own, near):
            path.write_text(old)
        with MirrorProcess(config) as mirror:
            mirror.wait_for_event("admin listening")

            numbers = itertools.count()

            def both_pull(password: str) -> None:
                """Each worker fetches images that are new to it from both registries, which take this password only."""
                for one in (registry, other):
                    one.users["user"] = password
                seen: dict[str, set[str]] = {"docker.io": set(), "quay.io": set()}

                def ask() -> bool:
                    image = f"library/app{next(numbers)}"
                    for name, one in (("docker.io", registry), ("quay.io", other)):
                        one.add_image(image, "v1", [b"layer"])
                        target = f"/v2/{name}/{image}/manifests/v1"
                        status, _, body = mirror.get(target)
                        assert status == 200, body
                        seen[name].add(mirror.wait_for_event("request", path=target)["id"].partition("-")[0])
                    return all(len(workers) == 2 for workers in seen.values())

                eventually(ask, "both workers have pulled from both")

            both_pull(old)
            for path in (own, near):
                path.unlink()
            both_pull(old)
            for path in (own, near):
                fresh = path.with_suffix(".fresh")
                fresh.write_text(f"{new}\n")
                fresh.rename(path)
            both_pull(new)
            shown = ask_admin(tmp_path / "store/admin.sock", "GET", "/admin/v1/config")
            assert shown.status == 200
            log = json.dumps(mirror.log)
            noted = [line["reason"] for line in mirror.log if line["event"] == "credentials not reloaded"]
            assert f"{own}: No such file or directory; its last content stays in use" in noted
            assert "canary" not in log + json.dumps(shown.json)
