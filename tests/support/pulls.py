"""The checks of every client's pull, so that the clients' tests differ only in how they pull and inspect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tests.support.images import Image, Published

#: The images that every client pulls, by their names in `images.publish_all`.
ALL = ("oci", "schema2", "index", "list", "many", "big", "umoci")

#: Clients fall back to the real registry when a mirror fails. Port 9 (discard) refuses: what works came by the mirror.
OFFLINE = {
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


def wanted_blobs(image: Published, *, every_platform: bool = False) -> dict[str, int]:
    """The blobs that a pull has to fetch: size in bytes by digest."""
    images: Iterable[Image] = image.images if every_platform else [image.native]
    return {digest: size for one in images for digest, size in one.blobs.items()}


def expect_each_once(sent: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    """In a cold pull, upstream is asked for these blobs and no others, and sends each byte once. Both arguments are
    bytes by digest. A large blob may come in several parts.
    """
    assert sent == wanted
