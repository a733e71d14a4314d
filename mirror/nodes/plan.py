"""What a client's configuration should do, and the files that make it so. Values only.

text of its files ──> a client's `plan(files, wanted)` ──> FilePlan: its files as they should be
                 └──> a client's `asks(files, registry)` ──> Asked: the hosts that it asks today
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import urlsplit

from mirror.errors import ConfigError, MirrorError
from mirror.oci.authorization import basic_authorization

#: The byte order mark, which some editors write at the start of UTF-8 files.
BOM: Final = "\ufeff"

#: How long a client waits for a connection to the mirror before it goes on without; only some clients have a setting.
DIAL_TIMEOUT: Final = "3s"

_HOST: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]")


class NodeRefused(MirrorError):
    """A file of this machine cannot be read, understood or changed safely. The file is unchanged."""


@dataclass(frozen=True, slots=True)
class MirrorUrl:
    """The URL at which clients reach the mirror.

    `host` is a name or an address, IPv6 in brackets. `port` is 0 for the default port of the scheme.
    """

    scheme: str
    host: str
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> MirrorUrl:
        """Parses a URL. Raises `ConfigError`, whose message quotes nothing that could be a password."""
        try:
            parts = urlsplit(text.strip())
            port = parts.port
        except ValueError:
            raise ConfigError(["MIRROR_URL: the host or the port is not valid"]) from None
        if "@" in text:  # not parts.username: with a slash too few, urlsplit finds no user
            raise ConfigError(["MIRROR_URL: contains a user or password; use --username and --password-file"])
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError([f"MIRROR_URL: write http://host:port or https://host:port, not {text[:200]!r}"])
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        if not _HOST.fullmatch(host):
            raise ConfigError([f"MIRROR_URL: not a host name: {host[:200]!r}"])
        if port == 0:
            raise ConfigError(["MIRROR_URL: port 0 is not possible"])
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ConfigError(["MIRROR_URL: must end after the port; clients add the path"])
        return cls(parts.scheme, host, port or 0)

    @property
    def address(self) -> str:
        """`host` or `host:port`, as it is written in image names.

        The first part of an image name is a host only if it has a dot or a colon, or is `localhost`; else it is a
        namespace of Docker Hub. So the port is added to other names even if it is the default one.
        """
        if self.port or (self.host != "localhost" and "." not in self.host and ":" not in self.host):
            return f"{self.host}:{self.port or (80 if self.is_plain else 443)}"
        return self.host

    @property
    def is_ipv6(self) -> bool:
        """True if the host is an IPv6 address."""
        return self.host.startswith("[")

    @property
    def is_plain(self) -> bool:
        """True if the mirror is reached without TLS."""
        return self.scheme == "http"

    @property
    def is_loopback(self) -> bool:
        """True if the mirror is on this machine. Docker trusts loopback addresses without TLS."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    def is_at(self, url: str) -> bool:
        """True if a URL means this mirror, even if it is written differently: case, a slash at the end, the default
        port written out, a path after the port.
        """
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
    """The account with which a client logs in at the mirror."""

    username: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The value of an `Authorization` header (RFC 7617)."""
        return basic_authorization(self.username, self.password)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client's configuration should do.

    `registries` are those that the caller named. If there are none, all registries are meant; clients that need a name
    for each are configured for those in `public`. `authority` is PEM text of the authorities to trust at the mirror.
    Without `fallback`, the client may ask the mirror only. `own_name`: images that have the mirror's own name
    (`mirror.internal:5000/corp/app`) are meant as well. With `virtual`, pulls of all these registries go to the virtual
    registry of that name.
    """

    mirror: MirrorUrl
    registries: tuple[str, ...] = ()
    public: tuple[str, ...] = ()
    authority: str | None = None
    account: ClientLogin | None = None
    fallback: bool = True
    own_name: bool = False
    virtual: str = ""

    @property
    def endpoint(self) -> str:
        """The URL below which clients of containerd's kind ask: that of the API if a path says which registry."""
        return f"{self.mirror}/v2/{self.virtual}" if self.virtual else str(self.mirror)

    def place(self, registry: str) -> str:
        """What stands for a registry in the names of images: `mirror.internal:5000/ghcr.io`."""
        return f"{self.mirror.address}/{self.virtual or registry}"


@dataclass(frozen=True, slots=True)
class Change:
    """A file as it should be.

    `path` is absolute, as the client sees it. `needs` is what makes the client read the file again; empty if nothing
    has to be done. A `secret` file is readable by its owner only.
    """

    path: str
    content: str
    needs: str = ""
    secret: bool = False


@dataclass(frozen=True, slots=True)
class FilePlan:
    """All files that a client needs. A plan with `conflicts` must not be carried out. `notes` are shown to the user.

    `seen` says when the client notices changes for which nothing has to be done.
    """

    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    seen: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """The hosts that a client asks for a registry's images before the registry itself, in order. `where` is the file or
    folder that says so; `named`: it says so of this registry, not of all.

    `trouble`: why the client does not do what is configured. `doubts`: why some of its releases may not.
    """

    endpoints: tuple[str, ...]
    where: str
    trouble: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    named: bool = False


class Files(Protocol):
    """Reads the machine's files as text."""

    def text(self, path: str) -> str | None:
        """The text of a file; None if the file does not exist. Raises `NodeRefused`."""

    def names(self, folder: str) -> Sequence[str]:
        """The sorted names in a folder; empty if the folder does not exist. Raises `NodeRefused`."""


@dataclass(frozen=True, slots=True)
class Client:
    """One kind of container client. `home` is the folder of its configuration; the journal is kept there, too."""

    name: str
    home: str
    plan: Callable[[Files, Wanted], FilePlan]
    asks: Callable[[Files, str], Asked]


def written_by(client: str) -> str:
    """The comment at the head of files that we write as a whole, for formats with comments."""
    return f"# Written by `mirror configure {client}`; `mirror configure {client} --undo` reverts it.\n"
