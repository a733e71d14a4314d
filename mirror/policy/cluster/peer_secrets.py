"""The secret that the replicas of a cluster share, as it stands in a file."""

from __future__ import annotations

from typing import Final

from mirror.errors import ConfigError

#: Bytes: as many as the digest that it makes (RFC 2104 section 3).
LEAST: Final = 32
_MOST: Final = 4096


def parse_secrets(content: bytes) -> tuple[bytes, ...]:
    """The secrets in a file: one or two lines. The first signs, and each is accepted, so that the secret can be
    exchanged: add the new one as the second line everywhere, put it first everywhere, then take the old one away.

    Spaces around a line do not count. Raises `ConfigError`; no message shows a secret.
    """
    if len(content) > _MOST:
        raise ConfigError([f"has more than {_MOST} bytes"])
    secrets = tuple(stripped for line in content.split(b"\n") if (stripped := line.strip()))
    if not secrets:
        raise ConfigError(["is empty; it needs at least 32 random bytes, for example of `openssl rand -hex 32`"])
    if len(secrets) > 2:
        raise ConfigError([f"has {len(secrets)} lines; it has one secret in a line, and at most two"])
    short = [number for number, secret in enumerate(secrets, 1) if len(secret) < LEAST]
    if short:
        raise ConfigError([f"line {number} has less than {LEAST} bytes" for number in short])
    return secrets
