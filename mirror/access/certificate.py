"""Certificates: who a client's says it is, and until when our own is good.

The TLS listener has verified the client's against the configured authority by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography import x509

from mirror.policy.access import AuthMethod, Identity

__all__ = ["identity_of", "validity"]


def identity_of(certificate: Mapping[str, Any] | None) -> Identity | None:
    """Out of what `ssl.SSLSocket.getpeercert` gives: the common name is the name, organisations are the groups, as in
    Kubernetes. None where there is no certificate, or no common name in it.
    """
    if not certificate:
        return None
    found: dict[str, list[str]] = {}
    for relative in certificate.get("subject", ()):
        for kind, value in relative:
            found.setdefault(kind, []).append(value)
    names = found.get("commonName", [])
    if len(names) != 1 or not names[0]:
        return None
    return Identity(names[0], AuthMethod.CERTIFICATE, frozenset(found.get("organizationName", ())))


def validity(file: Path) -> tuple[float, float]:
    """From when until when, in epoch seconds, the certificate is valid that is shown with this PEM file: its first
    (RFC 5280, 4.1.2.5).

    Blocking. Raises `OSError`, and `ValueError` where there is none in it.
    """
    shown = x509.load_pem_x509_certificate(file.read_bytes())
    return shown.not_valid_before_utc.timestamp(), shown.not_valid_after_utc.timestamp()
