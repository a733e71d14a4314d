"""A request to the distribution API as one checked value. Code that gets it never parses a path again.

The path is decoded once and must then match the grammar. So escapes that decode to a slash, a dot segment or a NUL are
refused. Nothing decodes the path a second time, which could bring them back (RFC 3986, 2.4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import parse_qsl, unquote

from mirror.errors import NameInvalid, NotServed, PageInvalid, TooManyTags, UploadUnknown
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, check_tag, parse_reference

#: The most tags of one manifest PUT. The specification asks for at least 10.
MOST_TAGS: Final = 32
#: The most query parameters of one request.
_MOST_FIELDS: Final = 64
_SESSION: Final = re.compile(r"[A-Za-z0-9_.-]{1,200}")


class Kind(Enum):
    """The resources of the API (distribution-spec, "Endpoints")."""

    BASE = "base"
    MANIFEST = "manifest"
    BLOB = "blob"
    TAGS = "tags"
    REFERRERS = "referrers"
    UPLOAD = "upload"
    #: Part of the Docker registry API, not of the OCI specification.
    CATALOG = "catalog"


@dataclass(frozen=True, slots=True)
class RegistryRequest:
    """A parsed request. `name` is the part of the path before the resource; it may still begin with a registry.

    `session` is the id of an upload session; empty: a new one. `tags` are the `tag` parameters of a request for a
    manifest.
    """

    kind: Kind
    name: str = ""
    reference: Reference | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    session: str = ""
    tags: tuple[str, ...] = ()

    @property
    def digest(self) -> Digest:
        """The digest of a request for a blob or referrers. Raises `TypeError` if the reference is not a digest."""
        if not isinstance(self.reference, Digest):
            raise TypeError(f"a {self.kind.value} request has no digest")
        return self.reference


def parse_request(target: str) -> RegistryRequest:
    """Parse a request target (path and query, not decoded).

    The last two parts of the path name the resource, and everything before them is the repository's name. So a
    repository may be called `blobs/uploads` or `tags/list`, and no request has two meanings.

    Raises `NotServed` for a path outside the API, `NameInvalid`, `TagInvalid`, `DigestInvalid`, `UploadUnknown` for a
    session that cannot exist, `TooManyTags`.
    """
    path, _, raw_query = target.partition("?")
    if not path.startswith("/v2"):
        raise NotServed(f"not a path of this API: {path[:120]!r}")
    if "%" in path:
        path = unquote(path)
    fields = _fields(raw_query) if raw_query else ()
    # the first of a repeated parameter counts
    query = dict(reversed(fields))
    if path in ("/v2", "/v2/"):
        return RegistryRequest(Kind.BASE, query=query)
    if path == "/v2/_catalog":
        return RegistryRequest(Kind.CATALOG, query=query)
    if not path.startswith("/v2/"):
        raise NotServed(f"not a path of this API: {path[:120]!r}")
    name, _, last = path[4:].rpartition("/")
    before, _, resource = name.rpartition("/")
    if (not before and resource in ("manifests", "blobs", "referrers", "tags")) or name == "blobs/uploads":
        raise NameInvalid("a repository name is missing")
    match resource:
        case "manifests":
            tags = tuple(check_tag(value) for key, value in fields if key == "tag") if fields else ()
            if len(tags) > MOST_TAGS:
                raise TooManyTags(f"{len(tags)} tags, more than the {MOST_TAGS} that one request may have")
            return RegistryRequest(Kind.MANIFEST, before, parse_reference(last), query, tags=tags)
        case "blobs" if last == "uploads":
            return RegistryRequest(Kind.UPLOAD, before, None, query)
        case "blobs":
            return RegistryRequest(Kind.BLOB, before, Digest.parse(last), query)
        case "uploads" if before.endswith("/blobs"):
            if last and not _SESSION.fullmatch(last):
                raise UploadUnknown("no such upload session")
            return RegistryRequest(Kind.UPLOAD, before.removesuffix("/blobs"), None, query, last)
        case "referrers":
            return RegistryRequest(Kind.REFERRERS, before, Digest.parse(last), query)
        case "tags" if last == "list":
            return RegistryRequest(Kind.TAGS, before, None, query)
    raise NotServed(f"not a path of this API: {path[:120]!r}")


def _fields(query: str) -> list[tuple[str, str]]:
    try:
        fields = parse_qsl(query, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
        # referrers without an artifact type can be asked for; other parameters without a value say nothing
        return [(key, value) for key, value in fields if value or key == "artifactType"]
    except ValueError as error:
        if query.count("tag=") > MOST_TAGS:
            raise TooManyTags(f"more than the {MOST_TAGS} tags that one request may have") from error
        raise NotServed("too many query parameters") from error


def parse_page(query: Mapping[str, str], *, most: int) -> tuple[int, str]:
    """The parameters `n` and `last` of a list request. `n` is at most `most`, which is also its default.

    Raises `PageInvalid`.
    """
    text = query.get("n")
    if text is None:
        return most, query.get("last", "")
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise PageInvalid(f"n is not a number: {text[:40]!r}")
    return min(int(text), most), query.get("last", "")
