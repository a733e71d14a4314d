"""The signature of a delivery: HMAC-SHA-256 (RFC 2104) of the time, a full stop, and the body."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final

SIGNATURE: Final = "X-Mirror-Signature"
TIMESTAMP: Final = "X-Mirror-Timestamp"


def signed_headers(secrets: Sequence[bytes], at: int, body: bytes) -> dict[str, str]:
    """The headers of a delivery at `at` (epoch seconds): the time, and `sha256=…` by each secret, separated by commas.
    Without a secret there is no signature.
    """
    signed = f"{at}.".encode() + body
    signatures = [f"sha256={hmac.new(secret, signed, 'sha256').hexdigest()}" for secret in secrets]
    return {TIMESTAMP: str(at)} | ({SIGNATURE: ",".join(signatures)} if signatures else {})
