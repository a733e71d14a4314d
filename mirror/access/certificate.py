"""Certificates: the identity in a client's certificate, and the validity of our own.

The TLS listener has already verified the client's certificate against the configured authority.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography import x509

from mirror.policy.access_rules import AuthMethod, Identity


def identity_of(certificate: Mapping[str, Any] | None) -> Identity | None:
    """The identity in the result of `ssl.SSLSocket.getpeercert`: the common name is the name, the organisations are the
    groups, as in Kubernetes. None if there is no certificate, or not exactly one common name in it.
    """
    if not certificate:
        return None
    subject: dict[str, list[str]] = {}
    for relative in certificate.get("subject", ()):
        for kind, value in relative:
            subject.setdefault(kind, []).append(value)
    names = subject.get("commonName", [])
    if len(names) != 1 or not names[0]:
        return None
    return Identity(names[0], AuthMethod.CERTIFICATE, frozenset(subject.get("organizationName", ())))


def validity(file: Path) -> tuple[float, float]:
    """The start and end of validity, in epoch seconds, of the certificate that a server with this PEM file presents:
    the first one in it (RFC 5280, 4.1.2.5).

    Blocking. Raises `OSError`, and `ValueError` if the file contains no certificate.
    """
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
