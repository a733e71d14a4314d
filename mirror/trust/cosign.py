"""Reads and verifies the signatures that cosign makes with a key.

Two forms, both attached to an image by its digest:

    simple signing   a layer is the payload, a JSON document with the image's digest; its annotation holds the signature
    sigstore bundle  a layer is a JSON document that holds a DSSE envelope, whose in-toto statement names the digest

Certificates and transparency logs are ignored: the operator configures the keys. A signature that does not verify, is
by another key or is for another digest counts as none.

Clients may pull a manifest of signatures in order to verify them, and some clients unpack every layer whatever its
media type is. So each layer of such a manifest must be a document and nothing else (`is_only_document`): it has the
fields of its form, each once, and is no tar. A JSON text can be a tar at the same time.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from mirror.errors import ConfigError, DigestInvalid, reason_of
from mirror.oci.digest import Digest
from mirror.oci.manifest import DOCKER_MANIFEST, OCI_MANIFEST, Descriptor, Manifest
from mirror.oci.strict_json import read_json

_SIMPLE: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
#: The version is `.v0.3` or `;version=0.1` (sigstore's protobuf-specs, sigstore_bundle.proto, "media_type").
_BUNDLE: Final = re.compile(r"application/vnd\.dev\.sigstore\.bundle(\.v\d+(\.\d+)*)?\+json(;version=\d+(\.\d+)*)?")
_ATTESTATION: Final = "application/vnd.dsse.envelope.v1+json"
_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
#: Size in bytes of the largest payload or bundle that is read.
LARGEST: Final = 1 << 20

#: Signatures that an envelope may have: each may have to be verified with each key.
_MOST_SIGNATURES: Final = 50

#: The fields of each form. Fields of free content (`optional`, certificates, log entries) are not checked inside:
#: `_is_tar` finds out if their content makes the whole document a tar.
_SIMPLE_FIELDS: Final = frozenset({"critical", "optional"})
_CRITICAL_FIELDS: Final = frozenset({"identity", "image", "type"})
_ENVELOPE_FIELDS: Final = frozenset({"payload", "payloadType", "signatures"})
_SIGNATURE_FIELDS: Final = frozenset({"keyid", "sig", "cert"})
_BUNDLE_FIELDS: Final = frozenset({"mediaType", "verificationMaterial", "dsseEnvelope", "messageSignature"})

_TAR_BLOCK: Final = 512
_TAR_CHECKSUM: Final = slice(148, 156)
_OCTAL: Final = re.compile(rb"[ \t\r\n]*([0-7]+)")

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


def read_key(path: Path) -> PublicKey:
    """Blocking: returns the public key of a PEM file. Raises `ConfigError`."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError([f"signed_by: {path}: {reason_of(error)}"]) from error
    except ValueError as error:
        raise ConfigError([f"signed_by: {path}: not a public key in PEM"]) from error
    if not isinstance(key, PublicKey):
        raise ConfigError([f"signed_by: {path}: neither an ECDSA, an RSA nor an Ed25519 key"])
    return key


def signed_layers(manifest: Manifest) -> list[Descriptor]:
    """Returns the layers of a manifest whose media type is that of signatures and which are small enough to be read."""
    return [
        layer
        for layer in manifest.blobs
        if layer.size <= LARGEST and (layer.media_type == _SIMPLE or _BUNDLE.fullmatch(layer.media_type))
    ]


def signature_layers(manifest: Manifest) -> tuple[Descriptor, ...]:
    """Returns the layers of an image manifest if all have the media type of a signature or attestation; otherwise none.

    The media type proves nothing: podman unpacks layers whatever their media type is.
    """
    if manifest.media_type not in (OCI_MANIFEST, DOCKER_MANIFEST):
        return ()
    layers = manifest.blobs[1:] if manifest.has_config else manifest.blobs
    return layers if all(_has_signature_type(layer) for layer in layers) else ()


def _has_signature_type(layer: Descriptor) -> bool:
    """True for the media types of signatures and attestations, if the layer is small enough to be read."""
    if layer.size > LARGEST:
        return False
    return layer.media_type in (_SIMPLE, _ATTESTATION) or _BUNDLE.fullmatch(layer.media_type) is not None


# ------------------------------------------------------------------------------------------ statements of documents


@dataclass(frozen=True, slots=True)
class Statement:
    """A signature or attestation: the images that it is about, the signed bytes, and the signatures of these bytes."""

    images: frozenset[Digest]
    signed: bytes
    signatures: tuple[bytes, ...]

    def is_by(self, keys: Iterable[PublicKey]) -> bool:
        """True if one of the keys has made one of the signatures."""
        return any(_verifies(key, signature, self.signed) for key in keys for signature in self.signatures)


def read_statement(layer: Descriptor, content: bytes) -> Statement | None:
    """Returns the statement in the content of a layer; None if it is no signature or attestation."""
    try:
        document = read_json(content)
        if layer.media_type == _SIMPLE:
            return _simple_statement(layer, content, document)
        return _envelope_statement(document if layer.media_type == _ATTESTATION else document["dsseEnvelope"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _simple_statement(layer: Descriptor, content: bytes, document: Mapping[str, Any]) -> Statement:
    critical = document["critical"]
    if critical["type"] != "cosign container image signature":
        raise ValueError("a payload of another kind")
    signature = base64.b64decode(layer.annotations.get(_SIGNATURE, ""), validate=True)
    return Statement(_digests([critical["image"]["docker-manifest-digest"]]), content, (signature,))


def _envelope_statement(envelope: Mapping[str, Any]) -> Statement:
    payload, kind = base64.b64decode(envelope["payload"], validate=True), envelope["payloadType"].encode()
    subjects = read_json(payload)["subject"]
    images = _digests(f"{name}:{value}" for subject in subjects for name, value in subject["digest"].items())
    # DSSE's pre-authentication encoding: the signed bytes have one reading only
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    if len(envelope["signatures"]) > _MOST_SIGNATURES:
        raise ValueError(f"more than {_MOST_SIGNATURES} signatures")
    signatures = [base64.b64decode(each["sig"], validate=True) for each in envelope["signatures"]]
    return Statement(images, signed, tuple(signatures))


def _digests(texts: Iterable[str]) -> frozenset[Digest]:
    """Returns the texts that are digests of content. Others (commits, older algorithms) cannot name an image."""
    digests = set()
    for text in texts:
        with suppress(DigestInvalid):
            digests.add(Digest.parse(text))
    return frozenset(digests)


def _verifies(key: PublicKey, signature: bytes, content: bytes) -> bool:
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


# ------------------------------------------------------------------------------------------ a document and nothing else


def is_only_document(layer: Descriptor, content: bytes) -> bool:
    """True if the content has only the fields of the form that the layer's media type names, and no client can unpack
    it.

    JSON is UTF-8 text without control characters (RFC 8259), so it is no compressed stream and no file system. It could
    still be a tar, so that is checked.
    """
    try:
        document = read_json(content, fields_once=True)
    except ValueError:
        return False
    return _has_only_known_fields(layer, document) and not _is_tar(content)


def _has_only_known_fields(layer: Descriptor, document: object) -> bool:
    if layer.media_type == _SIMPLE:
        return _is_object_of(document, _SIMPLE_FIELDS) and _is_object_of(document.get("critical"), _CRITICAL_FIELDS)
    if layer.media_type == _ATTESTATION:
        return _is_envelope(document)
    if not _is_object_of(document, _BUNDLE_FIELDS):
        return False
    return "dsseEnvelope" not in document or _is_envelope(document["dsseEnvelope"])


def _is_envelope(envelope: object) -> bool:
    if not _is_object_of(envelope, _ENVELOPE_FIELDS):
        return False
    signatures = envelope.get("signatures")
    return isinstance(signatures, list) and all(_is_object_of(each, _SIGNATURE_FIELDS) for each in signatures)


def _is_object_of(value: object, fields: frozenset[str]) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and value.keys() <= fields


def _is_tar(content: bytes) -> bool:
    """True if any block of the content is the header of a tar: some readers skip other blocks before it.

    A header is recognized by its checksum alone: the headers of the seventh edition of Unix have no magic number.
    """
    return any(_is_tar_header(content[at : at + _TAR_BLOCK]) for at in range(0, len(content), _TAR_BLOCK))


def _is_tar_header(block: bytes) -> bool:
    if (checksum := _OCTAL.match(block[_TAR_CHECKSUM])) is None:
        return False
    # the checksum field itself counts as spaces; some readers sum up signed bytes
    counted = block[: _TAR_CHECKSUM.start] + b" " * 8 + block[_TAR_CHECKSUM.stop :]
    unsigned = sum(counted)
    signed = unsigned - 256 * sum(byte > 127 for byte in counted)
    return int(checksum[1], 8) in (unsigned, signed)
