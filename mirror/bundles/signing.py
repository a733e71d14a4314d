"""Signatures of inventories: Ed25519 (RFC 8032) over the exact bytes, detached, 64 raw bytes.

Keys are PEM files (PKCS 8, SubjectPublicKeyInfo), so that other tools can create keys and check signatures too:

    openssl genpkey -algorithm ed25519 -out site.key && openssl pkey -in site.key -pubout -out site.pub
    openssl pkeyutl -verify -rawin -pubin -inkey site.pub -in mirror-inventory.json -sigfile mirror-inventory.json.sig
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from mirror.errors import BundleError

SIGNATURE_BYTES: Final = 64


def make_key_pair() -> tuple[bytes, bytes]:
    """A new private key, without a password, and its public key, both as PEM."""
    key = Ed25519PrivateKey.generate()
    return (
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    )


def read_private_key(pem: bytes) -> Ed25519PrivateKey:
    """Parse a private key. Raises `BundleError` for anything but an Ed25519 key without a password."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BundleError("the key to sign with is not a PEM private key without a password") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise BundleError("the key to sign with is not an Ed25519 key")
    return key


def read_public_key(pem: bytes) -> Ed25519PublicKey:
    """Parse a public key. Raises `BundleError` for anything but an Ed25519 public key."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BundleError("the key to verify with is not a PEM public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise BundleError("the key to verify with is not an Ed25519 key")
    return key


def sign(content: bytes, key: Ed25519PrivateKey) -> bytes:
    """The signature of these bytes. Ed25519 is deterministic: the same bytes and key give the same signature."""
    return key.sign(content)


def check_signature(content: bytes, signature: bytes, key: Ed25519PublicKey) -> None:
    """Raise `BundleError` unless the key's owner signed exactly these bytes."""
    try:
        key.verify(signature, content)
    except InvalidSignature as error:
        raise BundleError("the signature is not that of this inventory by this key") from error
