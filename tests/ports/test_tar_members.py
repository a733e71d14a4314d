"""Tars, written and read back: long names, large files, and headers that lie."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.bundles.tar_members import END, Member, check_path, file_header, folder_header, padding, scan
from mirror.errors import BundleError

_LONG = "blobs/sha512/" + "0123456789abcdef" * 8


def _scan(path: Path) -> dict[str, Member]:
    with path.open("rb") as file:
        return scan(file.fileno())


def test_a_name_of_141_characters(tmp_path: Path) -> None:
    """A SHA-512 blob's does not fit into a plain header; tar reads it too."""
    path = tmp_path / "x.tar"
    path.write_bytes(folder_header("blobs") + file_header(_LONG, 3) + b"abc" + padding(3) + END)
    member = _scan(path)[_LONG]
    assert path.read_bytes()[member.offset :][: member.size] == b"abc"
    listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True).stdout
    assert listed.split() == ["blobs/", _LONG]


def test_a_long_name_as_gnu_writes_it(tmp_path: Path) -> None:
    """Other tools write long names in another way."""
    path = tmp_path / "x.tar"
    (tmp_path / _LONG).parent.mkdir(parents=True)
    (tmp_path / _LONG).write_bytes(b"abc")
    subprocess.run(["tar", "--format=gnu", "-cf", path, "-C", tmp_path, "./blobs"], check=True)
    assert _scan(path)[_LONG].size == 3


def test_a_file_of_10_gib(tmp_path: Path) -> None:
    """More than a plain header can say."""
    size = 10 << 30
    path = tmp_path / "x.tar"
    header = file_header("large", size)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)
        file.seek(0, os.SEEK_END)
        file.write(file_header("after", 0) + END)
    assert _scan(path) == {
        "large": Member("large", len(header), size),
        "after": Member("after", len(header) + size + 512, 0),
    }


def test_a_size_beyond_the_file(tmp_path: Path) -> None:
    """Nothing is reserved or read for it."""
    path = tmp_path / "x.tar"
    path.write_bytes(file_header("x", 1 << 50) + END)
    with pytest.raises(BundleError, match="truncated within 'x'"):
        _scan(path)


def test_an_extension_without_a_member(tmp_path: Path) -> None:
    """A name is given, and no member follows."""
    path = tmp_path / "x.tar"
    path.write_bytes(file_header(_LONG, 0)[:1024] + END)
    with pytest.raises(BundleError, match="missing member"):
        _scan(path)


@pytest.mark.parametrize(
    "record", [b"5 x=\n", b"999 path=x\n", b"x path=y\n", b"11 path=\xff\xfe\n", b"0 path=x\n", b"12 size=-1 \n\n"]
)
def test_damaged_extensions(tmp_path: Path, record: bytes) -> None:
    """They end in one error, or are skipped if they do not matter."""
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = tarfile.XHDTYPE, len(record)
    path = tmp_path / "x.tar"
    path.write_bytes(entry.tobuf() + record + padding(len(record)) + file_header("x", 0) + END)
    if record == b"5 x=\n":
        assert _scan(path).keys() == {"x"}
    else:
        with pytest.raises(BundleError):
            _scan(path)


@given(st.binary(max_size=3000))
def test_noise(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Random bytes are refused with one kind of error."""
    path = tmp_path_factory.mktemp("noise") / "x.tar"
    path.write_bytes(content)
    with pytest.raises(BundleError):
        _scan(path)


@given(st.text())
def test_paths_stay_within(name: str) -> None:
    """An accepted path leads nowhere else, and has one meaning."""
    try:
        path = check_path(name)
    except BundleError:
        return
    assert os.path.normpath(f"/root/{path}") == f"/root/{path}".rstrip("/")
    assert path in (name, name.removeprefix("./").removesuffix("/"), "")
