"""Who a client's certificate says it is. The TLS listener has verified it against the configured authority by then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mirror.policy.access import Identity, Means

__all__ = ["identity_of"]


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
    return Identity(names[0], Means.CERTIFICATE, frozenset(found.get("organizationName", ())))
