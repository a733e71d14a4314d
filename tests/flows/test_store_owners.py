"""Commands on a store that belongs to another user, or that is not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.command import mirror
from tests.support.fake_registry import FakeRegistry
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import eventually
from tests.support.stocked import Stocked, tree, write_settings

_RULE = '[[sync]]\nfrom = "docker.io/library/app"\nevery = "1h"'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Of a store with one image in it."""
    stocked = Stocked(tmp_path / "store")
    stocked.tag("library/app", "v1", stocked.image("library/app", [b"layer"]))
    return write_settings(stocked.root, more=_RULE)


@pytest.mark.parametrize(
    "words",
    [
        ["freeze", "app:v1"],
        ["unfreeze", "app:v1"],
        ["pin", "app:v1"],
        ["unpin", "app:v1"],
        ["purge", "app:v1"],
        ["evict"],
        ["verify"],
        ["misses", "--clear"],
        ["sync", "--now", "docker.io/library/app"],
        ["prefetch", "app:v1"],
    ],
    ids=" ".join,
)
def test_what_writes_is_refused_to_another_user(
    config: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A freeze that root has written the server could not read: it would answer nothing any more, and evict nothing."""
    store = config.with_suffix("")
    before = tree(store)
    monkeypatch.setattr(os, "geteuid", lambda: store.stat().st_uid + 1)
    done = mirror(*words, "--config", config)
    assert (done.status, "run it as that user" in done.err) == (2, True), done
    assert tree(store) == before


def test_a_running_mirror_purges_for_users_of_its_socket(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root, that is: the mirror writes, and as itself."""
    registry.add_image("library/app", "v1", [b"layer"])
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    with MirrorProcess(config) as running:
        running.wait_for_event("admin listening")
        assert running.get("/v2/library/app/manifests/v1")[0] == 200
        monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "store").stat().st_uid + 1)
        # the tag is written down a moment after its answer
        eventually(lambda: mirror("purge", "app:v1", "--config", config).status == 0 or None, "it is purged")


def test_a_running_mirror_pins_for_users_of_its_socket(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pins are its own files, which it can read."""
    config = write_config(tmp_path, {"docker.io": registry.url}, workers=1)
    with MirrorProcess(config) as running:
        running.wait_for_event("admin listening")
        whose = (tmp_path / "store").stat().st_uid
        monkeypatch.setattr(os, "geteuid", lambda: whose + 1)
        name = "docker.io/library/app:v1"
        pinned = mirror("pin", "app:v1", "app:v2", "--reason", "why", "--until", "30d", "--config", config)
        assert (pinned.status, pinned.out.partition("\n")[0]) == (
            0,
            f"{name}: pinned, not here yet; it stays once it was pulled",
        )
        assert {file.stat().st_uid for file in (tmp_path / "store/pins").iterdir()} == {whose}
        listed = mirror("pins", "--json", "--config", config).json
        assert [(one["image"], one["reason"], bool(one["until"])) for one in listed] == [
            (name, "why", True),
            ("docker.io/library/app:v2", "why", True),
        ]
        assert mirror("unpin", "app:v1", "app:v2", "--config", config).status == 0
        assert mirror("pins", "--json", "--config", config).json == []
        # a batch with a mistake in it pins nothing
        assert mirror("pin", "app:v1", "App", "--config", config).status == 2
        assert mirror("pin", "app:v1", "--reason", "x" * 1001, "--config", config).status == 2
        assert mirror("pins", "--json", "--config", config).json == []
    # nobody does it for them any more
    refused = mirror("pin", "app:v1", "--config", config)
    assert (refused.status, "run it as that user" in refused.err) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["ls"],
        ["show", "app:v1"],
        ["history", "app:v1"],
        ["pins"],
        ["evict", "--dry-run"],
        ["jobs"],
        ["misses"],
        ["verify"],
        ["inventory"],
        ["export", "app:v1", "--output", "bundle.tar"],
    ],
    ids=" ".join,
)
def test_a_listing_makes_no_store(tmp_path: Path, words: list[str]) -> None:
    """Nor takes a configuration that names a wrong place for a mirror that has lost everything."""
    config = write_settings(tmp_path / "nowhere", more=_RULE)
    done = mirror(*words, "--config", config)
    assert (done.status, f"no store at {tmp_path / 'nowhere'}" in done.err) == (2, True), done
    assert not (tmp_path / "nowhere").exists()
