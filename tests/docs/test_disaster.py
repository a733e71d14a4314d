"""What the page about disasters says is done: disks are wiped and buckets emptied, and all images are pulled again."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Final

import pytest

from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.images import sha256
from tests.support.mirror_process import MirrorProcess
from tests.support.process import ProgramFailed, run
from tests.support.switching_site import Switching

_PAGE: Final = Path(__file__).resolve().parents[2] / "docs/disaster.md"
_BLOCK: Final = re.compile(r"^ *<!-- runnable: ([a-z ]+) -->\n *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)

#: What the tests do of it.
_PARTS: Final = {
    "backing up",
    "restoring the disk",
    "checking the disk",
    "copying the bucket",
    "losing the disk",
    "serving the copy",
    "filling a new bucket",
    "one image",
}


class Operator:
    """Somebody with the page and a shell on the machine of a mirror."""

    def __init__(self, site: Switching, folder: Path) -> None:
        self._folder = folder
        self.site = site
        self.root = folder / "store"
        self.copy = folder / "backup"
        self._blocks = dict(_BLOCK.findall(_PAGE.read_text()))
        assert self._blocks.keys() == _PARTS
        assert len(_PARTS) == _PAGE.read_text().count("<!-- runnable"), "a mark without a block, or used twice"
        programs = folder / "programs"
        programs.mkdir()
        (programs / "mirror").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mirror "$@"\n')
        (programs / "mirror").chmod(0o755)
        tree = str(Path(__file__).resolve().parents[2])
        self._env = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": tree}
        self._folder = folder

    def does(self, part: str, **changes: str) -> str:
        """What the page says there, with the folders and files of this test."""
        text = textwrap.dedent(self._blocks.pop(part))
        words = {
            "/var/lib/mirror": str(self.root),
            "/backup/mirror": str(self.copy),
            "mirror.toml": self.site.config.name,
            **changes,
        }
        for old, new in words.items():
            text = text.replace(old, new)
        script = f"cd {self._folder}\nset -euo pipefail\n{text}"
        return run(["bash", "-c", script], env=self._env).decode()

    def serves_copy(self) -> Path:
        """The configuration that the page describes there."""
        assert self._blocks.pop("serving the copy") == "mirror serve --config copy.toml\n"
        return self.of_copy()

    def of_copy(self) -> Path:
        """A configuration without the bucket, whose store is the copy."""
        file = self._folder / "copy.toml"
        file.write_text(self.site.before.read_text().replace(json.dumps(str(self.root)), json.dumps(str(self.copy))))
        return file

    def lose_disk(self) -> None:
        """The mirror has ended."""
        shutil.rmtree(self.root)

    def lose_bucket(self) -> None:
        """All objects of the prefix."""
        keys = self.site.keys()
        for key in keys:
            self.site.delete_object(key)
        assert self.site.keys() == []


@pytest.fixture
def operator(tmp_path: Path, seaweedfs: SeaweedFS) -> Operator:
    """Of a mirror that does not run yet."""
    return Operator(Switching(tmp_path, seaweedfs), tmp_path)


def push(site: Switching, *tags: str) -> dict[str, bytes]:
    """Images by tag, their manifests."""
    return {tag: site.push("corp/app", tag, f"a layer of {tag}".encode() * 1000) for tag in tags}


def expect(site: Switching, images: dict[str, bytes]) -> None:
    """Each can be pulled whole, and something else be pushed."""
    assert {tag: site.pull("corp/app", tag) for tag in images} == images
    site.push("corp/check", "v1", b"pushed after the disaster")


def test_the_disk_is_lost_and_the_backup_is_not(operator: Operator) -> None:
    site = operator.site
    with site:
        images = push(site, "v1", "v2")
        operator.does("backing up", **{"mirror backup": f"mirror backup --config {site.config.name}"})
        site.stop()
        operator.lose_disk()
        operator.does("restoring the disk")
        site.start()
        said = operator.does("checking the disk")
        assert "corp/app" in said
        expect(site, images)


def test_the_disk_is_lost_and_the_bucket_is_not(operator: Operator) -> None:
    site = operator.site
    site.config = site.after
    with site:
        images = push(site, "v1", "v2")
        site.stop()
        operator.lose_disk()
        operator.does("losing the disk")
        site.start()
        expect(site, images)


def test_the_bucket_is_lost_and_the_copy_is_not(operator: Operator) -> None:
    """Served at once; moved into a bucket again, with what was pushed meanwhile."""
    site = operator.site
    site.config = site.after
    with site:
        images = push(site, "v1", "v2")
        operator.does("copying the bucket")
        site.stop()
        operator.lose_bucket()
        site.config = operator.serves_copy()
        site.start()
        expect(site, images)
        images |= push(site, "v3")
        site.stop()
        site.config = site.after
        operator.does("filling a new bucket")
        site.start()
        expect(site, images)


def test_one_image_is_taken_from_the_copy(operator: Operator) -> None:
    """Its layer is gone in the bucket, and on no disk."""
    site = operator.site
    site.config = site.after
    with site:
        images = push(site, "v1", "v2")
        run([sys.executable, "-m", "mirror", "migrate", "--to-disk", "--root", operator.copy, "--config", site.after])
        layer = sha256(b"a layer of v1" * 1000)
        [key] = site.keys(f"hosted/sha256/{layer[7:9]}/{layer[7:]}")
        site.delete_object(key)
        site.stop()
        operator.lose_disk()
        site.start()
        assert site.ask("GET", f"/v2/corp/app/blobs/{layer}").status != 200
        with MirrorProcess(operator.of_copy()) as other:
            operator.does("one image", **{"127.0.0.1:5002": other.address, "127.0.0.1:5000": site.mirror.address})
        expect(site, images)


def test_a_bucket_without_its_identity_gets_it_back(operator: Operator) -> None:
    """As the table says: no mirror starts, until it is written with the id that the disk knows."""
    site = operator.site
    site.config = site.after
    with site:
        images = push(site, "v1")
        site.stop()
        site.delete_object("mirror.json")
        with pytest.raises(ProgramFailed):
            site.start()
        known = json.loads((operator.root / "bucket.json").read_text())["id"]
        site.put_object("mirror.json", json.dumps({"layout": 1, "id": known}).encode())
        site.start()
        expect(site, images)
