"""Names of a virtual registry, while they are pushed for the first time and workers are killed."""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from tests.support.fake_registry import FakeRegistry
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE
from tests.support.push_client import image

_MORE: Final = """
[[hosted]]
name = "corp"
[[virtual]]
name = "all"
members = ["docker.io", "corp"]
writable = "corp"
[[access.rule]]
effect = "allow"
callers = ["*"]
actions = ["pull", "push", "overwrite"]
"""
_NAMES: Final = 20
_CONFIG: Final = b"{}"


class _Reader(threading.Thread):
    """Asks for the tags of all names, one after the other, on new connections; theirs after ours is a mistake."""

    def __init__(self, mirror: MirrorProcess, acknowledged: set[str]) -> None:
        super().__init__()
        self.mirror = mirror
        self.acknowledged = acknowledged
        self.mistakes: list[str] = []
        self.ours: set[str] = set()
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            for number in range(_NAMES):
                name = f"team/app{number}"
                is_ours = name in self.acknowledged or name in self.ours
                with suppress(OSError, http.client.HTTPException):
                    status, headers, _ = self.mirror.get(f"/v2/all/{name}/manifests/v1")
                    ours = status == 200 and headers["Docker-Content-Digest"] == str(_digest(name))
                    self.ours |= {name} if ours else set()
                    if is_ours and not ours and status not in (500, 503):
                        self.mistakes.append(f"{name}: {status} after it was ours")


def _manifest(name: str) -> bytes:
    return image(_CONFIG, name.encode(), annotations={"name": name})


def _digest(name: str) -> Digest:
    return Digest.of(_manifest(name))


def _send(mirror: MirrorProcess, method: str, target: str, body: bytes, kind: str) -> int:
    """The status; 0 if the worker died."""
    connection = http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE)
    try:
        connection.request(method, target, body=body, headers={"Content-Type": kind})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _push(mirror: MirrorProcess, name: str) -> None:
    """Until it is acknowledged; each request is repeated if its worker dies."""
    octets = "application/octet-stream"
    uploads = [
        ("POST", f"/v2/all/{name}/blobs/uploads/?digest={Digest.of(one)}", one) for one in (_CONFIG, name.encode())
    ]
    for method, target, body in (*uploads, ("PUT", f"/v2/all/{name}/manifests/v1", _manifest(name))):
        for _ in range(20):
            status = _send(mirror, method, target, body, OCI_MANIFEST if method == "PUT" else octets)
            if status:
                break
        assert status == 201


def test_145_a_name_that_was_pushed_is_ours_in_every_worker(tmp_path: Path) -> None:
    """From the 201 on, and from the first answer with ours on, nobody gets the public image again, whichever worker
    answers, and though workers die in the middle of pushes.
    """
    with FakeRegistry() as hub:
        for number in range(_NAMES):
            hub.add_image(f"team/app{number}", "v1", [b"theirs"])
        with MirrorProcess(write_config(tmp_path, {"docker.io": hub.url}, more=_MORE)) as mirror:
            acknowledged: set[str] = set()
            readers = [_Reader(mirror, acknowledged) for _ in range(3)]
            for reader in readers:
                reader.start()
            for number in range(_NAMES):
                name = f"team/app{number}"
                if number % 5 == 3:
                    threading.Timer(0.02, mirror.kill_worker, [mirror.wait_for_workers(2)[0]]).start()
                _push(mirror, name)
                acknowledged.add(name)
            mirror.wait_for_workers(2)
            for number in range(_NAMES):
                status, headers, _ = mirror.get(f"/v2/all/team/app{number}/manifests/v1")
                assert (status, headers["Docker-Content-Digest"]) == (200, str(_digest(f"team/app{number}")))
            for reader in readers:
                reader.stop.set()
            for reader in readers:
                reader.join()
            assert [mistake for reader in readers for mistake in reader.mistakes] == []
            assert [name for reader in readers for name in reader.ours], "nobody read while it was pushed"
            tags = json.loads(mirror.get("/v2/all/team/app0/tags/list")[2])
            assert tags == {"name": "team/app0", "tags": ["v1"]}
