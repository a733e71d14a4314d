"""What is wanted of a client's configuration, and what it takes to get there. Values only.

text of its files ──> a client's `plan(files, wanted)` ──> Plan: files as they should be
                 └──> a client's `asks(files, registry)` ──> Asked: whom it asks today
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

from mirror.errors import ConfigError, MirrorError

__all__ = [
    "BOM",
    "DIAL_TIMEOUT",
    "Asked",
    "Change",
    "Client",
    "ClientLogin",
    "FilePlan",
    "Files",
    "MirrorUrl",
    "NodeRefused",
    "Wanted",
    "written_by",
]

#: Some editors begin UTF-8 files with it.
BOM: Final = "\ufeff"

#: How long a client that can be told so waits for a mirror that does not answer the dial, before it goes on without.
DIAL_TIMEOUT: Final = "3s"

_HOST: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]")


class NodeRefused(MirrorError):
    """A file of this machine cannot be read, understood or changed safely; nothing was done to it."""


@dataclass(frozen=True, slots=True)
class MirrorUrl:
    """Where clients reach the mirror. `host` is a name or address (IPv6 in brackets), `port` 0: the scheme's own."""

    scheme: str
    host: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> MirrorUrl:
        """Raises `ConfigError`; it quotes nothing that could be a password."""
        try:
            parts = urlsplit(text.strip())
            port = parts.port
        except ValueError:
            raise ConfigError(["MIRROR_URL: host or port cannot be read"]) from None
        if "@" in text:  # with a slash too few, too, where the user does not count as one
            raise ConfigError(["MIRROR_URL: holds a user or password; use --username and --password-file"])
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError([f"MIRROR_URL: write http://host:port or https://host:port, not {text[:200]!r}"])
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        if not _HOST.fullmatch(host):
            raise ConfigError([f"MIRROR_URL: not the name of a host: {host[:200]!r}"])
        if port == 0:
            raise ConfigError(["MIRROR_URL: nothing answers at port 0"])
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ConfigError(["MIRROR_URL: ends after the port; clients put the path after it"])
        return cls(parts.scheme, host, port or 0)

    @property
    def address(self) -> str:
        """`host` or `host:port`, as it stands in the names of images.

        There a first part without dot and colon is no host, but a folder of Docker Hub's: such a host gets its port.
        """
        if self.port or (self.host != "localhost" and "." not in self.host and ":" not in self.host):
            return f"{self.host}:{self.port or (80 if self.is_plain else 443)}"
        return self.host

    @property
    def is_ipv6(self) -> bool:
        """Whether it is an address of IPv6, not a name."""
        return self.host.startswith("[")

    @property
    def is_plain(self) -> bool:
        """Whether there is no TLS."""
        return self.scheme == "http"

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine; Docker trusts those without TLS anyway."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    def is_at(self, url: str) -> bool:
        """Whether another way of writing means this mirror: case, a slash at the end, a port that goes without saying,
        a path behind the port."""
        try:
            parts = urlsplit(url if "://" in url else f"{self.scheme}://{url}")
            port = parts.port
        except ValueError:
            return False
        usual = {"http": 80, "https": 443}
        host = parts.hostname or ""
        host = f"[{host}]" if ":" in host else host
        same_port = (port or usual.get(parts.scheme)) == (self.port or usual[self.scheme])
        return parts.scheme == self.scheme and host == self.host and same_port

    def __str__(self) -> str:
        return f"{self.scheme}://{self.address}"


@dataclass(frozen=True, slots=True)
class ClientLogin:
    """How a client logs in at the mirror."""

    username: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client shall do.

    `registries` are those that the caller named; empty: every one that the client can be told of, of which `public`
    are the best known. `authority` is PEM text of whom to trust at the mirror. Not `fallback`: nobody but the mirror
    may be asked.
    """

    mirror: MirrorUrl
    registries: tuple[str, ...] = ()
    public: tuple[str, ...] = ()
    authority: str | None = None
    account: ClientLogin | None = None
    fallback: bool = True


@dataclass(frozen=True, slots=True)
class Change:
    """A file as it should be; `needs` is what makes the client see it, empty: nothing has to be done.

    `path` is absolute, as the client sees it. `mode` counts where the file is made, `secret`: nobody else may read it.
    """

    path: str
    content: str
    needs: str = ""
    secret: bool = False


@dataclass(frozen=True, slots=True)
class FilePlan:
    """All of a client's files that should be there. `conflicts` forbid that it is carried out, `notes` are to be told.

    `seen` says when the client sees changes for which nothing has to be done.
    """

    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    seen: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom a client asks for a registry's images, in order, before the registry itself; `where` says so.

    `trouble`: why it does not do what is written; `doubts`: why some of its releases may not.
    """

    endpoints: tuple[str, ...]
    where: str
    trouble: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


class Files(Protocol):
    """The machine's files as text."""

    def text(self, path: str) -> str | None:
        """None if there is none. Raises `NodeRefused`."""

    def names(self, folder: str) -> Sequence[str]:
        """What is in a folder, sorted; nothing if there is none. Raises `NodeRefused`."""


@dataclass(frozen=True, slots=True)
class Client:
    """One kind of container client. `home` is the folder of its configuration, where what was done is kept, too."""

    name: str
    home: str
    plan: Callable[[Files, Wanted], FilePlan]
    asks: Callable[[Files, str], Asked]


def written_by(client: str) -> str:
    """The marker at the head of what is ours alone, for formats that know comments."""
    return f"# Written by `mirror configure {client}`; `mirror configure {client} --undo` takes it back.\n"
