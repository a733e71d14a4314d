"""The web page: four files of the package, and the headers they are served with.

The page is only a client of the admin API: a caller who may use that API may load the page. It loads nothing from other
sites, runs no script but its own, and stores nothing in the browser.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from mirror.server.registry.responses import SERVER

_HEADERS: Final = {
    **SERVER,
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # a newer mirror has another page: the browser asks again each time, but an unchanged file is not sent again
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file's content, its entity tag, and all its headers."""

    content: bytes
    tag: str
    headers: Mapping[str, str]


def _asset(name: str, media_type: str) -> Asset:
    content = files("mirror.server").joinpath("assets", name).read_bytes()
    tag = hashlib.sha256(content).hexdigest()[:32]
    return Asset(content, tag, {**_HEADERS, "Content-Type": f"{media_type}; charset=utf-8", "ETag": f'"{tag}"'})


#: The assets by request path.
ASSETS: Final = {
    "/": _asset("index.html", "text/html"),
    "/page.css": _asset("page.css", "text/css"),
    "/hosted.js": _asset("hosted.js", "text/javascript"),
    "/page.js": _asset("page.js", "text/javascript"),
}
