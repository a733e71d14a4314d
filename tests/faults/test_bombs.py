"""Row 82: what is compressed passes as it is. Nothing in the mirror ever inflates what others have sent."""

from __future__ import annotations

import bz2
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mirror.oci.attachments import signature_tag
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from tests.support.command import mirror as command
from tests.support.fake_registry import FakeRegistry, gzipped
from tests.support.live_mirror import LiveMirror, live_mirror
from tests.support.stocked import Stocked, write_settings

_TAG = "/v2/library/app/manifests/v1"
#: Bytes that the bomb would become.
_INFLATED = 256 << 20


def _bomb() -> bytes:
    """A gzip stream a thousandth as long as what is in it."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    piece = bytes(1 << 20)
    return b"".join([*(packer.compress(piece) for _ in range(_INFLATED // len(piece))), packer.flush()])


BOMB = _bomb()
_DIGEST = Digest.of(BOMB)
_AT = f"/v2/library/app/blobs/{_DIGEST}"


@pytest.fixture
def inflated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Whatever of Python's libraries inflates is noted here, and fails; at the end nothing may stand in it."""
    called: list[str] = []

    def refuse(name: str) -> Callable[..., Any]:
        def refused(*_: object, **__: object) -> Any:
            called.append(name)
            raise AssertionError(f"{name}: something is inflated")

        return refused

    for module, names in (
        (zlib, ("decompress", "decompressobj")),
        (bz2, ("decompress", "BZ2Decompressor")),
        (lzma, ("decompress", "LZMADecompressor")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, refuse(f"{module.__name__}.{name}"))
    yield called
    assert not called


async def test_82_a_layer_that_is_a_bomb(registry: FakeRegistry, mirror: LiveMirror, inflated: list[str]) -> None:
    """Row 82: cold, warm, in parts, and with every encoding accepted: the very bytes, and as many on disk."""
    registry.add_image("library/app", "v1", [BOMB])
    assert (await mirror.ask(_TAG)).status == 200
    for _ in range(2):
        answer = await mirror.ask(_AT, headers={"Accept-Encoding": "gzip, deflate, br, zstd"})
        assert answer.body == BOMB
        assert "Content-Encoding" not in answer.headers
        await mirror.landed(_DIGEST)
    part = await mirror.ask(_AT, headers={"Range": "bytes=10-20", "Accept-Encoding": "gzip"})
    assert part.body == BOMB[10:21]
    assert mirror.blob_file(_DIGEST).stat().st_size == len(BOMB)
    assert not inflated


async def test_82_what_upstream_says_is_encoded(registry: FakeRegistry, mirror: LiveMirror) -> None:
    """Row 82: a coding that something on the way has added is undone, and the bomb in it stays packed."""
    registry.add_image("library/app", "v1", [BOMB])
    assert (await mirror.ask(_TAG)).status == 200
    registry.fail("blobs", gzipped, times=10)
    assert (await mirror.ask(_AT)).body == BOMB
    await mirror.landed(_DIGEST)
    assert mirror.blob_file(_DIGEST).stat().st_size == len(BOMB)


@pytest.mark.parametrize("target", ["/v2/", "/token", "/livez", "/v2/library/app/blobs/uploads/"])
async def test_82_what_a_client_says_is_encoded(
    registry: FakeRegistry, tmp_path: Path, inflated: list[str], target: str
) -> None:
    """Row 82: the body of a request is not inflated either, that of the token endpoint included."""
    token = {"name": "ci", "token": "a-token-that-is-long-enough-to-be-one"}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, access={"token": [token]}) as mirror:
        for encoding in (b"gzip", b"deflate"):
            head = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: %s\r\n" % (
                target.encode(),
                encoding,
            )
            received = await mirror.raw(head + b"Content-Length: %d\r\n\r\n" % len(BOMB), BOMB)
            assert received.startswith(b"HTTP/1.1 "), received[:200]
            assert not received.startswith(b"HTTP/1.1 5"), received[:200]
    assert not inflated


async def test_82_prefetch_and_signatures(registry: FakeRegistry, tmp_path: Path, inflated: list[str]) -> None:
    """Row 82: layers that are fetched ahead, and layers that should be signatures, are not inflated: what is no
    signature as it stands is none.
    """
    key = tmp_path / "key.pub"
    public = Ed25519PrivateKey.generate().public_key()
    key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    root = registry.add_image("library/app", "v1", [BOMB])
    signed = registry.add_image("library/signed", "v1", [b"x"])
    kind = "application/vnd.dev.cosign.simplesigning.v1+json"
    layer = {"mediaType": kind, "digest": str(registry.add_blob("library/signed", BOMB)), "size": len(BOMB)}
    config = {**layer, "mediaType": "application/vnd.oci.image.config.v1+json"}
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}
    registry.add_manifest("library/signed", json.dumps(manifest).encode(), OCI_MANIFEST, signature_tag(signed))
    assert len(BOMB) < 1 << 20, "small enough to be read as a signature"
    routes = [
        {"match": "docker.io/library/signed", "signed_by": [str(key)]},
        {"match": "docker.io/**", "prefetch": True},
    ]
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=routes) as mirror:
        assert (await mirror.ask(_TAG)).headers["Docker-Content-Digest"] == str(root)
        await mirror.landed(_DIGEST)
        assert (await mirror.ask("/v2/library/signed/manifests/v1")).status == 403
        assert registry.count("blobs", "GET") >= 2
    assert not inflated


def test_82_export_import_and_verify(tmp_path: Path, inflated: list[str]) -> None:
    """Row 82: a bundle carries a bomb as it is, and what reads every byte of a store again reads it as it is."""
    connected, isolated = Stocked(tmp_path / "connected"), Stocked(tmp_path / "isolated")
    connected.tag("library/app", "v1", connected.image("library/app", [BOMB]))
    there, here, bundle = write_settings(connected.root), write_settings(isolated.root), tmp_path / "site.tar"
    for words in (
        ("export", "docker.io/library/app:v1", "-o", bundle, "-c", there),
        ("import", bundle, "-c", here),
        ("verify", "-c", here),
    ):
        done = command(*words)
        assert done.status == 0, done
    assert isolated.has(BOMB)
    assert bundle.stat().st_size < 2 * len(BOMB) + (1 << 20)
    assert not inflated
