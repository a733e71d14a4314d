"""What a caller presents to be let in: the `Authorization` header (RFC 7617 Basic, RFC 6750 Bearer)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from mirror.errors import Unauthorized

__all__ = ["CallerCredentials", "presented_by", "read_authorization"]

#: Characters of a header that are looked at: tokens of identity providers have a few kilobytes.
_LONGEST: Final = 32 * 1024
#: Characters of a name and of a password: the largest are keys and tokens of clouds, with some thousands.
_LONGEST_NAME: Final = 512
_LONGEST_PASSWORD: Final = 16 * 1024
#: RFC 5234, B.1.
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class CallerCredentials:
    """A user name with a password, or a bearer token. No `repr` shows a secret."""

    username: str = ""
    password: str = field(default="", repr=False)
    bearer: str = field(default="", repr=False)
    #: Where it comes from, such as an address; says nothing about who it is.
    client: str = field(default="", repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """Tells credentials apart without giving them away: 32 hex digits."""
        parts = "\0".join((self.username, self.password, self.bearer))
        return hashlib.sha256(parts.encode()).hexdigest()[:32]

    @property
    def secret(self) -> str:
        """The token, or the password, which may hold a token: clients that know only passwords send it so."""
        return self.bearer or self.password


def presented_by(username: str, password: str) -> CallerCredentials:
    """Without control characters (RFC 7617, 2): they would stand in a log, and two pairs could look like one. Raises
    `Unauthorized`.
    """
    if _CONTROL.search(username) or _CONTROL.search(password):
        raise Unauthorized("a user name or password with control characters")
    if len(username) > _LONGEST_NAME or len(password) > _LONGEST_PASSWORD:
        raise Unauthorized("the user name or the password is too long")
    return CallerCredentials(username, password)


def read_authorization(lines: Sequence[str]) -> CallerCredentials | None:
    """The header's lines as they came; None where there is none, or an empty one. Raises `Unauthorized`."""
    if not lines:
        return None
    if len(lines) > 1:
        raise Unauthorized("more than one Authorization header")
    if len(lines[0]) > _LONGEST:
        raise Unauthorized("the Authorization header is too long")
    scheme, _, value = lines[0].strip().partition(" ")
    value = value.strip()
    if not scheme:
        return None
    match scheme.lower():
        case "basic":
            return _basic(value)
        case "bearer":
            if not value or not value.isascii() or not value.isprintable() or " " in value:
                raise Unauthorized("not a bearer token")
            return CallerCredentials(bearer=value)
    raise Unauthorized("an Authorization that is neither Basic nor Bearer")


def _basic(value: str) -> CallerCredentials | None:
    try:
        username, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise Unauthorized("not the user:password of a Basic authorization") from error
    if not colon:
        raise Unauthorized("not the user:password of a Basic authorization")
    # some clients send empty credentials when they have none
    return presented_by(username, password) if username or password else None
