"""The clients of the loops themselves: they must not blame a mirror that is right, nor miss that it is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import pytest

from mirror.oci.digest import Digest
from tests.support.live_mirror import noise
from tests.support.scripted import Close, Request, Script, Scripted, head, reply
from tests.support.stubborn import Stubborn

_BLOB: Final = noise(70_000)
_DIGEST: Final = str(Digest.of(_BLOB))
_MANIFEST: Final = json.dumps({"config": {"digest": _DIGEST, "size": len(_BLOB)}, "layers": []}).encode()


@pytest.fixture
def server() -> Iterator[Scripted]:
    """A registry with one image, whose blob a test gives the answers for."""
    with Scripted() as server:
        for reference in ("v1", str(Digest.of(_MANIFEST))):
            manifest = reply(200, _MANIFEST, {"Docker-Content-Digest": str(Digest.of(_MANIFEST))})
            server.on(f"/v2/app/manifests/{reference}", manifest)
        yield server


def _pull(server: Scripted) -> Stubborn:
    """One pull at least, or a client that has given up."""
    port = int(server.url.rpartition(":")[2])
    with Stubborn(port, [("app", "v1")], clients=1, tries=3, pause=0.0) as clients:
        clients.wait_for_pulls(1)
    return clients


def _chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


@pytest.mark.parametrize("first", [len(_BLOB), 30_000], ids=["all", "a_part"])
def test_an_answer_that_breaks_off_after_the_last_byte(server: Scripted, first: int) -> None:
    """A worker that is killed before the end of the last chunk has sent the whole blob: nothing is left that a range
    could ask for. After fewer bytes a range asks for the rest.
    """

    def blob(request: Request) -> Script:
        if not request.header("Range"):
            return [head(200, {"Transfer-Encoding": "chunked"}), _chunk(_BLOB[:first]), Close()]
        if request.start >= len(_BLOB):
            return reply(416, b"", {"Content-Range": f"bytes */{len(_BLOB)}"})
        place = f"bytes {request.start}-{len(_BLOB) - 1}/{len(_BLOB)}"
        return reply(206, _BLOB[request.start :], {"Content-Range": place})

    server.on(f"/v2/app/blobs/{_DIGEST}", blob)
    clients = _pull(server)
    assert (clients.failed, clients.corrupt) == ([], [])
    assert clients.pulled
    assert clients.broken >= clients.pulled
    assert clients.statuses[416] == 0


def test_wrong_bytes_in_an_answer_that_breaks_off_after_the_last_one(server: Scripted) -> None:
    """As many bytes as the manifest says, but others, are seen."""
    chunked = head(200, {"Transfer-Encoding": "chunked"})
    server.on(f"/v2/app/blobs/{_DIGEST}", chunked, _chunk(_BLOB[::-1]), Close())
    assert _pull(server).corrupt
