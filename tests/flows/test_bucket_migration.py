"""A mirror whose images move into a real object store and back, as the page says, while clients push and pull."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.process import eventually
from tests.support.switching_site import Switching

#: Not compressible, and several parts of an upload.
_LARGE = os.urandom(9 << 20)


class Clients:
    """Push one image after the other, until they are refused, or a hundred are pushed."""

    def __init__(self, site: Switching) -> None:
        #: By tag, all that was acknowledged.
        self.pushed: dict[str, bytes] = {}
        self.failed: list[str] = []
        self._site = site
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for number in range(100):
            tag = f"n{number}"
            try:
                manifest = self._site.push("corp/busy", tag, f"layer {number}".encode())
            except AssertionError as refused:
                if "read_only" not in str(refused) and "403" not in str(refused) and "405" not in str(refused):
                    self.failed.append(str(refused))
                return
            except OSError:
                # a worker that was replaced
                continue
            self.pushed[tag] = manifest

    def refused(self) -> None:
        """Returns once the mirror takes no pushes any more."""
        self._thread.join(120)
        assert not self._thread.is_alive()
        assert self.failed == []


def copies(site: Switching) -> list[Path]:
    """The copies of hosted blobs on the disk."""
    return [path for path in (site.before.parent / "store" / "copies").rglob("*") if path.is_file()]


@pytest.fixture
def site(tmp_path: Path, seaweedfs: SeaweedFS) -> Switching:
    """Not started."""
    return Switching(tmp_path, seaweedfs)


def test_134_images_move_into_a_bucket_and_back_while_the_mirror_serves(site: Switching) -> None:
    with site:
        images = {tag: site.push("corp/app", tag, _LARGE + tag.encode()) for tag in ("v1", "v2", "gone")}
        clients = Clients(site)
        # killed in the middle of the bytes
        first = site.migrate("--to-bucket", "--rate", "5MB")
        eventually(lambda: site.keys("hosted/"), "the first blob is in the bucket")
        first.kill()
        assert site.pull("corp/app", "v1") == images["v1"]
        site.passed("--to-bucket")
        assert site.ask("DELETE", "/v2/corp/app/manifests/gone").status == 202
        refused = site.migrate("--to-bucket", "--final")
        assert refused.wait() == 1
        assert "takes pushes to corp" in refused.tail()
        site.set_read_only(True)
        clients.refused()
        assert "the bucket counts now" in site.passed("--to-bucket", "--final")
        assert site.pull("corp/app", "v1") == images["v1"]
        site.stop()

        site.config = site.after
        site.start()
        expect(site, images, clients)
        images["v3"] = site.push("corp/app", "v3", b"pushed into the bucket")
        site.lose_disk()
        expect(site, images, clients)
        # the disk is new: all comes back to it
        site.passed("--to-disk")
        images["v1"] = site.push("corp/app", "v1", b"moved in the bucket")
        site.set_read_only(True)
        assert copies(site)
        assert "the disk counts now" in site.passed("--to-disk", "--final")
        assert not copies(site)
        site.stop()

        site.config = site.before
        site.before.write_text(site.before.read_text().replace("\nread_only = true", ""))
        site.start()
        expect(site, images, clients)
        assert site.push("corp/app", "v4", b"pushed to the disk")


def expect(site: Switching, images: dict[str, bytes], clients: Clients) -> None:
    """All that was acknowledged is there, and nothing that was deleted."""
    for tag in images.keys() - {"gone"}:
        assert site.pull("corp/app", tag) == images[tag]
    assert site.manifest("corp/app", "gone").status == 404
    listed = json.loads(site.ask("GET", "/v2/corp/busy/tags/list").body)["tags"]
    assert set(listed) >= clients.pushed.keys()
    for tag in list(clients.pushed)[-3:]:
        assert site.pull("corp/busy", tag) == clients.pushed[tag]
