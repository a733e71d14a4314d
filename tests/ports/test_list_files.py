"""Lists of images read out of real files and folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirror.prefetch.documents import ListMalformed
from mirror.prefetch.list_files import compose_file, kubernetes, plain_file
from mirror.prefetch.lists import LARGEST


def _pod(image: str) -> str:
    return f"kind: Pod\nspec: {{containers: [{{image: '{image}'}}]}}\n"


def test_a_folder_of_manifests(tmp_path: Path) -> None:
    """All files in order, also in subfolders; other files and hidden ones are skipped."""
    (tmp_path / "sub/deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "b.yaml").write_text(_pod("b:1"))
    (tmp_path / "a.YML").write_text(_pod("a:1"))
    (tmp_path / "sub/deep/c.json").write_text('{"kind": "Pod", "containers": [{"image": "c:1"}]}')
    (tmp_path / "sub/linked.yaml").symlink_to(tmp_path / "b.yaml")
    for name in ("README.md", ".hidden.yaml", ".git/x.yaml"):
        (tmp_path / name).write_text(_pod("no:1"))
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "gone.yaml").symlink_to(tmp_path / "nowhere")
    listed = kubernetes(tmp_path)
    assert [(image.text, image.where.removeprefix(f"{tmp_path}/")) for image in listed.images] == [
        ("a:1", "a.YML:2"),
        ("b:1", "b.yaml:2"),
        ("b:1", "sub/linked.yaml:2"),
        ("c:1", "sub/deep/c.json"),
    ]
    assert not listed.warnings


def test_templates_and_huge_files_in_a_folder(tmp_path: Path) -> None:
    """Warnings name them, and the rest is read; given alone, a huge file is refused."""
    (tmp_path / "a.yaml").write_text("{{ if x }}\nkind: Pod\n{{ end }}\n")
    (tmp_path / "b.yaml").write_text(_pod("b:1"))
    huge = tmp_path / "c.json"
    with huge.open("wb") as file:
        file.truncate(LARGEST + 1)
    listed = kubernetes(tmp_path)
    assert [image.text for image in listed.images] == ["b:1"]
    assert [Path(warning.partition(":")[0]).name for warning in listed.warnings] == ["a.yaml", "c.json"]
    with pytest.raises(ListMalformed, match=r"c\.json: more than 32 MiB"):
        kubernetes(huge)


def test_a_broken_file_in_a_folder(tmp_path: Path) -> None:
    """A file that should be YAML may name any image: the whole folder is refused, with file and line."""
    (tmp_path / "a.yaml").write_text("a: b: c\n")
    with pytest.raises(ListMalformed, match=r"a\.yaml:1: not YAML"):
        kubernetes(tmp_path)


@pytest.mark.parametrize("read", [plain_file, kubernetes, lambda path: compose_file(path, {})])
def test_unreadable_files(read: object, tmp_path: Path) -> None:
    """Absent, or not text: the error names the file, and the line if there is one."""
    assert callable(read)
    with pytest.raises(ListMalformed, match=r"absent: No such file or directory$"):
        read(tmp_path / "absent")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"alpine\n\xff\xfe\n")
    with pytest.raises(ListMalformed, match=r"binary\.yaml:2: not text in UTF-8$"):
        read(binary)


def test_a_folder_is_not_a_plain_list(tmp_path: Path) -> None:
    """The error says so."""
    with pytest.raises(ListMalformed, match="Is a directory"):
        plain_file(tmp_path)


def test_a_byte_order_mark(tmp_path: Path) -> None:
    """Some editors write one; it is no part of the first image."""
    path = tmp_path / "images.txt"
    path.write_bytes("\ufeffalpine\n".encode())
    assert [image.text for image in plain_file(path).images] == ["alpine"]


def test_variables_beside_a_compose_file(tmp_path: Path) -> None:
    """`.env` lies beside it; the environment goes before."""
    path = tmp_path / "compose.yaml"
    path.write_text("services: {a: {image: 'a:${A:-0}'}, b: {image: 'b:${B:-0}'}, c: {image: 'c:${C:-0}'}}")
    (tmp_path / ".env").write_text("A=1\nB=2\n")
    assert [image.text for image in compose_file(path, {"B": "3"}).images] == ["a:1", "b:3", "c:0"]
