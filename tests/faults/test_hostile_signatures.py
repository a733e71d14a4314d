"""Somebody who may push beside a signed image, against a route that wants signatures."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, Descriptor
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.prefetch.batch import prefetch
from mirror.repository import guarded
from mirror.trust import cosign
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, live_mirror

_NAME = "library/app"
_AT = f"/v2/{_NAME}/manifests"
_SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"
_ATTESTATION = "application/vnd.dsse.envelope.v1+json"
_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_OURS = ec.generate_private_key(ec.SECP256R1())
_THEIRS = ec.generate_private_key(ec.SECP256R1())

_Layer = tuple[str, bytes, dict[str, str]]


def _sign(key: ec.EllipticCurvePrivateKey, content: bytes) -> str:
    return base64.b64encode(key.sign(content, ec.ECDSA(hashes.SHA256()))).decode()


def _simple(key: ec.EllipticCurvePrivateKey, digest: Digest) -> _Layer:
    critical = {"image": {"docker-manifest-digest": str(digest)}, "type": "cosign container image signature"}
    payload = json.dumps({"critical": critical}).encode()
    return _SIMPLE, payload, {"dev.cosignproject.cosign/signature": _sign(key, payload)}


def _attestation(key: ec.EllipticCurvePrivateKey, digest: Digest) -> _Layer:
    statement = json.dumps({"subject": [{"digest": {"sha256": digest.hex}}], "predicate": {}}).encode()
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(statement), statement)
    envelope = {
        "payload": base64.b64encode(statement).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": _sign(key, signed)}],
    }
    return _ATTESTATION, json.dumps(envelope).encode(), {}


def _push(
    registry: FakeRegistry,
    *layers: _Layer,
    tag: str | None = None,
    subject: Digest | None = None,
    sizes: int | None = None,
    config: bytes = b"{}",
) -> Digest:
    """Push a manifest of these layers; `sizes` are the sizes that it states, which may be wrong."""
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": str(registry.add_blob(_NAME, config)),
            "size": len(config),
        },
        "layers": [
            {
                "mediaType": kind,
                "digest": str(registry.add_blob(_NAME, content)),
                "size": len(content) if sizes is None else sizes,
                "annotations": notes,
            }
            for kind, content, notes in layers
        ],
    }
    if subject is not None:
        size = len(registry.manifest(_NAME, subject))
        body["subject"] = {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": size}
    return registry.add_manifest(_NAME, json.dumps(body).encode(), OCI_MANIFEST, tag)


@pytest.fixture
def route(tmp_path: Path) -> list[dict[str, object]]:
    """One that wants signatures by our key."""
    key = tmp_path / "cosign.pub"
    key.write_bytes(_OURS.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return [{"match": "docker.io/**", "signed_by": [str(key)]}]


async def _statuses(mirror: LiveMirror, *references: object) -> list[int]:
    found = []
    for reference in references:
        answers = [await mirror.ask(f"{_AT}/{reference}", method=method) for method in ("HEAD", "GET")]
        assert answers[0].status == answers[1].status
        found.append(answers[1].status)
    return found


def _program() -> tuple[bytes, bytes]:
    """A layer that a runtime unpacks, and the config that goes with it."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("bin/sh"))
    layer = written.getvalue()
    root = {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}
    return layer, json.dumps({"architecture": "amd64", "os": "linux", "rootfs": root}).encode()


@pytest.mark.parametrize("kind", [_SIMPLE, _ATTESTATION, _BUNDLE])
@pytest.mark.parametrize("beside", ["nothing", "their signature", "our signature of another image"])
async def test_a_program_that_calls_itself_a_signature(
    kind: str, beside: str, registry: FakeRegistry, tmp_path: Path, route: list[dict[str, object]]
) -> None:
    """podman unpacks a layer whatever its media type: only a document that our key has signed may be pulled as a
    signature.
    """
    layer, config = _program()
    other = registry.add_image(_NAME, None, [b"other"])
    more = {"nothing": [], "their signature": [_simple(_THEIRS, other)]}.get(beside, [_simple(_OURS, other)])
    digest = _push(registry, *more, (kind, layer, {}), tag="1.0", config=config)
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
        assert await _statuses(mirror, "1.0", digest) == [403, 403]


async def test_what_our_key_has_signed_may_be_pulled(
    registry: FakeRegistry, tmp_path: Path, route: list[dict[str, object]]
) -> None:
    """Signatures and attestations by it, also beside those of others; by others alone they are as good as none."""
    image = registry.add_image(_NAME, "1.0", [b"layer"])
    both = _push(registry, _simple(_THEIRS, image), _simple(_OURS, image), tag=f"sha256-{image.hex}.sig")
    ours = _push(registry, _attestation(_OURS, image), tag=f"sha256-{image.hex}.att")
    theirs = _push(registry, _attestation(_THEIRS, image), subject=image)
    many = _push(registry, *[_simple(_OURS, Digest.of(b"%d" % number)) for number in range(51)])
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
        assert await _statuses(mirror, "1.0", both, ours) == [200] * 3
        assert await _statuses(mirror, f"sha256-{image.hex}.sig", f"sha256-{image.hex}.att") == [200] * 2
        assert await _statuses(mirror, theirs, many) == [403] * 2


def _header(name: bytes, size: int) -> bytes:
    """A tar header of the seventh edition, in printable characters alone."""
    fields = name.ljust(100, b"_") + b"0000755 " + b"0000000 " * 2 + b"%011o %011o " % (size, 0)
    rest = b"0".ljust(512 - 156)
    return fields + b"%06o  " % sum(fields + b" " * 8 + rest) + rest


def _also_a_tar(document: dict[str, Any], put: Callable[[dict[str, Any], str], None]) -> bytes:
    """The same document, with a text that makes its first block and a later one headers of a tar.

    `put` places the text, which must be the first of the document's JSON.
    """
    mark = "MARK"
    put(document, mark)
    before, _, after = json.dumps(document).partition(mark)
    assert len(before) < 100, "the text does not begin in the name of the first file"
    program = b"exit".ljust(512, b"_")
    inner = program + _header(b"usr/bin/program", 512) + program + _header(b"rest", 512 * (len(after) // 512 + 1))
    text = _header(before.encode(), 512)[len(before) :] + inner
    made = before.encode() + text + after.encode()
    return made.ljust(-(-len(made) // 512) * 512)


def _more_field(document: dict[str, Any], text: str) -> None:
    kept = dict(document)
    document.clear()
    document.update({"more": text}, **kept)


def _key_identity(document: dict[str, Any], text: str) -> None:
    kept = dict(document)
    document.clear()
    document.update({"signatures": [{"keyid": text, **kept.pop("signatures")[0]}]}, **kept)


@pytest.mark.parametrize("put", [_more_field, _key_identity])
@pytest.mark.parametrize("attached", ["by subject", "by tag", "to nothing"])
@pytest.mark.parametrize("about", ["this image", "another image"])
async def test_an_attestation_that_is_a_tar_as_well(
    put: Callable[[dict[str, Any], str], None],
    attached: str,
    about: str,
    registry: FakeRegistry,
    tmp_path: Path,
    route: list[dict[str, object]],
) -> None:
    """A genuine attestation in a JSON text that podman would unpack: its manifest cannot be pulled by any name."""
    image = registry.add_image(_NAME, None, [b"layer"])
    other = registry.add_image(_NAME, None, [b"other"])
    kind, genuine, notes = _attestation(_OURS, image if about == "this image" else other)
    layer = _also_a_tar(json.loads(genuine), put)
    assert json.loads(layer)["payload"] == json.loads(genuine)["payload"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        assert "usr/bin/program" in "".join(archive.getnames())
    tag = f"sha256-{image.hex}.att" if attached == "by tag" else "1.0"
    subject = image if attached == "by subject" else None
    digest = _push(registry, (kind, layer, notes), tag=tag, subject=subject, config=_program()[1])
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
        assert await _statuses(mirror, tag, digest) == [403, 403]


@pytest.mark.parametrize("change", ["a field more", "a field twice", "UTF-16", "text behind it"])
async def test_an_attestation_that_is_not_only_one(
    change: str, registry: FakeRegistry, tmp_path: Path, route: list[dict[str, object]]
) -> None:
    """A document with more than the known fields is no attestation, although our key has signed the known fields."""
    image = registry.add_image(_NAME, None, [b"layer"])
    kind, genuine, notes = _attestation(_OURS, image)
    layer = {
        "a field more": genuine[:-1] + b', "more": 1}',
        "a field twice": genuine[:-1] + b', "payloadType": "application/vnd.in-toto+json"}',
        "UTF-16": genuine.decode().encode("utf-16"),
        "text behind it": genuine + b" more",
    }[change]
    digest = _push(registry, (kind, layer, notes), subject=image)
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
        assert await _statuses(mirror, digest) == [403]


@pytest.mark.parametrize("make", [_simple, _attestation])
async def test_a_signature_of_another_image(
    make: Callable[[ec.EllipticCurvePrivateKey, Digest], _Layer],
    registry: FakeRegistry,
    tmp_path: Path,
    route: list[dict[str, object]],
) -> None:
    """Given is what our key has signed about the image that it is attached to, by `subject` or by the tag."""
    image = registry.add_image(_NAME, None, [b"layer"])
    other = registry.add_image(_NAME, None, [b"other"])
    ours = make(_OURS, other)
    wrong = _push(registry, ours, subject=image)
    right = _push(registry, ours, subject=other)
    loose = _push(registry, ours, tag="1.0")
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
        assert await _statuses(mirror, wrong, loose, "1.0", right) == [403, 403, 403, 200]
    _push(registry, ours, tag=f"sha256-{image.hex}.att")
    async with live_mirror(tmp_path / "again", {"docker.io": registry.url}, route=route) as mirror:
        assert await _statuses(mirror, f"sha256-{image.hex}.att", loose) == [403, 403]
    _push(registry, ours, tag=f"sha256-{other.hex}.att")
    async with live_mirror(tmp_path / "at last", {"docker.io": registry.url}, route=route) as mirror:
        assert await _statuses(mirror, loose, f"sha256-{other.hex}.att") == [200, 200]


def _lies(registry: FakeRegistry, image: Digest) -> None:
    _push(registry, (_SIMPLE, b"x" * 5000, {}), subject=image, sizes=100)


def _lies_at_the_tag(registry: FakeRegistry, image: Digest) -> None:
    _push(registry, (_SIMPLE, b"x" * 50, {}), tag=f"sha256-{image.hex}.sig", sizes=10_000)


def _is_large(registry: FakeRegistry, image: Digest) -> None:
    _push(registry, (_SIMPLE, b"x" * (2 << 20), {}), subject=image, sizes=100)


def _contradicts_itself(registry: FakeRegistry, image: Digest) -> None:
    registry.add_manifest(_NAME, b'{"manifests": [], "layers": []}', OCI_MANIFEST, f"sha256-{image.hex}.sig")


def _is_nested(registry: FakeRegistry, image: Digest) -> None:
    deep = b'{"critical":' * 3000 + b"1" + b"}" * 3000
    _push(registry, (_SIMPLE, deep, {}), (_BUNDLE, b"[" * 5000, {}), subject=image)


@pytest.mark.parametrize("attach", [_lies, _lies_at_the_tag, _is_large, _contradicts_itself, _is_nested])
async def test_a_bad_signature_beside_a_good_one(
    attach: Callable[[FakeRegistry, Digest], None],
    registry: FakeRegistry,
    tmp_path: Path,
    route: list[dict[str, object]],
) -> None:
    """Another signature that somebody attaches, of any kind, does not block the image."""
    image = registry.add_image(_NAME, "1.0", [b"layer"])
    attach(registry, image)
    _push(registry, _simple(_OURS, image), subject=image)
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
        assert await _statuses(mirror, "1.0") == [200]


async def test_signatures_without_end(registry: FakeRegistry, tmp_path: Path, route: list[dict[str, object]]) -> None:
    """An image with thousands of them costs a bounded number of fetches, and is refused."""
    image = registry.add_image(_NAME, "1.0", [b"layer"])
    for number in range(6):
        _push(registry, *[(_SIMPLE, b"%d %d" % (number, layer), {}) for layer in range(60)], subject=image)
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
        assert await _statuses(mirror, "1.0") == [403]
    assert registry.count("blobs") == 100


async def test_a_document_that_takes_long(
    registry: FakeRegistry, tmp_path: Path, route: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with thousands of signatures, of which ours is the last, is none; what is read is read in threads."""
    threads: list[int] = []

    def read(layer: Descriptor, content: bytes) -> cosign.Statement | None:
        threads.append(threading.get_ident())
        return cosign.read_statement(layer, content)

    monkeypatch.setattr(guarded, "read_statement", read)
    image = registry.add_image(_NAME, "1.0", [b"layer"])
    kind, content, notes = _attestation(_OURS, image)
    envelope = json.loads(content)
    theirs = json.loads(_attestation(_THEIRS, image)[1])["signatures"]
    envelope["signatures"] = theirs * 5000 + envelope["signatures"]
    many = _push(registry, (kind, json.dumps(envelope).encode(), notes), subject=image)
    ours = _push(registry, _attestation(_OURS, image), subject=image)
    _push(registry, _simple(_OURS, image), subject=image)
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
        assert await _statuses(mirror, many, ours, "1.0") == [403, 200, 200]
    assert threads
    assert threading.get_ident() not in threads


async def test_a_manifest_as_a_blob(registry: FakeRegistry, tmp_path: Path, route: list[dict[str, object]]) -> None:
    """A refused manifest that is requested as a blob is sent as plain bytes, not as a manifest."""
    digest = registry.add_image(_NAME, "1.0", [b"layer"])
    registry.add_blob(_NAME, registry.manifest(_NAME, digest))
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
        assert await _statuses(mirror, digest) == [403]
        answer = await mirror.ask(f"/v2/{_NAME}/blobs/{digest}")
        assert answer.headers["Content-Type"] == "application/octet-stream"


async def test_a_prefetch_of_a_signed_image(
    registry: FakeRegistry, tmp_path: Path, route: list[dict[str, object]]
) -> None:
    """Attachments of others, which may not be pulled here, are skipped; the image and our signature are fetched."""
    image = registry.add_image(_NAME, "1.0", [b"layer"])
    ours = _push(registry, _simple(_OURS, image), subject=image)
    theirs = _push(registry, _attestation(_THEIRS, image), subject=image)
    program = _push(registry, (_SIMPLE, _program()[0], {}), subject=image)
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, route=route) as mirror:
        wanted = [Image(Repo("docker.io", _NAME), tag="1.0")]
        done = await prefetch(mirror.app.router.guarded, wanted, referrers=True)
        assert done.ok, done.failures
        [brought] = done.images.values()
        assert {image, ours} <= set(brought.blobs)
        assert not {theirs, program} & set(brought.blobs)
