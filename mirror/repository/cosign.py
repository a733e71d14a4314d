"""Signatures as cosign makes them with a key, read and verified.

Two forms, both attached to an image by its digest:

    simple signing   a layer is the payload, a JSON document with the image's digest; its annotation holds the signature
    sigstore bundle  a layer is a JSON document that holds a DSSE envelope, whose in-toto statement names the digest

What certificates and transparency logs would add is not looked at: the keys are the operator's own. A signature that
does not verify, of another key or for another digest, counts as none.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from mirror.errors import ConfigError
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest

__all__ = [
    "LARGEST",
    "PublicKey",
    "is_by",
    "is_document",
    "is_signed",
    "looks_like_signature",
    "read_key",
    "signature_tag",
    "signed_layers",
]

_SIMPLE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
_BUNDLE: Final = "application/vnd.dev.sigstore.bundle"
_ATTESTATION: Final = "application/vnd.dsse.envelope.v1+json"
_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
#: Bytes of a payload or bundle that are read.
LARGEST: Final = 1 << 20

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


def read_key(path: Path) -> PublicKey:
    """Blocking: a PEM file. Raises `ConfigError`."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError([f"signed_by: {path}: {error.strerror}"]) from error
    except ValueError as error:
        raise ConfigError([f"signed_by: {path}: not a public key in PEM"]) from error
    if not isinstance(key, PublicKey):
        raise ConfigError([f"signed_by: {path}: neither an ECDSA, an RSA nor an Ed25519 key"])
    return key


def signature_tag(digest: Digest) -> str:
    """Where cosign puts signatures in registries without referrers."""
    return f"{digest.algorithm}-{digest.hex}.sig"


def signed_layers(manifest: Manifest) -> list[Descriptor]:
    """The layers of a manifest that hold signatures."""
    return [
        layer
        for layer in manifest.blobs
        if layer.size <= LARGEST and (layer.media_type == _SIMPLE or layer.media_type.startswith(_BUNDLE))
    ]


def looks_like_signature(manifest: Manifest) -> tuple[Descriptor, ...]:
    """The layers of what says that it is nothing but signatures and attestations; none where it does not.

    It proves nothing: podman unpacks layers whatever they are called.
    """
    layers = manifest.blobs[1:] if manifest.has_config else manifest.blobs
    return layers if all(_is_ours(layer) for layer in layers) else ()


def _is_ours(layer: Descriptor) -> bool:
    known = layer.media_type in (_SIMPLE, _ATTESTATION) or layer.media_type.startswith(_BUNDLE)
    return known and layer.size <= LARGEST


def is_document(content: bytes) -> bool:
    """Whether these bytes are a JSON object, and so no layer."""
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        return False


def is_by(layer: Descriptor, content: bytes, keys: Iterable[PublicKey]) -> bool:
    """Whether this layer holds a signature or attestation by one of the keys, of whatever image."""
    try:
        if layer.media_type == _SIMPLE:
            signature = base64.b64decode(layer.annotations.get(_SIGNATURE, ""), validate=True)
            return _verifies(keys, signature, content)
        document = json.loads(content)
        envelope = document if layer.media_type == _ATTESTATION else document["dsseEnvelope"]
        return _envelope_is_by(envelope, keys)
    except (ValueError, binascii.Error, RecursionError, KeyError, TypeError, AttributeError):
        return False


def is_signed(layer: Descriptor, content: bytes, digest: Digest, keys: Iterable[PublicKey]) -> bool:
    """Whether this layer holds a signature of `digest` by one of the keys."""
    try:
        if layer.media_type == _SIMPLE:
            signature = base64.b64decode(layer.annotations.get(_SIGNATURE, ""), validate=True)
            return _names_simply(content, digest) and _verifies(keys, signature, content)
        return _bundle_signs(json.loads(content), digest, keys)
    except (ValueError, binascii.Error, RecursionError, KeyError, TypeError, AttributeError):
        return False


def _names_simply(content: bytes, digest: Digest) -> bool:
    critical = json.loads(content)["critical"]
    named: object = critical["image"]["docker-manifest-digest"]
    return named == str(digest) and critical["type"] == "cosign container image signature"


def _bundle_signs(bundle: Mapping[str, Any], digest: Digest, keys: Iterable[PublicKey]) -> bool:
    envelope = bundle["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"], validate=True))
    named = any(one["digest"].get(digest.algorithm) == digest.hex for one in statement["subject"])
    return named and _envelope_is_by(envelope, keys)


def _envelope_is_by(envelope: Mapping[str, Any], keys: Iterable[PublicKey]) -> bool:
    payload, kind = base64.b64decode(envelope["payload"], validate=True), envelope["payloadType"]
    # DSSE's pre-authentication encoding: what is signed cannot be read in two ways
    signed = b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)
    known = tuple(keys)
    return any(_verifies(known, base64.b64decode(one["sig"], validate=True), signed) for one in envelope["signatures"])


def _verifies(keys: Iterable[PublicKey], signature: bytes, content: bytes) -> bool:
    return any(_verifies_by(key, signature, content) for key in keys)


def _verifies_by(key: PublicKey, signature: bytes, content: bytes) -> bool:
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, content, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, content)
    except InvalidSignature:
        return False
    return True
