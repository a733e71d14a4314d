"""Small records of the whole mirror, and pins as one kind of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.records import Pin
from mirror.store.layout import Layout
from mirror.store.local import LocalStore
from mirror.store.notes import Notes
from mirror.store.pins import LocalPins

_REPO = Repo("docker.io", "library/app")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of a store that exists."""
    layout = Layout(tmp_path / "store")
    LocalStore(layout)
    return layout


def test_the_life_of_a_note(layout: Layout) -> None:
    """Absent, written, replaced, dropped; keys may hold anything."""
    notes = Notes(layout, "things")
    key = "docker.io/../x y\n\0é"
    assert notes.read(key) is None
    assert list(notes.all()) == []
    assert not notes.drop(key)
    notes.write(key, {"n": 1})
    notes.write(key, {"n": 2})
    notes.write("other", {"n": 3})
    assert notes.read(key) == {"key": key, "n": 2}
    assert sorted(note["n"] for note in Notes(layout, "things").all()) == [2, 3]
    assert notes.drop(key)
    assert notes.read(key) is None
    assert list((layout.root / "ingest").iterdir()) == []


def test_files_that_are_no_notes_are_passed_over(layout: Layout) -> None:
    """Cut, foreign, nested without end, or under a name that is not theirs."""
    notes = Notes(layout, "things")
    notes.write("good", {})
    folder = layout.root / "things"
    [file] = folder.iterdir()
    (folder / "cut.json").write_bytes(file.read_bytes()[:-3])
    (folder / "list.json").write_text("[]")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "copy.json").write_bytes(file.read_bytes())
    (folder / "keyless.json").write_text("{}")
    (folder / "README").write_text("hello")
    assert [note["key"] for note in notes.all()] == ["good"]


def test_pins_survive_as_they_were(layout: Layout) -> None:
    """By tag and by digest, with and without an end; another process sees them."""
    pins = LocalPins(layout)
    tag = Pin(_REPO, "1.0", "the release", 5.0)
    digest = Pin(_REPO, Digest.of(b"x"), "", 6.0, 99.5)
    pins.put(tag)
    pins.put(digest)
    again = LocalPins(layout)
    assert set(again.all()) == {tag, digest}
    assert again.get(_REPO, "1.0") == tag
    assert again.get(_REPO, Digest.of(b"x")) == digest
    assert again.get(_REPO, "2.0") is None
    assert again.drop(_REPO, "1.0")
    assert not again.drop(_REPO, "1.0")
    assert list(pins.all()) == [digest]


def test_a_pin_that_does_not_parse_is_none(layout: Layout) -> None:
    """Notes are files, and files may be edited."""
    good = LocalPins(layout)
    good.put(Pin(_REPO, "1.0", "", 5.0))
    Notes(layout, "pins").write("bad", {"registry": "docker.io", "name": "../..", "reference": "x"})
    assert [pin.reference for pin in good.all()] == ["1.0"]


def test_how_long_a_pin_holds() -> None:
    """Up to its end, or for good."""
    assert Pin(_REPO, "1.0", "", 0.0).holds(1e12)
    assert Pin(_REPO, "1.0", "", 0.0, 10.0).holds(9.9)
    assert not Pin(_REPO, "1.0", "", 0.0, 10.0).holds(10.0)
