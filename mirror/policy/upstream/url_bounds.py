"""Where one upstream may direct the mirror: token realms, redirects and the addresses that names resolve to.

The upstream chooses all three. Each may be an attempt to make the mirror send requests or secrets to a third party
(server-side request forgery; CVE-2026-33540, CVE-2020-15157). The rules:

    realm      on the upstream's own site or on its allow-list; https unless the upstream is http; no user part
    redirect   http(s), never from https to http, at most 5; only the headers in `_TRAVELS` cross to another origin
    address    checked after resolving, at each connection: link-local, metadata, unspecified and multicast never;
               loopback and private addresses only if the upstream's URL contains such an address itself, or its
               configuration says `private_network`; the upstream's own name is checked like any other
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias
from urllib.parse import urljoin

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
#: Scheme, host and port.
Origin: TypeAlias = tuple[str, str, int]

#: Redirects that are followed in a row.
MOST_HOPS: Final = 5

_URL: Final = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?P<target>[/?][^#]*)?(?:#.*)?",
    re.IGNORECASE,
)
_HAS_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_CLEAN: Final = re.compile(r"[!-~]{1,16384}")
_PORTS: Final = {"http": 80, "https": 443}


class UrlRefused(ValueError):
    """A URL that the mirror must not use. The message contains neither the query nor a user part."""


@dataclass(frozen=True, slots=True)
class Url:
    """An http(s) URL, parsed but not rewritten. `host` is lower case and without brackets.

    `target` is the path and query, byte for byte: quoting a signed URL again would invalidate it.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def origin(self) -> Origin:
        """Scheme, host and port."""
        return self.scheme, self.host, self.port

    @property
    def authority(self) -> str:
        """Host and port for the `Host` header, without the port if it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def public(self) -> str:
        """The URL for messages and logs, without the query, which may contain a signature."""
        return f"{self.scheme}://{self.authority}{self.target.partition('?')[0]}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"


def parse_url(text: str) -> Url:
    """Parse an absolute http or https URL.

    Raises `UrlRefused`, also for user parts, blanks, control characters and non-ASCII characters. Strictness makes sure
    that all software that reads the URL finds the same host in it.
    """
    match = _URL.fullmatch(text) if _CLEAN.fullmatch(text) else None
    if not match:
        raise UrlRefused("not a plain http or https URL")
    scheme, host = match["scheme"].lower(), match["host"].lower()
    port = int(match["port"] or _PORTS[scheme])
    if not 0 < port < 65536:
        raise UrlRefused("not a valid port")
    if host.startswith("["):
        host = host[1:-1]
        if parse_address(host) is None:
            raise UrlRefused("not an IPv6 address")
    target = match["target"] or "/"
    return Url(scheme, host, port, target if target.startswith("/") else f"/{target}")


def parse_address(host: str) -> Address | None:
    """A literal address, with IPv4 inside IPv6 unwrapped; None for names.

    IPv4 addresses are read as `inet_aton` reads them, because the C library and proxies do so: `127.1`, `0x7f000001`
    and `2130706433` are all loopback. IPv4 inside IPv6 is unwrapped because the kernel or a gateway does so:
    `::ffff:169.254.169.254` is the metadata service. Known wrappings: mapped (RFC 4291, 2.5.5.2), compatible (2.5.5.1),
    6to4 (RFC 3056), NAT64 (RFC 6052; RFC 8215 with a prefix of 96 bits) and translated (RFC 2765, 2.1).
    """
    host = host.rstrip(".")
    if _IPV4_OF_C.fullmatch(host):
        return _parse_ipv4(host)
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and int(address) > 1:
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and any(address in network for network in _WRAPPING):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return inner or address
    return address


def _parse_ipv4(host: str) -> ipaddress.IPv4Address | None:
    """Parse one to four numbers, each decimal, octal (`0…`) or hexadecimal (`0x…`). The last fills the remaining bytes.

    None if the text is not such an address.
    """
    try:
        *leading, last = (_number_of_c(part) for part in host.split("."))
    except ValueError:
        return None
    if any(number > 255 for number in leading) or last >= 256 ** (4 - len(leading)):
        return None
    return ipaddress.IPv4Address(sum(number << 8 * (3 - at) for at, number in enumerate(leading)) + last)


def _number_of_c(digits: str) -> int:
    """A number in C's notation: decimal, octal (`0…`) or hexadecimal (`0x…`). Raises `ValueError`."""
    if digits[:2].lower() == "0x":
        return int(digits[2:] or "0", 16)
    return int(digits, 8 if digits.startswith("0") else 10)


#: Texts that `inet_aton` may accept as an address.
_IPV4_OF_C: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+)){0,3}", re.IGNORECASE)
#: Networks whose addresses end in an IPv4 address.
_WRAPPING: Final = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/96", "::ffff:0:0:0/96", "::/96")))
#: RFC 8215: a network's own translator, which may put the IPv4 address at one of several positions (RFC 6052, 2.2).
_LOCAL_NAT64: Final = ipaddress.IPv6Network("64:ff9b:1::/48")

#: Addresses of cloud metadata services that are not link-local.
_METADATA: Final = frozenset(
    map(
        ipaddress.ip_address,
        ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:c1::a9fe:a9fe"),
    )
)


def _is_never(address: Address) -> bool:
    if address.version == 6 and address in _LOCAL_NAT64:
        # the position of the IPv4 address is unknown, so the metadata service cannot be ruled out
        return True
    return address.is_link_local or address.is_unspecified or address.is_multicast or address in _METADATA


def _is_internal(address: Address) -> bool:
    """Whether the address is not public: loopback, private (RFC 1918, ULA, fec0::/10), shared (100.64/10), reserved."""
    return not address.is_global or (address.version == 6 and address.is_site_local)


_INTERNAL_NAME: Final = re.compile(r"[^.]+|.*\.(?:localhost|local|internal|intranet|lan|home\.arpa|test|svc)")


def looks_internal(host: str) -> bool:
    """Whether a host is an address that is not public, or a name that only private networks resolve."""
    address = parse_address(host)
    return _is_internal(address) if address else bool(_INTERNAL_NAME.fullmatch(host))


def needs_private(url: str) -> bool:
    """Whether an upstream at this URL probably needs `private_network = true`: its host is a name in a private network.

    False for an address in the URL and for `localhost`, which are permitted without that setting. A name that looks
    public but resolves to a private address is not recognised here. Raises `UrlRefused`.
    """
    host = parse_url(url).host
    return looks_internal(host) and not _is_internal_literal(host)


#: Second-level labels under which countries register names (`co` in `co.uk`), and suffixes under which unrelated
#: parties get names of their own. Hosts that have only such a parent in common are not on the same site. This is not
#: the public suffix list. If a suffix is missing here, hosts below it that share at least two labels wrongly count as
#: one site. If the rule refuses too much, the allow-list helps.
_SECOND_LEVEL: Final = "ac co com edu gob gouv gov go govt gen in info ltd me mil ne net nhs nom or org plc sch web"
_SHARED: Final = """
    amazonaws.com amazonaws.com.cn aliyuncs.com appspot.com awsapprunner.com azure.com azurecontainer.io azurecr.cn
    azurecr.io azurecr.us azureedge.net azurefd.net azurewebsites.net azurestaticapps.net backblazeb2.com cloudapp.net
    cloudflarestorage.com cloudfront.net cloudfunctions.net cloudsmith.io digitaloceanspaces.com duckdns.org dyndns.org
    fastly.net firebaseapp.com fly.dev github.io githubusercontent.com gitlab.io googleusercontent.com herokuapp.com
    hf.space jfrog.io linodeobjects.com loca.lt myhuaweicloud.com myqcloud.com netlify.app ngrok-free.app ngrok.app
    ngrok.io nip.io no-ip.org ondigitalocean.app onrender.com oraclecloud.com pages.dev r2.dev run.app scw.cloud
    sslip.io tencentcloudcr.com trafficmanager.net trycloudflare.com ts.net up.railway.app vercel.app wasabisys.com
    web.app windows.net workers.dev
"""
_SECOND_LEVELS: Final = frozenset(_SECOND_LEVEL.split())
_SHARED_SUFFIXES: Final = frozenset(_SHARED.split())


def same_site(host: str, other: str) -> bool:
    """Whether two hosts belong to the same registrant, as far as their names show.

    They do if they are equal, or have a common parent of at least two labels under which others cannot register names:
    `auth.docker.io` and `registry-1.docker.io` share `docker.io`. `a.co.uk` and `b.co.uk` do not belong together, and
    neither do `a.azurecr.io` and `b.azurecr.io`.
    """
    host, other = host.rstrip("."), other.rstrip(".")
    if host == other:
        return True
    if parse_address(host) or parse_address(other):
        return False
    common: list[str] = []
    for left, right in zip(reversed(host.split(".")), reversed(other.split(".")), strict=False):
        if left != right or not left:
            break
        common.insert(0, left)
    if len(common) < 2:
        return False
    if any(".".join(common[at:]) in _SHARED_SUFFIXES for at in range(len(common))):
        # the common part is or ends in a shared suffix: which labels below it belong to one tenant is unknown
        return False
    return len(common) > 2 or not (len(common[1]) == 2 and common[0] in _SECOND_LEVELS)


#: Headers that may be sent to another origin after a redirect: none that contain credentials.
_TRAVELS: Final = frozenset({"accept", "accept-encoding", "range", "user-agent"})


def surviving_headers(
    headers: Mapping[str, str], current: Url, entered: Url, passes: Mapping[Origin, str] = MappingProxyType({})
) -> dict[str, str]:
    """The headers to send after a redirect: all within one origin, only those in `_TRAVELS` to another origin.

    `passes` maps other origins to the `Authorization` header that each of them has issued for itself.
    """
    if current.origin == entered.origin:
        return dict(headers)
    surviving = {name: value for name, value in headers.items() if name.lower() in _TRAVELS}
    authorization = passes.get(entered.origin)
    return surviving if authorization is None else {**surviving, "Authorization": authorization}


@dataclass(frozen=True, slots=True)
class UrlBounds:
    """Where the upstream at `base` may direct the mirror.

    `allowed` are further hosts, `host:port`s or origins (`https://host:port`) that may issue tokens. `internal` says
    that the upstream is on a private network, and that its realms and redirects may lead there, too.
    """

    base: Url
    allowed: frozenset[str] = frozenset()
    internal: bool = False

    @classmethod
    def of(cls, url: str, allowed: Iterable[str] = (), *, internal: bool | None = None) -> UrlBounds:
        """The bounds of the upstream at `url`. Raises `UrlRefused`.

        With `internal` None, private addresses are allowed only if the URL contains one itself, or `localhost`. Another
        name in the URL is not enough, because its owner may let it resolve to any address.
        """
        base = parse_url(url)
        named = frozenset(entry.lower().rstrip("/") for entry in allowed)
        return cls(base, named, _is_internal_literal(base.host) if internal is None else internal)

    def check_realm(self, text: str) -> Url:
        """The realm of a challenge, if the mirror may send credentials to it and request a token there.

        Raises `UrlRefused` otherwise. Without this check, an attacker who answers once in place of the upstream could
        collect the credentials of all later pulls.
        """
        realm = parse_url(text)
        if realm.scheme != "https" and self.base.scheme != "http":
            raise UrlRefused(f"the realm {realm.public} is not https")
        if self._is_listed(realm) or same_site(realm.host, self.base.host):
            return realm
        if self.internal and looks_internal(self.base.host) and _is_internal_literal(realm.host):
            return realm
        raise UrlRefused(f"the realm {realm.public} is neither on the site of {self.base.host} nor allowed for it")

    def _is_listed(self, realm: Url) -> bool:
        return not self.allowed.isdisjoint(
            {realm.host, f"{realm.host}:{realm.port}", f"{realm.scheme}://{realm.authority}"}
        )

    def next_hop(self, current: Url, location: str | None, hops: int) -> Url:
        """The URL that a redirect leads to, after `hops` earlier ones. It may be relative. Raises `UrlRefused`."""
        if hops >= MOST_HOPS:
            raise UrlRefused(f"more than {MOST_HOPS} redirects in a row")
        if not location:
            raise UrlRefused("a redirect without Location")
        # blanks are invalid in a URL, but some servers send them and every client accepts them (Go's net/url; RFC 3986,
        # appendix C)
        location = location.strip(" ").replace(" ", "%20")
        if not _CLEAN.fullmatch(location):
            raise UrlRefused("a redirect to an invalid URL")
        entered = parse_url(_absolute(current, location))
        if current.scheme == "https" and entered.scheme != "https":
            raise UrlRefused(f"a redirect from https to {entered.public}")
        return entered

    def permits(self, host: str, address: str) -> bool:
        """Whether the mirror may connect to `host` at `address`, the literal address that it resolved to."""
        resolved = parse_address(address.partition("%")[0])
        if resolved is None or _is_never(resolved):
            return False
        if not _is_internal(resolved) or self.internal:
            return True
        # the configured URL contains this very address
        return host == self.base.host and parse_address(host) == resolved


def _is_internal_literal(host: str) -> bool:
    address = parse_address(host)
    return host == "localhost" or (address is not None and _is_internal(address) and not _is_never(address))


def _absolute(current: Url, location: str) -> str:
    """`Location` as an absolute URL (RFC 9110, 10.2.2). The parts that it has are not changed."""
    if _HAS_SCHEME.match(location):
        return location
    if location.startswith("//"):
        return f"{current.scheme}:{location}"
    origin = f"{current.scheme}://{current.authority}"
    return origin + location if location.startswith("/") else urljoin(str(current), location)
