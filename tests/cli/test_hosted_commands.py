"""Commands about images that this mirror hosts, which are not cached and have no upstream."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mirror.bundles.inventory import Inventory
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted_records import LinkState
from mirror.store.hosted.blob_names import HostedNames
from mirror.store.local.layout import Layout
from tests.support.command import mirror
from tests.support.here import Here
from tests.support.hosted_here import HostedHere

_APP = Repo("corp", "team/app")
_CONFIG = """
offline = false
[store]
root = "{root}"
[[hosted]]
name = "corp"
{more}
[[upstream]]
name = "docker.io"
url = "http://127.0.0.1:9"
[[route]]
match = "**"
minimum_age = "300d"
minimum_age_new_tags = "refuse"
"""


class _Site:
    def __init__(self, folder: Path, more: str = "") -> None:
        self.config = folder / "mirror.toml"
        self.config.write_text(_CONFIG.format(root=folder / "store", more=more))
        self.here = Here.at(folder / "store")
        self.root = self.here.image([b"layer"], repo=_APP, tag="v1")
        self.cached = self.here.image([b"other"], tag="v1")

    def run(self, *words: str) -> str:
        done = mirror(*words, "--config", self.config)
        assert done.status == 0, done
        return done.out

    def json(self, *words: str) -> Any:
        """What a command prints; it may fail."""
        return mirror(*words, "--json", "--config", self.config).json

    def refused(self, *words: str) -> str:
        """The message of a command that fails."""
        done = mirror(*words, "--config", self.config)
        assert done.status in (1, 2), done
        return done.err


@pytest.fixture
def site(tmp_path: Path) -> _Site:
    """A mirror with one hosted image and one that is cached; none of them runs."""
    return _Site(tmp_path)


def test_lists_and_details_say_what_is_hosted(site: _Site) -> None:
    """By the name without a dot as well; a cached image looks as before."""
    listed = [json.loads(line) for line in site.run("ls", "--json").splitlines()]
    assert {entry["image"]: entry["hosted"] for entry in listed} == {
        "corp/team/app:v1": True,
        "docker.io/library/app:v1": False,
    }
    assert "hosted" in site.run("ls", "corp/**")
    assert "hosted" not in site.run("ls", "app")
    shown = site.run("show", "corp/team/app:v1")
    assert "pushed:" in shown
    assert "fetched:" not in shown
    assert "fetched:" in site.run("show", "app:v1")
    assert json.loads(site.run("show", "corp/team/app:v1", "--json"))["hosted"]


def test_check_says_what_is_hosted(site: _Site) -> None:
    """And that nobody may use it without a rule."""
    done = mirror("check", "--config", site.config)
    assert done.status == 0
    assert "1 upstream, hosts corp, store at" in done.out
    assert "no [[access.rule]] allows anybody to pull or push" in done.err


def test_a_tag_whose_manifest_is_gone_is_not_there(site: _Site) -> None:
    """A deletion that was interrupted between the manifest and its tags."""
    site.here.catalog.drop_manifest(_APP, site.root.digest)
    assert "is not here" in site.refused("show", "corp/team/app:v1")
    assert site.run("ls", "corp/**", "--json") == ""


def test_only_hosted_repositories_are_read_under_hosted_names(site: _Site) -> None:
    """A cached repository is not said to be complete because a hosted one has the bytes: it fetches what it lacks."""
    layout = Layout(site.config.parent / "store")
    for blob in (site.root.digest, Digest.of(b"layer"), Digest.of(b'{"os": "linux", "architecture": "amd64"}')):
        HostedNames(layout).adopt(blob)
    site.here.image([b"layer"], tag="same")
    for info in list(site.here.store.walk()):
        site.here.store.delete(info.digest)
    listed = [json.loads(line) for line in site.run("ls", "--json").splitlines()]
    assert [(entry["image"], entry["complete"]) for entry in listed] == [("corp/team/app:v1", True)]
    assert "complete" in site.run("history", "corp/team/app:v1")
    assert "corp/team/app:v1" in site.run("why", str(Digest.of(b"layer")))


def test_why_names_no_upstream(site: _Site) -> None:
    """Neither routes nor an upstream concern it; what is missing can only be pushed."""
    said = site.run("why", "corp/team/app:v1")
    assert "corp is hosted here" in said
    assert "served from here, to callers whom an access rule allows to pull" in said
    assert "minimum_age" not in said
    [explained] = json.loads(site.run("why", "corp/team/app:v1", "--json"))
    assert explained["route"]["hosted"]
    assert explained["route"]["urls"] == []
    assert explained["fresh_until"] is None
    assert "was not pushed, or was deleted" in site.run("why", "corp/team/app:v2")
    layer = str(Digest.of(b"layer"))
    assert "if the blob was pushed to this repository or mounted there" in site.run("why", layer)
    site.here.store.delete(Digest.of(b"layer"))
    assert "push the image again" in site.run("why", "corp/team/app:v1")


def test_what_is_for_cached_images_only_is_refused(site: _Site) -> None:
    """With what to do instead; nothing changes."""
    assert "hosted here, not cached" in site.refused("purge", "corp/team/app:v1")
    assert "need no pin: corp/team/app:v1" in site.refused("pin", "app:v1", "corp/team/app:v1")
    assert json.loads(site.run("pins", "--json")) == []
    assert site.here.catalog.get_tag(_APP, "v1")


def test_a_hosted_tag_is_frozen_where_it_is(site: _Site) -> None:
    """It moves by pushes only, so no freeze makes it answer something else; `minimum_age` does not concern it."""
    assert f"answers {site.root.digest}" in site.run("history", "corp/team/app:v1")
    assert "push the image under that tag first" in site.refused(
        "freeze", "corp/team/app:v1", "--at", str(Digest.of(b"x"))
    )
    assert "is not here" in site.refused("freeze", "corp/team/app:v2")
    assert json.loads(site.run("freezes", "--json")) == []
    said = site.run("freeze", "corp/team/app:v1", "--at", str(site.root.digest))
    assert "pushes and deletions of it are refused" in said
    [frozen] = json.loads(site.run("freezes", "--json"))
    assert (frozen["image"], frozen["digest"]) == ("corp/team/app:v1", str(site.root.digest))
    assert "can be moved again" in site.run("unfreeze", "corp/team/app:v1")


def test_verify_hashes_what_is_hosted(tmp_path: Path) -> None:
    """All of it, or one image; what is damaged is set aside, and only a push brings it back."""
    site = _Site(tmp_path)
    hosted = HostedHere(tmp_path / "store")
    hosted.repo = Repo("corp", "own")
    hosted.image([b"only here"], tag="v1")
    assert site.json("verify", "corp/own:v1")["blobs"] == 3
    everything = site.json("verify", "--no-repair")
    assert everything["blobs"] == 3 + 4  # the cache has four more, and the config under its own name
    file = Path(Layout(tmp_path / "store").hosted_blob(Digest.of(b"only here")))
    file.chmod(0o600)
    file.write_bytes(b"ONLY HERE")
    done = mirror("verify", "corp/own:v1", "--config", site.config)
    assert done.status == 1
    assert f"damaged and not repaired, set aside: {Digest.of(b'only here')}" in done.out
    assert "push the image again" in site.run("why", "corp/own:v1")


def test_a_hosted_image_without_its_manifest_is_listed(site: _Site) -> None:
    """It is not the same as an image that nobody has pushed: only a push repairs it."""
    site.here.store.delete(site.root.digest)
    assert "corp/team/app:v1" in site.run("ls", "--incomplete")
    said = site.run("why", "corp/team/app:v1")
    assert "its manifest is lost, or damaged and set aside" in said


def test_a_hosted_image_goes_into_a_bundle(tmp_path: Path) -> None:
    """Whole, and under its name; the inventory lists it."""
    site = _Site(tmp_path)
    hosted = HostedHere(tmp_path / "store")
    hosted.repo = Repo("corp", "own")
    hosted.image([b"only here"], tag="v1")
    written = site.json("export", "corp/own:v1", "-o", str(tmp_path / "bundle.tar"))
    assert (written["images"], written["blobs"]) == (["corp/own:v1"], 3)
    assert "corp/own:v1" in site.run("inventory")
    bundle = str(tmp_path / "bundle.tar")
    (tmp_path / "other").mkdir()
    other = _Site(tmp_path / "other", 'quota = "1MB"')
    assert other.json("import", bundle)["images"] == ["corp/own:v1"]
    assert other.json("show", "corp/own:v1")["complete"]
    assert HostedHere(tmp_path / "other/store").is_here(b"only here")
    link = HostedHere(tmp_path / "other/store").records.link(hosted.repo, Digest.of(b"only here"))
    assert link
    assert link.record.state is LinkState.LINKED
    # of the new image, the bundle has only what the other site lacks
    inventory = tmp_path / "inventory.json"
    inventory.write_bytes(Inventory((), {Digest.of(b"only here"): len(b"only here")}).to_bytes())
    hosted.image([b"only here", b"newer"], tag="v1")
    assert site.json("export", "corp/own:v1", "-o", bundle, "--since", str(inventory))["left_out"]["blobs"] == 1
    [usage] = other.json("status")["hosted"]
    assert (usage["scope"], usage["quota"]) == ("corp", 1_000_000)
    assert usage["bytes"] > len(b"only here")
    assert "hosted:    corp has " in other.run("status")
    assert list(other.json("import", bundle)["moved"]) == ["corp/own:v1"]


def test_what_is_imported_for_a_hosted_repository_is_not_in_the_cache(tmp_path: Path) -> None:
    """There, an upstream could name its digest and have it served. What a cached image needs is in both places."""
    site = _Site(tmp_path)
    hosted = HostedHere(tmp_path / "store")
    hosted.repo = Repo("corp", "own")
    hosted.image([b"only hosted", b"in both"], tag="v1")
    site.here.image([b"in both", b"only cached"], tag="v2")
    bundle = tmp_path / "bundle.tar"
    site.json("export", "corp/own:v1", "library/app:v2", "-o", str(bundle))
    (tmp_path / "other").mkdir()
    other = _Site(tmp_path / "other")
    assert sorted(other.json("import", str(bundle))["images"]) == ["corp/own:v1", "docker.io/library/app:v2"]
    there, layout = HostedHere(tmp_path / "other/store"), Layout(tmp_path / "other/store")
    cached = {info.digest for info in other.here.store.walk()}
    for content, is_cached, is_hosted in (
        (b"only hosted", False, True),
        (b"in both", True, True),
        (b"only cached", True, False),
    ):
        assert (Digest.of(content) in cached) is is_cached, content
        assert there.is_here(content) is is_hosted, content
    root = there.catalog.get_tag(hosted.repo, "v1")
    assert root
    assert root.digest not in cached
    assert [*Path(layout.uploads).iterdir()] == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('repositories = ["team/*"]', "corp/own:v1: the registry corp does not allow repositories named own"),
        ('quota = "100B"', "corp/own:v1: "),
    ],
)
def test_an_import_keeps_to_the_limits_of_the_registry(tmp_path: Path, more: str, said: str) -> None:
    """To the names that it allows, and to its quota."""
    site = _Site(tmp_path)
    hosted = HostedHere(tmp_path / "store")
    hosted.repo = Repo("corp", "own")
    hosted.image([b"only here"], tag="v1")
    bundle = str(tmp_path / "bundle.tar")
    site.json("export", "corp/own:v1", "-o", bundle)
    (tmp_path / "other").mkdir()
    other = _Site(tmp_path / "other", more)
    assert said in other.refused("import", bundle)
    assert other.run("ls", "corp/own", "--json") == ""
