"""Manifests with as many descriptors as 4 MiB hold: bounded, read beside the event loop, and once."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mirror.graph import damage
from mirror.graph.manifests import read_stored
from mirror.oci.attachments import signature_tag
from mirror.oci.digest import Digest
from mirror.oci.manifest import MOST_DESCRIPTORS, OCI_INDEX, OCI_MANIFEST, read_manifest
from mirror.upstream import manifest_answer as upstream
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import live_mirror

_NAME = "library/app"
_AT = f"/v2/{_NAME}/manifests"


def _manifest(count: int, kind: str = OCI_MANIFEST) -> bytes:
    named = "manifests" if kind == OCI_INDEX else "layers"
    item = {"mediaType": "application/x", "size": 1}
    pointers = [{**item, "digest": str(Digest.of(b"%d" % number))} for number in range(count)]
    return json.dumps({"schemaVersion": 2, "mediaType": kind, named: pointers}).encode()


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The thread of each reading of a manifest for a client, from upstream or the disk."""
    threads: list[int] = []

    def noted(read: Callable[..., Any]) -> Callable[..., Any]:
        def reading(*given: Any, **named: Any) -> Any:
            found = read(*given, **named)
            if found is not None:
                threads.append(threading.get_ident())
            return found

        return reading

    monkeypatch.setattr(upstream, "read_manifest", noted(read_manifest))
    monkeypatch.setattr(damage, "read_stored", noted(read_stored))
    return threads


@pytest.mark.parametrize("kind", [OCI_MANIFEST, OCI_INDEX])
async def test_18_too_many_descriptors(kind: str, registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 18: refused, with the number that is allowed."""
    registry.add_manifest(_NAME, _manifest(MOST_DESCRIPTORS + 1, kind), kind, "1.0")
    async with live_mirror(tmp_path, {"docker.io": registry.url}) as mirror:
        answer = await mirror.ask(f"{_AT}/1.0")
        assert (answer.status, "10001 descriptors, more than the 10000 allowed" in answer.body.decode()) == (502, True)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", [OCI_MANIFEST, OCI_INDEX])
async def test_18_a_large_manifest_delays_no_other_request(
    kind: str, signed: bool, registry: FakeRegistry, tmp_path: Path, readers: list[int]
) -> None:
    """Row 18: it is read in a thread, once from upstream and once from the disk, however often it is asked for."""
    digest = registry.add_manifest(_NAME, _manifest(5000, kind), kind, "1.0")
    route = [{"match": "**", "signed_by": [str(_sign(registry, digest, tmp_path))]}] if signed else []
    loop = threading.get_ident()
    for expected in ("from upstream", "from the disk"):
        readers.clear()
        async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
            for method in ("GET", "HEAD") if expected == "from upstream" else ("HEAD", "GET"):
                for reference in ("1.0", digest, digest):
                    answer = await mirror.ask(f"{_AT}/{reference}", method=method)
                    assert answer.status == 200
                    assert answer.headers["Content-Type"] == kind
            beside = [thread for thread in readers if thread != loop]
            # of the signature, which is small
            assert len(readers) - len(beside) <= signed
            assert 1 <= len(beside) <= 1 + signed, expected


def _sign(registry: FakeRegistry, digest: Digest, folder: Path) -> Path:
    """By cosign's tag; returns where the public key is."""
    key = Ed25519PrivateKey.generate()
    path = folder / "key.pub"
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    critical = {"image": {"docker-manifest-digest": str(digest)}, "type": "cosign container image signature"}
    payload = json.dumps({"critical": critical}).encode()
    layer = {
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
        "digest": str(registry.add_blob(_NAME, payload)),
        "size": len(payload),
        "annotations": {"dev.cosignproject.cosign/signature": base64.b64encode(key.sign(payload)).decode()},
    }
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [layer]}).encode()
    registry.add_manifest(_NAME, body, OCI_MANIFEST, signature_tag(digest))
    return path
