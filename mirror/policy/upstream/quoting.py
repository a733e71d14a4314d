"""Error messages of upstreams, made safe to repeat to clients and in the log."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Final
from urllib.parse import quote, quote_plus

from mirror.oci.strict_json import read_json

#: The most characters of an upstream's message that are repeated.
_LONGEST: Final = 200
#: Parts of a token that are shorter are not searched for, because they could occur in any message.
_SHORTEST_PART: Final = 8


def quoted(content: bytes, authorization: str | None) -> str:
    """The first error of an answer (distribution-spec, "Error Codes") in brackets, shortened and escaped.

    "" if the answer contains no error, or if the message repeats a secret of `authorization`, the header that was sent:
    the password of Basic credentials, in clear or encoded, or a part of a token.
    """
    try:
        first = read_json(content)["errors"][0]
        message = ": ".join(str(first[key]) for key in ("code", "message") if first.get(key))
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    if any(secret in message for secret in secrets_of(authorization or "")):
        return ""
    return f" ({message[:_LONGEST].encode('unicode_escape').decode('ascii')})" if message else ""


def secrets_of(authorization: str) -> set[str]:
    """Every spelling of the secret in an `Authorization` header that a message may repeat (RFC 7617, RFC 6750)."""
    scheme, _, value = authorization.partition(" ")
    if not value:
        return set()
    secrets = {value, value.rstrip("=")}
    secrets |= {part for part in value.split(".") if len(part) >= _SHORTEST_PART}
    if scheme.lower() == "basic":
        try:
            password = base64.b64decode(value).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return secrets
        if password:
            alone = base64.b64encode(password.encode()).decode()
            escaped = json.dumps(password)[1:-1]
            secrets |= {password, quote(password, safe=""), quote_plus(password), alone, alone.rstrip("="), escaped}
            secrets.add(password.encode().hex())
    return secrets
