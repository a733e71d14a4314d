"""The address of a Redis server, connections to it, and why they failed."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mirror.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The address of a Redis server and its credentials. `str` and `repr` omit the password."""

    host: str = ""
    port: int = 6379
    socket: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def __str__(self) -> str:
        if self.socket:
            return f"unix://{self.socket}?db={self.db}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"

    def pool(self, *, connections: int, budget: float) -> BlockingConnectionPool:
        """A pool of up to `connections` connections, which waits at most `budget` seconds for a free one and never
        retries.
        """
        options: dict[str, Any] = {
            "db": self.db,
            "username": self.username,
            "password": self.password,
            # no timeouts of redis-py: they put every command through asyncio.wait_for, which in Python 3.11 can swallow
            # a cancellation, so that a cancelled task runs on for ever. The callers apply the budget to each call.
            "socket_timeout": None,
            "socket_connect_timeout": None,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
        }
        kind: type[Connection | UnixDomainSocketConnection] = Connection
        if self.socket:
            kind = UnixDomainSocketConnection
            options |= {"path": self.socket}
        else:
            options |= {"host": self.host, "port": self.port}
        if self.tls:
            kind = SSLConnection
            options |= {
                "ssl_cert_reqs": "required",
                "ssl_check_hostname": True,
                "ssl_min_version": ssl.TLSVersion.TLSv1_2,
                "ssl_ca_certs": self.ca_file,
                "ssl_certfile": self.cert_file,
                "ssl_keyfile": self.key_file,
            }
        return BlockingConnectionPool(max_connections=connections, timeout=budget, connection_class=kind, **options)


_FILES: Final = {"ssl_ca_certs": "ca_file", "ssl_certfile": "cert_file", "ssl_keyfile": "key_file"}


def parse_redis_url(url: str) -> RedisAddress:
    """Parse `redis://[user:password@]host[:port][/db]`, the same with `rediss://` (TLS), or `unix://[…@]/path[?db=n]`.

    `rediss://` takes `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile` (paths of PEM files) in its query. Raises
    `ConfigError` with all mistakes; its messages quote no part of the URL that could contain the password.
    """
    scheme, there, _ = url.strip().partition("://")
    scheme = scheme.lower()
    if there and re.fullmatch(r"[a-z+.-]*(sentinel|cluster)[a-z+.-]*", scheme):
        raise ConfigError(["Redis URL: Sentinel and Cluster are not supported; give the redis:// URL of one server"])
    if not there or scheme not in ("redis", "rediss", "unix"):
        raise ConfigError(["Redis URL: must begin with redis://, rediss:// or unix://"])
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        # the text of the ValueError could quote a password whose special characters were not escaped
        raise ConfigError(["Redis URL: host or port cannot be read; is the password percent-encoded?"]) from None
    mistakes = []
    options: dict[str, Any] = {}
    if parts.username:
        options["username"] = unquote(parts.username)
    if parts.password:
        options["password"] = unquote(parts.password)
    if parts.fragment or "#" in url:
        mistakes.append("Redis URL: holds a '#'; is the password percent-encoded?")
    database = ""
    if scheme == "unix":
        if not parts.path.startswith("/") or parts.hostname:
            mistakes.append("Redis URL: unix:// needs an absolute path, as in unix:///run/redis/redis.sock")
        options["socket"] = unquote(parts.path)
    else:
        if not parts.hostname:
            mistakes.append("Redis URL: the host is missing")
        elif "," in parts.netloc.rpartition("@")[2]:
            mistakes.append("Redis URL: names several hosts; Sentinel and Cluster are not supported")
        options |= {"host": parts.hostname or "", "port": 6379 if port is None else port, "tls": scheme == "rediss"}
        database = parts.path.strip("/")
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name == "db":
            database = value
        elif name in _FILES and scheme == "rediss":
            options[_FILES[name]] = value
        else:
            allowed = ["db", *(_FILES if scheme == "rediss" else ())]
            mistakes.append(f"Redis URL: its query may only have {', '.join(allowed)}")
    if database and not re.fullmatch(r"[0-9]{1,5}", database):
        mistakes.append("Redis URL: the database is not a number")
    elif database:
        options["db"] = int(database)
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))
    return RedisAddress(**options)


def no_connection(error: BaseException) -> str:
    """The system's or TLS's reason why connecting failed; empty if the error has another cause."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ssl.SSLError):
            return getattr(inner, "verify_message", "") or inner.reason or "TLS failed"
        if isinstance(inner, OSError) and inner.errno:
            # errors of the resolver are negative, and strerror does not know them
            return os.strerror(inner.errno) if inner.errno > 0 else str(inner.strerror)
        inner = inner.__cause__ or inner.__context__
    return ""
