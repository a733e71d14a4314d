"""Checks of single values. Each function takes a value as it is written and returns it, or raises `ValueError`."""

from __future__ import annotations

import ipaddress
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
)

from mirror.errors import RequestError
from mirror.oci.reference import check_name, check_registry, check_tag
from mirror.policy.clients.networks import UNIX
from mirror.policy.content_rules import ImagePattern
from mirror.policy.events.changes import TYPES
from mirror.policy.events.subscriptions import matching_types
from mirror.policy.pins import PinRule
from mirror.policy.upstream.url_bounds import UrlRefused, parse_url
from mirror.upstream.http.proxies import Proxies
from mirror.values.bucket_address import parse_bucket
from mirror.values.durations import parse_duration
from mirror.values.sizes import parse_capacity, parse_size

T = TypeVar("T")

#: The beginning of a list in JSON, or of its first text: an address such as `[::1]:5000` has no quotes.
_QUOTED: Final = re.compile(r"""[\[\s]*["']""")
_NUMBER: Final = re.compile(r"\s*[0-9]+(\.[0-9]+)?\s*")


def default_root() -> Path:
    """`/var/lib/mirror` if this process may write there, else a folder in the user's data directory."""
    system = Path("/var/lib/mirror")
    if os.access(system if system.exists() else system.parent, os.W_OK):
        return system
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "mirror"


def blocked_timeout(seconds: float) -> float:
    """Accepts 0 (never) and 2 s or more. After less time, a worker that is merely busy would be replaced."""
    if 0 < seconds < 2:
        raise ValueError(f"{seconds:g} s is too short: busy workers would be killed; set at least 2s, or 0")
    return seconds


def network(text: str) -> str:
    """Accepts an address, or a network such as `10.0.0.0/8`."""
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError(f"{text[:80]!r} is neither an address nor a network such as 10.0.0.0/8: {error}") from error
    return text


def peer(text: str) -> str:
    """Accepts what `network` accepts, and `unix`."""
    return text if text == UNIX else network(text)


def listen(text: str) -> str:
    if text.startswith("unix:"):
        if not text.removeprefix("unix:").startswith("/"):
            raise ValueError(f"the path of a unix socket must be absolute: {text!r}")
        return text
    host, colon, port = text.rpartition(":")
    if port.isdigit() and int(port) > 65535:
        raise ValueError(f"{port} is no port: the highest is 65535")
    if port.isdigit() and not host:
        raise ValueError(f"no address: {text!r}; all addresses of this machine are 0.0.0.0:{port}")
    if not colon or not port.isdigit():
        raise ValueError(f"neither host:port nor unix:/path: {text!r}")
    return text


def split(value: object) -> object:
    """The parts of a comma-separated string, since `a,b` in an environment variable is easier to write than JSON; none
    of an empty one. Anything else is returned as it is. Raises `ValueError` for text that was meant as JSON.
    """
    if not isinstance(value, str):
        return value
    if _QUOTED.match(value):
        # its parts, with quotes, would be values that match nothing
        raise ValueError('neither a list in JSON, such as ["a", "b"], nor values with commas between them')
    return [part.strip() for part in value.split(",")] if value.strip() else []


def admin_listen(text: str) -> str:
    return listen(text) if text else text


def is_loopback(address: str) -> bool:
    """True if `host:port` can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def capacity(text: str) -> str:
    parse_capacity(text)
    return text


def seconds(written: Any) -> float:
    """The duration in seconds. A number may be text, as everything is in the environment."""
    return parse_duration(float(written) if isinstance(written, str) and _NUMBER.fullmatch(written) else written)


def as_text(written: object) -> object:
    """A whole number as text: `0` is a size, with and without quotes. Anything else is returned as it is."""
    return str(written) if isinstance(written, int) and not isinstance(written, bool) else written


def size(text: str) -> str:
    parse_size(text)
    return text


def bucket(text: str) -> str:
    """Accepts `s3://name/prefix` and the like."""
    return str(parse_bucket(text))


def image_pattern(text: str) -> str:
    ImagePattern(text)
    name = text.partition("@")[0]
    _check_matches(name if "/" in name else name.partition(":")[0], text)
    return text


def registry(name: str) -> str:
    return ("*." if name.startswith("*.") else "") + alias(name.removeprefix("*."))


def alias(name: str) -> str:
    try:
        return check_registry(name)
    except RequestError as error:
        raise ValueError(str(error)) from error


def host(name: str) -> str:
    """Accepts the value of a `Host` header: a name or address, with or without port, in any case, IPv6 in brackets."""
    try:
        check_registry(re.sub(r"\A\[[0-9a-f:.]+\]", "address", name.lower()))
    except RequestError as error:
        raise ValueError(f"not a host name, with or without port: {name[:80]!r}") from error
    return name


def token_host(name: str) -> str:
    """Accepts a host, host:port or an origin, the forms that `policy.realms` compares."""
    host(re.sub(r"\Ahttps?://", "", name.lower()).rstrip("/"))
    return name


def issuer_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,100}", text):
        raise ValueError(f"{text[:80]!r}: letters, digits and . _ - only")
    return text


def route_pattern(text: str) -> str:
    _check_matches(text, text)
    return text


def _check_matches(name: str, text: str) -> None:
    """Raises `ValueError` if `name` can be no pattern of `registry/name`; `text` is all that was written."""
    if "/" not in name and "**" not in name:
        raise ValueError(f"{text!r} matches nothing: write registry/name (* matches within one part, ** anything)")


def name_pattern(text: str) -> str:
    """Accepts a pattern of a repository's name within its registry, such as `team-a/**`."""
    literal = re.sub(r"[*?]", "a", text)
    try:
        check_name(literal)
    except RequestError as error:
        raise ValueError(
            f"{text[:80]!r} matches no repository: write a name within the registry, such as team-a/**"
        ) from error
    return text


def tag_pattern(text: str) -> str:
    """Accepts a pattern of tags, such as `v*`."""
    try:
        check_tag(re.sub(r"[*?]", "a", text))
    except RequestError as error:
        raise ValueError(f"{text[:80]!r} matches no tag: write for example v* or 1.?.*") from error
    return text


def event_pattern(text: str) -> str:
    """Accepts a pattern that matches at least one type of events."""
    if not matching_types(text):
        raise ValueError(f"{text[:80]!r} matches no type of events: write one of {', '.join(TYPES)}, or mirror.image.*")
    return text


def event_url(text: str) -> str:
    """Accepts the URL of an endpoint, which may have a query. The message does not quote it: it may be a secret."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("url: not an http or https URL")
    if parts.username or parts.password or parts.fragment:
        raise ValueError("url: contains a user, a password or a fragment; sign with secret_file instead")
    try:
        parse_url(text)
    except UrlRefused:
        raise ValueError("url: not an http or https URL that may be used") from None
    return text


def url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("not an http or https URL")
    if parts.username or parts.password:
        raise ValueError("contains a user or password; give them in settings of their own")
    if parts.query or parts.fragment:
        raise ValueError("contains a query or fragment")
    try:
        parse_url(text)
    except UrlRefused as error:
        raise ValueError(f"not an http or https URL: {error}") from error
    return text.rstrip("/")


def collector(text: str) -> str:
    if not text:
        return text
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        raise ValueError("needs libraries that are not installed: pip install 'registry-mirror[otel]'")
    return url(text)


def proxy(text: str) -> str:
    try:
        Proxies.given(text)
    except (UrlRefused, ValueError) as error:
        raise ValueError("proxy is neither http://host:port nor env") from error
    return text


def rate(text: str) -> str:
    if not parse_size(text):
        raise ValueError("must be more than 0, for example 20MB")
    return text


def pin_pattern(text: str) -> str:
    PinRule(text)
    return text


#: A duration: `1h30m`, or a number of seconds.
Seconds = Annotated[float, BeforeValidator(seconds)]
#: Sizes in bytes: `20GiB`, or a number of bytes. A rate is more than 0; a capacity may be a share of the disk.
Size = Annotated[str, BeforeValidator(as_text), AfterValidator(size)]
Rate = Annotated[str, BeforeValidator(as_text), AfterValidator(rate)]
CapacityText = Annotated[str, BeforeValidator(as_text), AfterValidator(capacity)]
#: A list that the environment sets, too: as JSON, or with commas.
Listed = Annotated[list[T], BeforeValidator(split)]
