"""Where a Redis is: one server, the Sentinels that know it, or the nodes of a Cluster; and why connecting failed."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from mirror.errors import ConfigError, reason_of

#: A host and a port.
Place = tuple[str, int]


class RedisKind(Enum):
    """How the server that has the mirror's keys is found. The values are what messages call it."""

    SINGLE = "single server"
    SENTINEL = "Sentinel"
    CLUSTER = "Cluster"


@dataclass(frozen=True, slots=True)
class RedisLogin:
    """A user name and a password; both may be None. `repr` omits the password."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class RedisTls:
    """Paths of PEM files: who besides the system's authorities may sign the servers' certificates, and the client's own
    certificate.
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def context(self) -> ssl.SSLContext:
        """For a client. Made anew when a file has changed, because that takes as long as many calls of Redis. Raises
        `OSError`, of which `ssl.SSLError` is one.
        """
        files = filter(None, (self.ca_file, self.cert_file, self.key_file))
        return _context(self, tuple(os.stat(file).st_mtime_ns for file in files))


@lru_cache(maxsize=8)
def _context(tls: RedisTls, _changed_at: tuple[int, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.ca_file is not None:
        context.load_verify_locations(tls.ca_file)
    if tls.cert_file is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """`nodes` are the server, the Sentinels, or some nodes of the Cluster; there are none if `socket`, the path of a
    unix socket, is not empty. `service` is the name that the Sentinels know. `tls` is None for plain connections, and
    `login` is for servers, `sentinel_login` for Sentinels. `str` and `repr` omit passwords.
    """

    nodes: tuple[Place, ...] = ()
    socket: str = ""
    kind: RedisKind = RedisKind.SINGLE
    service: str = ""
    db: int = 0
    login: RedisLogin = RedisLogin()
    sentinel_login: RedisLogin = RedisLogin()
    tls: RedisTls | None = None

    def __str__(self) -> str:
        if self.socket:
            return f"unix://{self.socket}?db={self.db}"
        scheme = "redis" if self.tls is None else "rediss"
        hosts = ",".join(map(place_text, self.nodes))
        if self.kind is RedisKind.SENTINEL:
            return f"{scheme}+sentinel://{hosts}/{self.service}/{self.db}"
        return f"{scheme}+cluster://{hosts}" if self.kind is RedisKind.CLUSTER else f"{scheme}://{hosts}/{self.db}"

    def options(self, *, sentinel: bool = False) -> dict[str, Any]:
        """The options of redis-py for a connection to one of the servers, or to a Sentinel. It never retries."""
        login = self.sentinel_login if sentinel else self.login
        options: dict[str, Any] = {
            "db": 0 if sentinel else self.db,
            "username": login.username,
            "password": login.password,
            # no timeouts of redis-py: they put every command through asyncio.wait_for, which in Python 3.11 can swallow
            # a cancellation, so that a cancelled task runs on for ever. The callers apply the budget to each call.
            "socket_timeout": None,
            "socket_connect_timeout": None,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            # no CLIENT SETINFO, to which the mirror's user need not have a right
            "driver_info": None,
        }
        return options if self.tls is None else {**options, "tls": self.tls}


def place_text(place: Place) -> str:
    """As in a URL: `host:port`, or `[address]:port`."""
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_KINDS: Final = {
    "": RedisKind.SINGLE,
    "+sentinel": RedisKind.SENTINEL,
    "+cluster": RedisKind.CLUSTER,
}
_PORTS: Final = {RedisKind.SINGLE: 6379, RedisKind.SENTINEL: 26379, RedisKind.CLUSTER: 6379}
_FILES: Final = {"ssl_ca_certs": "ca_file", "ssl_certfile": "cert_file", "ssl_keyfile": "key_file"}
_SEVERAL: Final = (
    "write redis+sentinel://host:26379,host:26379/SERVICE/0 for Sentinels, redis+cluster://host:6379,host:6379 for the "
    "nodes of a Cluster"
)
_UNREADABLE: Final = "Redis URL: host or port cannot be read; is the password percent-encoded?"


def parse_redis_url(url: str) -> RedisAddress:
    """Parse the URL of a Redis:

        redis://[user:password@]host[:port][/db]                            one server
        unix://[user:password@]/path[?db=n]                                 one server, by its unix socket
        redis+sentinel://[user:password@]host[:port],…/SERVICE[/db]         the Sentinels that know it
        redis+cluster://[user:password@]host[:port],…                       some nodes of a Cluster

    With `rediss` instead of `redis`, all connections are TLS, and the query may have `ssl_ca_certs`, `ssl_certfile` and
    `ssl_keyfile` (paths of PEM files). That of Sentinels may have `sentinel_username` and `sentinel_password_file`,
    which is read at once. Raises `ConfigError` with all mistakes; its messages quote no part of the URL that could
    contain the password.
    """
    url = url.strip()
    scheme, there, rest = url.partition("://")
    scheme = scheme.lower()
    secure, kind = scheme.startswith("rediss"), _KINDS.get(re.sub(r"^rediss?", "", scheme))
    if scheme == "unix":
        kind = RedisKind.SINGLE
    if there and kind is None and re.fullmatch(r"[a-z+.-]*(sentinel|cluster)[a-z+.-]*", scheme):
        raise ConfigError([f"Redis URL: {_SEVERAL}"])
    if not there or kind is None:
        raise ConfigError(
            ["Redis URL: must begin with redis://, rediss:// or unix://; or with redis+sentinel://, redis+cluster://"]
        )
    mistakes = []
    if "#" in rest:
        mistakes.append("Redis URL: holds a '#'; is the password percent-encoded?")
    rest, _, query = rest.partition("#")[0].partition("?")
    authority, slash, path = rest.partition("/")
    path = slash + path
    given, _, hosts = authority.rpartition("@")
    options: dict[str, Any] = {"kind": kind, "login": _login(given)}
    database = ""
    if scheme == "unix":
        if len(path) < 2 or hosts:
            mistakes.append("Redis URL: unix:// needs an absolute path, as in unix:///run/redis/redis.sock")
        options["socket"] = unquote(path)
    else:
        options["nodes"] = _places(hosts, kind)
        if not options["nodes"]:
            mistakes.append("Redis URL: the host is missing")
        elif len(options["nodes"]) > 1 and kind is RedisKind.SINGLE:
            mistakes.append(f"Redis URL: names several hosts; {_SEVERAL}")
        service, database = "", path.strip("/")
        if kind is RedisKind.SENTINEL:
            service, _, database = path.strip("/").partition("/")
            service = unquote(service)
            if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", service):
                mistakes.append(
                    "Redis URL: the name of the service is missing, as in redis+sentinel://host:26379/SERVICE"
                )
        options["service"] = service
    database = _read_query(query, options, secure=secure, mistakes=mistakes) or database
    if database and not re.fullmatch(r"[0-9]{1,5}", database):
        mistakes.append("Redis URL: the database is not a number")
    elif kind is RedisKind.CLUSTER and int(database or 0):
        mistakes.append("Redis URL: a Cluster has database 0 only")
    elif database:
        options["db"] = int(database)
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))
    return RedisAddress(**options)


def _login(given: str) -> RedisLogin:
    username, _, password = given.partition(":")
    return RedisLogin(unquote(username) or None, unquote(password) or None)


def _places(hosts: str, kind: RedisKind) -> tuple[Place, ...]:
    """The hosts with their ports, each once. Raises `ConfigError`."""
    places = []
    for each in filter(None, hosts.split(",")):
        try:
            parts = urlsplit(f"//{each}")
            host, port = parts.hostname, parts.port
        except ValueError:
            # the text of the ValueError could quote a password whose special characters were not escaped
            raise ConfigError([_UNREADABLE]) from None
        if not host or parts.username or (each.count(":") > 1 and not each.startswith("[")):
            raise ConfigError([_UNREADABLE])
        places.append((host, _PORTS[kind] if port is None else port))
    return tuple(dict.fromkeys(places))


def _read_query(query: str, options: dict[str, Any], *, secure: bool, mistakes: list[str]) -> str:
    """Adds what the query says to the options; returns the database that it names."""
    allowed = [] if options["kind"] is RedisKind.CLUSTER else ["db"]
    allowed += _FILES if secure else ()
    allowed += ["sentinel_username", "sentinel_password_file"] if options["kind"] is RedisKind.SENTINEL else []
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in allowed:
            found[name] = value
        else:
            what = f"may only have {', '.join(allowed)}" if allowed else "must be empty"
            mistakes.append(f"Redis URL: its query {what}")
    if secure:
        options["tls"] = RedisTls(**{_FILES[name]: value for name, value in found.items() if name in _FILES})
    options["sentinel_login"] = RedisLogin(found.get("sentinel_username"), _password(found, mistakes))
    return found.get("db", "")


def _password(found: Mapping[str, str], mistakes: list[str]) -> str | None:
    file = found.get("sentinel_password_file")
    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").strip() or None
    except (OSError, ValueError) as error:
        mistakes.append(f"Redis URL: sentinel_password_file cannot be read: {reason_of(error)}")
        return None


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
