"""Rules about content, over HTTP: lists, sizes, digests instead of tags, signatures as cosign makes them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mirror.config import load
from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from tests.support.fake_registry import FakeRegistry, Fault, html, status
from tests.support.live_mirror import LiveMirror, live_mirror

_NAME = "library/app"
_EC, _RSA, _ED = (
    ec.generate_private_key(ec.SECP256R1()),
    rsa.generate_private_key(65537, 2048),
    ed25519.Ed25519PrivateKey.generate(),
)
_STRANGER = ec.generate_private_key(ec.SECP256R1())
_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def _sign(key: _Key, content: bytes) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(content, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(content, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(content)


def _public(directory: Path, key: _Key, name: str = "cosign.pub") -> Path:
    path = directory / name
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def _payload(digest: Digest) -> bytes:
    critical = {
        "identity": {"docker-reference": f"docker.io/{_NAME}"},
        "image": {"docker-manifest-digest": str(digest)},
        "type": "cosign container image signature",
    }
    return json.dumps({"critical": critical, "optional": None}).encode()


def _attach(
    registry: FakeRegistry,
    layers: Sequence[tuple[bytes, str, dict[str, str]]],
    *,
    tag: str | None = None,
    subject: Digest | None = None,
    artifact: str | None = None,
) -> Digest:
    """A manifest that holds these layers: content, media type, annotations."""
    registry.add_blob(_NAME, b"{}")
    body: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": str(Digest.of(b"{}")),
            "size": 2,
        },
        "layers": [
            {
                "mediaType": kind,
                "digest": str(registry.add_blob(_NAME, content)),
                "size": len(content),
                "annotations": notes,
            }
            for content, kind, notes in layers
        ],
    }
    if subject is not None:
        size = len(registry.manifest(_NAME, subject))
        body |= {"subject": {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": size}, "artifactType": artifact}
    return registry.add_manifest(_NAME, json.dumps(body).encode(), OCI_MANIFEST, tag)


def _simple(key: _Key, digest: Digest, *, signs: bytes | None = None) -> tuple[bytes, str, dict[str, str]]:
    payload = _payload(digest)
    signature = base64.b64encode(_sign(key, payload if signs is None else signs)).decode()
    notes = {"dev.cosignproject.cosign/signature": signature}
    return payload, "application/vnd.dev.cosign.simplesigning.v1+json", notes


def _bundle(key: _Key, digest: Digest) -> tuple[bytes, str, dict[str, str]]:
    statement = json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "", "digest": {digest.algorithm: digest.hex}}],
            "predicateType": "https://sigstore.dev/cosign/sign/v1",
            "predicate": {},
        }
    ).encode()
    kind = "application/vnd.in-toto+json"
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(statement), statement)
    envelope = {
        "payload": base64.b64encode(statement).decode(),
        "payloadType": kind,
        "signatures": [{"sig": base64.b64encode(_sign(key, signed)).decode()}],
    }
    media_type = "application/vnd.dev.sigstore.bundle.v0.3+json"
    return json.dumps({"mediaType": media_type, "dsseEnvelope": envelope}).encode(), media_type, {}


def _guarded(directory: Path, *keys: Path, **more: Any) -> dict[str, Any]:
    return {"route": [{"match": "docker.io/**", "signed_by": [str(key) for key in keys], **more}]}


async def _statuses(mirror: LiveMirror, *references: object) -> list[int]:
    """Of GET, which HEAD must agree with."""
    statuses = []
    for reference in references:
        target = f"/v2/{_NAME}/manifests/{reference}"
        head = await mirror.ask(target, method="HEAD")
        answer = await mirror.ask(target)
        assert head.status == answer.status, reference
        if answer.status != 200:
            assert (answer.status, answer.code) == (403, "DENIED")
        statuses.append(answer.status)
    return statuses


@pytest.mark.parametrize("key", [_EC, _RSA, _ED], ids=["ecdsa", "rsa", "ed25519"])
@pytest.mark.parametrize("form", ["tag", "referrer", "bundle"])
async def test_a_signed_image(key: _Key, form: str, registry: FakeRegistry, tmp_path: Path) -> None:
    """By tag and digest, whichever way the signature is attached; an image without one is refused."""
    digest = registry.add_image(_NAME, "1.0", [b"layer"])
    registry.add_image(_NAME, "2.0", [b"unsigned"])
    if form == "tag":
        _attach(registry, [_simple(key, digest)], tag=f"sha256-{digest.hex}.sig")
    elif form == "referrer":
        artifact = "application/vnd.dev.cosign.artifact.sig.v1+json"
        _attach(registry, [_simple(key, digest)], subject=digest, artifact=artifact)
    else:
        artifact = "application/vnd.dev.sigstore.bundle.v0.3+json"
        _attach(registry, [_bundle(key, digest)], subject=digest, artifact=artifact)
    settings = _guarded(tmp_path, _public(tmp_path, _STRANGER, "other.pub"), _public(tmp_path, key))
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **settings) as mirror:
        assert await _statuses(mirror, "1.0", digest, "2.0") == [200, 200, 403]
        refused = await mirror.ask(f"/v2/{_NAME}/manifests/2.0")
        assert "has no signature by" in refused.json["errors"][0]["message"]


async def test_signatures_that_do_not_count(registry: FakeRegistry, tmp_path: Path) -> None:
    """Of another key, of another image, altered, of something else, not base64, or in a layer of another kind."""
    good = registry.add_image(_NAME, "good", [b"good"])
    payload, kind, notes = _simple(_EC, good)
    bad: dict[str, Callable[[Digest], tuple[bytes, str, dict[str, str]]]] = {
        "stranger": lambda digest: _simple(_STRANGER, digest),
        "another": lambda digest: _simple(_EC, good),
        "altered": lambda digest: _simple(_EC, digest, signs=b"x"),
        "nonsense": lambda digest: (_payload(digest), kind, {"dev.cosignproject.cosign/signature": "?"}),
        "nothing": lambda digest: (_payload(digest), kind, {}),
        "kind": lambda digest: (payload, "application/octet-stream", notes),
        "bundle": lambda digest: (b"[]", "application/vnd.dev.sigstore.bundle.v0.3+json", {}),
        "other bundle": lambda digest: _bundle(_EC, good),
        "stranger's bundle": lambda digest: _bundle(_STRANGER, digest),
    }
    for number, layer in enumerate(bad.values()):
        digest = registry.add_image(_NAME, f"bad{number}", [b"%d" % number])
        _attach(registry, [layer(digest)], tag=f"sha256-{digest.hex}.sig")
    settings = _guarded(tmp_path, _public(tmp_path, _EC))
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **settings) as mirror:
        assert await _statuses(mirror, *(f"bad{number}" for number in range(len(bad)))) == [403] * len(bad)


async def test_children_of_a_signed_index(registry: FakeRegistry, tmp_path: Path) -> None:
    """They are pulled by the digests in it, also after a restart; those of an unsigned index are not."""
    children = [registry.add_image(_NAME, None, [layer]) for layer in (b"amd64", b"arm64", b"never asked for")]
    index = registry.add_index(_NAME, "1.0", children)
    loose = registry.add_image(_NAME, None, [b"loose"])
    registry.add_index(_NAME, "2.0", [loose])
    _attach(registry, [_simple(_EC, index)], tag=f"sha256-{index.hex}.sig")
    settings = _guarded(tmp_path, _public(tmp_path, _EC))
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **settings) as mirror:
        assert await _statuses(mirror, children[0]) == [403]
        assert await _statuses(mirror, "1.0", *children[:2], "2.0", loose) == [200, 200, 200, 403, 403]
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **settings) as mirror:
        assert await _statuses(mirror, *children, loose) == [200, 200, 200, 403]


async def test_a_signature_that_comes_later(registry: FakeRegistry, tmp_path: Path) -> None:
    """«Not signed» is asked again after a while; the signatures themselves may be pulled, to be verified by clients."""
    digest = registry.add_image(_NAME, "1.0", [b"layer"])
    settings = _guarded(tmp_path, _public(tmp_path, _EC))
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **settings) as mirror:
        assert await _statuses(mirror, "1.0") == [403]
        signature = _attach(registry, [_simple(_EC, digest)], tag=f"sha256-{digest.hex}.sig")
        mirror.app.router._signatures._now = lambda: 1e12
        mirror.clock.forward(60)
        assert await _statuses(mirror, "1.0", f"sha256-{digest.hex}.sig", signature) == [200, 200, 200]
        # an image is none because it is called like one
        registry.add_image(_NAME, f"sha256-{'0' * 64}.sig", [b"a program"])
        assert await _statuses(mirror, f"sha256-{'0' * 64}.sig") == [403]


@pytest.mark.parametrize("fault", [status(400), status(405), status(406), status(501), html()])
async def test_unsigned_in_a_registry_without_referrers(registry: FakeRegistry, tmp_path: Path, fault: Fault) -> None:
    """It has no signature, and that is 403: however the registry says that it has no API for referrers."""
    registry.add_image(_NAME, "1.0", [b"layer"])
    registry.fail("referrers", fault, times=99)
    settings = _guarded(tmp_path, _public(tmp_path, _EC))
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **settings) as mirror:
        assert await _statuses(mirror, "1.0") == [403]


async def test_a_signature_is_enough_while_upstream_is_down(registry: FakeRegistry, tmp_path: Path) -> None:
    """What was verified once, or lies here with its signature, is served; what cannot be told is no «yes»."""
    digest = registry.add_image(_NAME, "1.0", [b"layer"])
    unsigned = registry.add_image(_NAME, "2.0", [b"unsigned"])
    _attach(registry, [_simple(_EC, digest)], tag=f"sha256-{digest.hex}.sig")
    settings = _guarded(tmp_path, _public(tmp_path, _EC))
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}) as mirror:
        for reference in ("1.0", "2.0"):
            assert (await mirror.ask(f"/v2/{_NAME}/manifests/{reference}")).status == 200
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **settings) as mirror:
        assert await _statuses(mirror, "1.0") == [200]
    async with live_mirror(tmp_path / "store", {"docker.io": "http://127.0.0.1:9"}, **settings) as mirror:
        assert await _statuses(mirror, digest) == [200]
        assert (await mirror.ask(f"/v2/{_NAME}/manifests/{unsigned}")).status == 503


async def test_lists_over_http(registry: FakeRegistry, tmp_path: Path) -> None:
    """Denied by repository, tag and digest: manifests and blobs, with the reason; upstream is not even asked."""
    registry.add_image(_NAME, "1.0", [b"one"])
    bad = registry.add_image(_NAME, "2.0", [b"two"])
    registry.add_image("sketchy/app", "1.0", [b"three"])
    layer = Digest.of(b"two")
    content = {"deny": ["docker.io/sketchy/**", f"docker.io/{_NAME}:3.*", f"**@{bad}", f"**@{layer}"]}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, content=content) as mirror:
        assert await _statuses(mirror, "1.0", "2.0", bad, "3.1") == [200, 403, 403, 403]
        blob = await mirror.ask(f"/v2/{_NAME}/blobs/{layer}")
        assert (blob.status, blob.code) == (403, "DENIED")
        before = len(registry.requests)
        for target in ("manifests/1.0", f"blobs/{Digest.of(b'three')}", f"referrers/{bad}"):
            answer = await mirror.ask(f"/v2/sketchy/app/{target}")
            assert (answer.status, answer.code) == (403, "DENIED")
            assert "docker.io/sketchy/**" in answer.json["errors"][0]["message"]
        assert len(registry.requests) == before
    async with live_mirror(
        tmp_path / "store", {"docker.io": registry.url}, content={"allow": [f"docker.io/{_NAME}"]}
    ) as mirror:
        assert await _statuses(mirror, "1.0") == [200]
        assert (await mirror.ask("/v2/sketchy/app/manifests/1.0")).status == 403


async def test_digests_instead_of_tags(registry: FakeRegistry, tmp_path: Path) -> None:
    """A tag is refused, its digest is not."""
    digest = registry.add_image(_NAME, "1.0", [b"one"])
    settings: dict[str, Any] = {"route": [{"match": "docker.io/**", "require_digest": True}]}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **settings) as mirror:
        assert await _statuses(mirror, "1.0", digest) == [403, 200]


async def test_images_that_are_too_large(registry: FakeRegistry, tmp_path: Path) -> None:
    """Refused when the manifest is asked for, before a layer is."""
    registry.add_image(_NAME, "small", [b"x" * 50])
    registry.add_image(_NAME, "large", [b"x" * 2000])
    settings: dict[str, Any] = {"route": [{"match": "docker.io/**", "max_size": "1kB"}]}
    async with live_mirror(tmp_path / "store", {"docker.io": registry.url}, **settings) as mirror:
        for tag, status in (("small", 200), ("large", 403)):
            assert (await mirror.ask(f"/v2/{_NAME}/manifests/{tag}")).status == status


def test_mistakes_in_the_settings(tmp_path: Path) -> None:
    """Patterns that are none, sizes that are none, keys that are not there or none."""
    (tmp_path / "none.pub").write_text("nothing")
    file = tmp_path / "mirror.toml"
    file.write_text(
        f"""
        [[route]]
        match = "**"
        signed_by = ["{tmp_path}/none.pub", "{tmp_path}/missing.pub"]
        """
    )
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert caught.value.mistakes == (
        f"route[1].signed_by: {tmp_path}/none.pub: not a public key in PEM",
        f"route[1].signed_by: {tmp_path}/missing.pub: No such file or directory",
    )
    file.write_text('[content]\ndeny = ["a b"]\n[[route]]\nmatch = "**"\nmax_size = "80%"\n')
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert {one.partition(": ")[0] for one in caught.value.mistakes} == {"content.deny[1]", "route[1].max_size"}
