"""The credentials in an `Authorization` header (RFC 7617 Basic, RFC 6750 Bearer), read and written."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from mirror.errors import Unauthorized

#: The most characters of a header: tokens of identity providers have a few kilobytes.
_LONGEST: Final = 32 * 1024
#: The most characters of a name and of a password: the longest are cloud keys and tokens with some thousands.
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
    #: Where the request comes from, such as an address. Not part of the caller's identity.
    client: str = field(default="", repr=False, compare=False)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that identify the credentials without revealing them."""
        parts = "\0".join((self.username, self.password, self.bearer))
        return hashlib.sha256(parts.encode()).hexdigest()[:32]

    @property
    def secret(self) -> str:
        """The bearer token or the password. Clients that support only passwords send a token as the password."""
        return self.bearer or self.password


def presented_by(username: str, password: str) -> CallerCredentials:
    """The credentials made of a user name and a password.

    Raises `Unauthorized` if one is too long or contains control characters (RFC 7617, 2): these could reach a log, and
    could give two different pairs the same fingerprint.
    """
    if _CONTROL.search(username) or _CONTROL.search(password):
        raise Unauthorized("a user name or password with control characters")
    if len(username) > _LONGEST_NAME or len(password) > _LONGEST_PASSWORD:
        raise Unauthorized("the user name or the password is too long")
    return CallerCredentials(username, password)


def read_authorization(lines: Sequence[str]) -> CallerCredentials | None:
    """Parse the lines of the `Authorization` header; None if there is no header, or an empty one.

    Raises `Unauthorized`.
    """
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


def basic_authorization(username: str, password: str) -> str:
    """The value of an `Authorization` header with these credentials (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _basic(value: str) -> CallerCredentials | None:
    try:
        username, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError) as error:
        raise Unauthorized("not the user:password of a Basic authorization") from error
    if not colon:
        raise Unauthorized("not the user:password of a Basic authorization")
    # some clients send empty credentials when they have none
    return presented_by(username, password) if username or password else None
