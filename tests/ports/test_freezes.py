"""Freezes as files: written whole, seen by every process, and never lost in silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mirror.errors import StoreError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX
from mirror.oci.reference import Repo
from mirror.policy.records import Freeze
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_freezes

_REPO = Repo("docker.io", "library/app")
_FREEZE = Freeze(_REPO, "1.0", Digest.of(b"x"), OCI_INDEX, 1234, "release “café”", 5.25)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of a store that exists."""
    layout = Layout(tmp_path / "store")
    LocalStore(layout)
    return layout


def test_the_life_of_a_freeze(layout: Layout) -> None:
    """Absent, put, replaced, dropped; another process sees each, and other tags are not touched."""
    freezes, again = local_freezes(layout), local_freezes(layout)
    assert freezes.get(_REPO, "1.0") is None
    assert list(freezes.all()) == []
    assert not freezes.drop(_REPO, "1.0")
    freezes.put(_FREEZE)
    assert again.get(_REPO, "1.0") == _FREEZE
    assert again.get(_REPO, "1.1") is None
    assert again.get(Repo("ghcr.io", "library/app"), "1.0") is None
    other = replace(_FREEZE, tag="1.1")
    freezes.put(other)
    freezes.put(replace(_FREEZE, digest=Digest.of(b"y", "sha512")))
    assert {one.digest for one in again.all() if one.tag == "1.0"} == {Digest.of(b"y", "sha512")}
    assert again.drop(_REPO, "1.0")
    assert not freezes.drop(_REPO, "1.0")
    assert list(freezes.all()) == [other]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": "x", "registry": "docker.io", "name": "../.."}'])
def test_a_freeze_that_cannot_be_read_is_not_forgotten(layout: Layout, content: bytes) -> None:
    """It is an error, not a tag that is free to move; made or dropped anew, it is well again."""
    freezes = local_freezes(layout)
    freezes.put(_FREEZE)
    [file] = (layout.root / "freezes").iterdir()
    file.write_bytes(content)
    with pytest.raises(StoreError, match=r"library/app:1\.0 is frozen"):
        freezes.get(_REPO, "1.0")
    assert list(freezes.all()) == []
    found, [unread] = freezes.look()
    assert (list(found), unread.kind, unread.file) == ([], "freezes", str(file))
    assert unread.is_about(_REPO, "1.0")
    freezes.put(_FREEZE)
    assert freezes.look() == ([_FREEZE], [])
    assert freezes.get(_REPO, "1.0") == _FREEZE
    file.write_bytes(content)
    assert freezes.drop(_REPO, "1.0")
    assert freezes.get(_REPO, "1.0") is None


def test_a_freeze_that_may_not_be_read_is_not_forgotten(layout: Layout) -> None:
    """A name that leads nowhere is as good as a failing disk: what is there cannot be told."""
    freezes = local_freezes(layout)
    freezes.put(_FREEZE)
    [file] = (layout.root / "freezes").iterdir()
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(StoreError):
        freezes.get(_REPO, "1.0")
