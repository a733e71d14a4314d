"""Whether a system gives the right bytes, outside of every measurement."""

from __future__ import annotations

import hashlib
import http.client
import ssl

from bench.content import MANIFEST_SIZE, MANIFEST_TYPE, Image
from bench.process import BenchFailed


def check_image(port: int, image: Image, *, tls: bool = False) -> None:
    """Pull an image whole as a client does, cold or warm, and compare digests. Raises `BenchFailed`."""
    pull_small(port, image, tls=tls)
    _expect(port, image.layer_path, image.layer, image.size, tls)
    connection = _connected(port, tls)
    connection.request("HEAD", image.layer_path)
    answer = connection.getresponse()
    if answer.status != 200 or answer.headers["Content-Length"] != str(image.size):
        raise BenchFailed(f"HEAD {image.layer_path}: {answer.status} {answer.headers}")
    connection.close()


def pull_small(port: int, image: Image, *, tls: bool = False) -> None:
    """All of an image but its layer: what a client has asked for before it asks for that. Raises `BenchFailed`."""
    _expect(port, image.manifest_path("latest"), image.manifest, MANIFEST_SIZE, tls)
    _expect(port, image.manifest_path(image.manifest), image.manifest, MANIFEST_SIZE, tls)
    _expect(port, image.blob_path(image.config), image.config, 1024, tls)


def _connected(port: int, tls: bool) -> http.client.HTTPConnection:
    if not tls:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    # whom it speaks to is known: it has started the server itself
    trusting = ssl._create_unverified_context()
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=120, context=trusting)


def _expect(port: int, path: str, digest: str, size: int, tls: bool) -> None:
    connection = _connected(port, tls)
    connection.request("GET", path, headers={"Accept": f"{MANIFEST_TYPE}, */*"})
    answer = connection.getresponse()
    hasher, count = hashlib.sha256(), 0
    while chunk := answer.read(1 << 20):
        hasher.update(chunk)
        count += len(chunk)
    connection.close()
    if answer.status != 200 or count != size or f"sha256:{hasher.hexdigest()}" != digest:
        raise BenchFailed(f"{path}: status {answer.status}, {count} of {size} bytes, sha256:{hasher.hexdigest()}")
