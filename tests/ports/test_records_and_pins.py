"""Small records of the whole mirror, and pins as one kind of them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mirror.errors import StoreError
from mirror.oci.reference import Repo
from mirror.policy.records import Pin
from mirror.policy.unreadable_records import record_file_name
from mirror.ports import ABSENT, Pins, Records
from mirror.store.local.blobs import LocalStore
from mirror.store.local.json_records import JsonRecords
from mirror.store.local.layout import Layout
from mirror.store.local.local_records import local_pins
from tests.support.memory_store import MemoryPins
from tests.support.pins_suite import PinsSuite
from tests.support.records_suite import RecordsSuite

_REPO = Repo("docker.io", "library/app")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of a store that exists."""
    layout = Layout(tmp_path / "store")
    LocalStore(layout)
    return layout


class TestJsonRecords(RecordsSuite):
    """A file for each record."""

    @pytest.fixture
    def records(self, layout: Layout) -> Iterator[Records]:
        """None yet. No write leaves a temporary file."""
        yield JsonRecords(layout, "things")
        assert list((layout.root / "ingest").iterdir()) == []

    @pytest.fixture
    def another(self, layout: Layout) -> Records:
        """Another process's view of the same disk."""
        return JsonRecords(layout, "things")


def test_files_that_are_no_records_are_skipped(layout: Layout) -> None:
    """Cut, foreign, nested without end, or under a name that is not theirs."""
    notes = JsonRecords(layout, "things")
    notes.put("good", {})
    folder = layout.root / "things"
    [file] = folder.iterdir()
    (folder / "cut.json").write_bytes(file.read_bytes()[:-3])
    (folder / "list.json").write_text("[]")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "copy.json").write_bytes(file.read_bytes())
    (folder / "keyless.json").write_text("{}")
    (folder / "README").write_text("hello")
    assert [note["key"] for note in notes.all()] == ["good"]


def test_a_damaged_record_counts_as_absent_to_a_writer(layout: Layout) -> None:
    """One who has read None may write; the version of a damaged record is never expected."""
    records = JsonRecords(layout, "things")
    records.put("x", {"n": 1})
    [file] = (layout.root / "things").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert records.versioned("x") is None
    records.put("x", {"n": 2}, expect=ABSENT)
    assert records.get("x") == {"key": "x", "n": 2}


class TestLocalPins(PinsSuite):
    """A file for each pin."""

    @pytest.fixture
    def pins(self, layout: Layout) -> Pins:
        """None yet."""
        return local_pins(layout)

    @pytest.fixture
    def another(self, layout: Layout) -> Pins:
        """Another process's view of the same disk."""
        return local_pins(layout)


class TestMemoryPins(PinsSuite):
    """The model of the other tests."""

    @pytest.fixture
    def pins(self) -> Pins:
        """None yet."""
        return MemoryPins()

    @pytest.fixture
    def another(self, pins: Pins) -> Pins:
        """There is one process only."""
        return pins


def test_a_pin_that_does_not_parse_is_none(layout: Layout) -> None:
    """Notes are files, and files may be edited."""
    good = local_pins(layout)
    good.put(Pin(_REPO, "1.0", "", 5.0))
    JsonRecords(layout, "pins").put("bad", {"registry": "docker.io", "name": "../..", "reference": "x"})
    assert [pin.reference for pin in good.all()] == ["1.0"]


def test_how_long_a_pin_is_active() -> None:
    """Up to its end, or for good."""
    assert Pin(_REPO, "1.0", "", 0.0).is_active(1e12)
    assert Pin(_REPO, "1.0", "", 0.0, 10.0).is_active(9.9)
    assert not Pin(_REPO, "1.0", "", 0.0, 10.0).is_active(10.0)


@pytest.mark.parametrize(
    ("harm", "why", "key_is_left"),
    [
        (lambda file: file.write_bytes(b""), "not a record", False),
        (lambda file: file.write_bytes(bytes(200)), "not a record", False),
        (lambda file: file.write_bytes(b"garbage"), "not a record", False),
        (lambda file: file.write_bytes(b'{"key": "docker.io/library/other 1.0"}'), "not a record", False),
        (lambda file: file.write_bytes(b'{"key": "\\ud800"}'), "not a record", False),
        (lambda file: file.write_bytes(b'{"key": "x' + b"[" * 100_000), "not a record", False),
        (lambda file: file.write_bytes(file.read_bytes()[:60]), "truncated or damaged", True),
        (lambda file: file.write_bytes(file.read_bytes().replace(b'"1.0"', b'"?"')), "not valid", True),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b',"key": "x"}'), "truncated or damaged", True),
        (lambda file: (file.unlink(), file.mkdir()), "Is a directory", False),
        (lambda file: (file.unlink(), file.symlink_to(file)), "symbolic links", False),
        (lambda file: (file.unlink(), file.symlink_to("gone")), "No such file", False),
    ],
    ids=[
        "empty",
        "zeros",
        "garbage",
        "another",
        "surrogate",
        "deep",
        "cut",
        "spoiled",
        "two",
        "folder",
        "loop",
        "dangling",
    ],
)
def test_a_pin_that_cannot_be_read_is_reported(
    layout: Layout, harm: Callable[[Path], object], why: str, key_is_left: bool
) -> None:
    """With its file and why; what it is for is known by its name, and by its text where enough of that is left. The
    other pins are read as ever."""
    pins = local_pins(layout)
    pins.put(Pin(_REPO, "1.0", "", 5.0))
    [file] = (layout.root / "pins").iterdir()
    pins.put(Pin(_REPO, "2.0", "", 5.0))
    harm(file)
    found, [unread] = pins.look()
    assert [pin.reference for pin in found] == [pin.reference for pin in pins.all()] == ["2.0"]
    assert why in unread.why
    assert (unread.kind, unread.file) == ("pins", str(file))
    assert unread.is_about(_REPO, "1.0")
    assert not unread.is_about(_REPO, "2.0")
    assert unread.subject == ((_REPO, "1.0") if key_is_left else None)
    assert str(file) in unread.trouble


def test_files_that_are_no_pins_are_no_damaged_pins_either(layout: Layout) -> None:
    """Copies under other names, notes of people, what an editor leaves."""
    pins = local_pins(layout)
    pins.put(Pin(_REPO, "1.0", "", 5.0))
    [file] = (layout.root / "pins").iterdir()
    for name in ("README", f"{file.stem}.json~", f".{file.name}.swp", "backup.json", f"{file.stem[:-1]}.json"):
        (file.parent / name).write_bytes(b"")
    assert len(pins.look()[0]) == 1
    assert pins.look()[1] == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_pin_that_the_disk_does_not_give(layout: Layout, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """One file is a damaged pin; the folder is an error, because its content is not known."""
    pins = local_pins(layout)
    pins.put(Pin(_REPO, "1.0", "", 5.0))

    def fail(*_: object, **__: object) -> bytes:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        # of a folder that may be listed, but not entered, no file can be looked at
        patch.setattr("mirror.store.local.json_records.os.lstat", fail)
        found, [unread] = pins.look()
        assert found == []
        assert unread.is_about(_REPO, "1.0")
        assert unread.why == os.strerror(number)
    with monkeypatch.context() as patch:
        patch.setattr("mirror.store.local.json_records.os.listdir", fail)
        with pytest.raises(StoreError, match="/pins"):
            pins.look()
        with pytest.raises(StoreError, match="/pins"):
            pins.all()


def test_a_record_that_was_edited_is_read(layout: Layout) -> None:
    """With its fields in another order, as an editor's formatter leaves them."""
    pins = local_pins(layout)
    pins.put(pin := Pin(_REPO, "1.0", "", 5.0))
    [file] = (layout.root / "pins").iterdir()
    file.write_text(json.dumps(dict(reversed(json.loads(file.read_text()).items()))))
    assert pins.look() == ([pin], [])


def test_a_file_in_the_place_of_the_pins(layout: Layout) -> None:
    """It says nothing about pins; no folder at all means that there are none."""
    assert local_pins(layout).look() == ([], [])
    (layout.root / "pins").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        local_pins(layout).look()


def test_names_of_notes_are_those_of_stores_that_are_there() -> None:
    """They must not change: a note under another name would not be found again."""
    assert record_file_name("docker.io/library/app 1.0") == "f242fee81d352d9655447a4f7483df5b"
