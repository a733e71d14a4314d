"""Commands that are given names of virtual registries, and `release`, without a running mirror."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirror.oci.reference import Repo
from mirror.store.local.local_records import local_repository_records
from tests.support.command import CommandSite
from tests.support.here import APP, Here
from tests.support.hosted_here import CORP, HostedHere

_CONFIG = """
[store]
root = "{root}"
[access]
audit_log = "{root}/../audit.log"
[[hosted]]
name = "corp"
keep_deleted = 0
[[virtual]]
name = "all"
members = ["corp", "docker.io"]
[[upstream]]
name = "docker.io"
url = "http://127.0.0.1:9"
"""


class _Site(CommandSite):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, _CONFIG)
        self.here = HostedHere(self.root)
        self.cache = Here.at(self.root)
        self.records = local_repository_records(self.layout)


@pytest.fixture
def site(tmp_path: Path) -> _Site:
    """A mirror that hosts `corp`, caches Docker Hub, has both under `all`, and does not run."""
    return _Site(tmp_path)


def test_virtual_names_become_names_of_members(site: _Site) -> None:
    """The hosted member that has the name, or the upstream of which something is here; the command says which."""
    site.here.image([b"ours"], tag="v1")
    site.cache.image([b"theirs"], tag="v1")
    site.cache.image([b"hidden"], repo=Repo("docker.io", "team/app"), tag="v1")
    for name, meant in (("all/team/app", CORP), ("all/library/app", APP), ("all/app", APP)):
        done = site.run("show", f"{name}:v1", "--json")
        assert done.status == 0, done
        assert done.json["image"] == f"{meant}:v1"
        assert done.err == f"{name} is {meant}\n"
    assert site.run("freeze", "all/library/app:v1").status == 0
    assert site.audit()[-1]["repository"] == str(APP)
    done = site.run("show", "corp/team/app:v1")
    assert (done.status, done.err) == (0, "")
    done = site.run("show", "all/nothing:v1")
    assert done.status == 2
    assert "nothing is here under this name; name the image of a member (corp/nothing, docker.io/library/no" in done.err


def test_another_spelling_keeps_a_name_from_upstreams(site: _Site) -> None:
    """At Docker Hub, `app` means `library/app`: who looks for the image learns which repository is in the way."""
    site.here.repo = Repo("corp", "library/app")
    site.here.image([b"ours"], tag="v1")
    done = site.run("why", "all/app:v1")
    assert done.status == 2
    assert "all/app:v1: nothing is here under this name, and corp/library/app keeps it from upstreams" in done.err


def test_lists_of_a_virtual_registry_are_those_of_its_members(site: _Site) -> None:
    """`ls` shows what there is under all members, by the names of the members."""
    site.here.image([b"ours"], tag="v1")
    site.cache.image([b"theirs"], tag="v1")
    site.cache.image([b"elsewhere"], repo=Repo("ghcr.io", "team/app"), tag="v1")
    done = site.run("ls", "all/**", "--json")
    images = sorted(json.loads(line)["image"] for line in done.out.splitlines())
    assert images == [f"{CORP}:v1", f"{APP}:v1"]


def test_deletions_under_a_virtual_name(site: _Site) -> None:
    """They are for what is hosted; a name that is only cached is purged."""
    site.here.image([b"ours"], tag="v1")
    site.cache.image([b"theirs"], tag="v1")
    done = site.run("delete", "all/team/app:v1")
    assert (done.status, done.out.partition(":")[0]) == (0, "corp/team/app")
    done = site.run("delete", "all/app:v1")
    assert done.status == 2
    assert "docker.io/library/app is not hosted here" in done.err


def test_a_name_is_released_once_nothing_is_there(site: _Site) -> None:
    """Not before; what was tried is audited."""
    root = site.here.image([b"ours"], tag="v1")
    done = site.run("release", "corp/team/app")
    assert done.status == 1
    assert "corp/team/app still has something" in done.err
    assert site.run("delete", "corp/team/app", "--repository", "--yes").status == 0
    assert site.records.is_taken(CORP)
    for digest in list(site.records.linked(CORP)):
        site.records.drop_link(CORP, digest)
    done = site.run("release", "corp/team/app")
    assert (done.status, done.out) == (0, "corp/team/app: released\n"), (done, root)
    assert not site.records.is_taken(CORP)
    done = site.run("release", "corp/team/app")
    assert (done.status, done.out) == (0, "corp/team/app: the name is free\n")
    lines = [line for line in site.audit() if line["action"] == "release"]
    assert [(line["repository"], line["status"]) for line in lines] == [(str(CORP), code) for code in (403, 200, 200)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corp/team/app:v1", "name a repository"),
        ("docker.io/library/app", "is not hosted here"),
        ("all/team/app", "nothing is here under this name"),
    ],
)
def test_what_cannot_be_released(site: _Site, name: str, message: str) -> None:
    """The name of the hosted repository itself is needed."""
    site.cache.image([b"theirs"], tag="v1")
    done = site.run("release", name)
    assert done.status == 2
    assert message in done.err


def test_robots_are_allowed_what_members_have(site: _Site) -> None:
    """A robot that may do something with the virtual name could do nothing."""
    site.cache.image([b"theirs"], tag="v1")
    done = site.run("token", "create", "ci", "--allow", "pull", "all/**", "--expires", "never")
    assert done.status == 2
    assert "--allow: all is virtual; allow it for its members (corp, docker.io)" in done.err


def test_check_names_virtual_registries(site: _Site) -> None:
    """Beside the hosted ones."""
    done = site.run("check")
    assert done.status == 0
    assert "1 upstream, hosts corp, virtual: all, store at" in done.out
