"""Somebody with a repository of their own on a registry, who wants a layer of another's, whose digest they know."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import live_mirror
from tests.support.registry_process import RegistryProcess

_SECRET, _OWN, _CONFIG = b"a layer of somebody else" * 100, b"own", b"{}"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"


def _pointer(content: bytes, kind: str = _LAYER) -> str:
    return json.dumps({"mediaType": kind, "digest": str(Digest.of(content)), "size": len(content)})


def _manifest(layers: str) -> bytes:
    text = (
        f'{{"schemaVersion": 2, "mediaType": "{OCI_MANIFEST}", "config": {_pointer(_CONFIG, _CONFIG_TYPE)}, {layers}}}'
    )
    return text.encode()


_TRICKS = {
    "a twin": f'"layers": [{_pointer(_SECRET)}], "Layers": [{_pointer(_OWN)}]',
    "another letter": f'"layers": [{_pointer(_SECRET)}], "layer\u017f": [{_pointer(_OWN)}]',
    "twice": f'"layers": [{_pointer(_OWN)}], "layers": [{_pointer(_OWN)}]',
    "within a pointer": f'"layers": [{_pointer(_SECRET)[:-1]}, "Digest": "{Digest.of(_OWN)}", "Size": {len(_OWN)}}}]',
    "blobs": f'"layers": [{_pointer(_OWN)}], "blobs": [{_pointer(_SECRET)}]',
    "fsLayers": f'"layers": [{_pointer(_OWN)}], "fsLayers": [{{"blobSum": "{Digest.of(_SECRET)}"}}]',
}


class _Pusher:
    """Pushes to a registry as clients do."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=60)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def blob(self, name: str, content: bytes) -> None:
        """Monolithic."""
        where = self._ask("POST", f"/v2/{name}/blobs/uploads/").getheader("Location") or ""
        path = where.partition("://")[2].partition("/")[2]
        joint = "&" if "?" in path else "?"
        answer = self._ask("PUT", f"/{path}{joint}digest={Digest.of(content)}", content, "application/octet-stream")
        assert answer.status == 201

    def manifest(self, name: str, tag: str, content: bytes) -> int:
        """The registry's answer."""
        return self._ask("PUT", f"/v2/{name}/manifests/{tag}", content, OCI_MANIFEST).status

    def _ask(self, method: str, path: str, body: bytes = b"", kind: str = "") -> http.client.HTTPResponse:
        self._connection.request(method, path, body, {"Content-Type": kind} if kind else {})
        answer = self._connection.getresponse()
        answer.read()
        return answer


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry that looks for every blob of a manifest, with what mallory has pushed there by each trick."""
    with RegistryProcess(tmp_path_factory.mktemp("registry") / "data") as registry:
        with closing(_Pusher(registry.address)) as pusher:
            for name, layer in (("acme/secret", _SECRET), ("mallory/own", _OWN)):
                pusher.blob(name, layer)
                pusher.blob(name, _CONFIG)
            assert pusher.manifest("acme/secret", "1.0", _manifest(f'"layers": [{_pointer(_SECRET)}]')) == 201
            assert pusher.manifest("mallory/own", "plain", _manifest(f'"layers": [{_pointer(_SECRET)}]')) == 400
            for number, layers in enumerate(_TRICKS.values()):
                assert pusher.manifest("mallory/own", f"trick{number}", _manifest(layers)) == 201
        yield registry


@pytest.mark.parametrize("number", range(len(_TRICKS)), ids=list(_TRICKS))
async def test_a_manifest_that_a_registry_reads_otherwise(number: int, honest: RegistryProcess, tmp_path: Path) -> None:
    """Layers that an honest registry did not check, because it reads the manifest differently, are not granted here."""
    layer = Digest.of(_SECRET)
    async with live_mirror(tmp_path, {"docker.io": honest.url}) as mirror:
        for target in ("manifests/1.0", f"blobs/{layer}"):
            assert (await mirror.ask(f"/v2/acme/secret/{target}")).status == 200
        assert (await mirror.ask(f"/v2/mallory/own/manifests/trick{number}")).status in (200, 502)
        for method in ("HEAD", "GET"):
            assert (await mirror.ask(f"/v2/mallory/own/blobs/{layer}", method=method)).status == 404
    async with live_mirror(tmp_path, {"docker.io": honest.url}, offline=True) as mirror:
        assert (await mirror.ask(f"/v2/acme/secret/blobs/{layer}")).status == 200
        assert (await mirror.ask(f"/v2/mallory/own/blobs/{layer}")).status == 404


async def test_denied_content_under_another_digest(registry: FakeRegistry, tmp_path: Path) -> None:
    """Content that is denied by its sha256 is also denied if it is requested by its sha512."""
    body = registry.manifest("acme/bad", registry.add_image("acme/bad", "1.0", [_SECRET]))
    other = registry.add_manifest("acme/bad", body, OCI_MANIFEST, "2.0", algorithm="sha512")
    content = {"deny": [f"**@{Digest.of(body)}"]}
    async with live_mirror(tmp_path, {"docker.io": registry.url}, content=content) as mirror:
        for reference in (Digest.of(body), "1.0", other, "2.0"):
            answer = await mirror.ask(f"/v2/acme/bad/manifests/{reference}")
            assert (answer.status, answer.code) == (403, "DENIED"), reference


@pytest.mark.parametrize("stated", ["by the body", "by the header"])
async def test_80_a_manifest_that_is_a_page(stated: str, registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 80: no client is served a page from the mirror's own origin, by a manifest or by a descriptor of one."""
    page = "<script>fetch('/v2/_catalog')</script>"
    kind = {"mediaType": "text/html"} if stated == "by the body" else {}
    body = json.dumps({"schemaVersion": 2, **kind, "layers": [], "annotations": {"page": page}}).encode()
    digest = registry.add_manifest("mallory/own", body, "text/html", "1.0")
    subject = registry.add_image("mallory/own", "2.0", [_OWN])
    pointer = {"mediaType": OCI_MANIFEST, "digest": str(subject), "size": 1}
    attached = json.dumps({"schemaVersion": 2, "mediaType": "text/html", "layers": [], "subject": pointer}).encode()
    registry.add_manifest("mallory/own", attached, "text/html")
    async with live_mirror(tmp_path, {"docker.io": registry.url}) as mirror:
        for reference in ("1.0", digest):
            for method in ("HEAD", "GET", "HEAD"):
                answer = await mirror.ask(f"/v2/mallory/own/manifests/{reference}", method=method)
                assert answer.headers["Content-Type"].startswith("application/")
                assert answer.status == (502 if stated == "by the body" else 200)
        assert (await mirror.ask(f"/v2/mallory/own/referrers/{subject}")).json["manifests"] == []


async def test_a_large_layer_declared_foreign(registry: FakeRegistry, tmp_path: Path) -> None:
    """With `urls` it is had from here all the same: it counts for the largest size."""
    layer = b"x" * 100_000
    for content in (layer, _CONFIG):
        registry.add_blob("mallory/own", content)
    body = _manifest(f'"layers": [{_pointer(layer)[:-1]}, "urls": ["https://elsewhere.example"]}}]')
    registry.add_manifest("mallory/own", body, OCI_MANIFEST, "1.0")
    route = [{"match": "**", "max_size": "50KB"}]
    async with live_mirror(tmp_path, {"docker.io": registry.url}, route=route) as mirror:
        answer = await mirror.ask("/v2/mallory/own/manifests/1.0")
        assert (answer.status, answer.code) == (403, "DENIED")


@pytest.mark.parametrize("kind", ["application/vnd.example.unknown+json", OCI_MANIFEST.upper(), OCI_INDEX])
async def test_a_manifest_of_a_type_that_registries_do_not_look_into(
    kind: str, registry: FakeRegistry, tmp_path: Path
) -> None:
    """Some take it as it is: it opens nothing; what is theirs they can still have, because upstream is asked."""
    registry.add_image("acme/secret", "1.0", [_SECRET])
    own = registry.add_blob("mallory/own", _OWN)
    named = "manifests" if kind == OCI_INDEX else "layers"
    blobs = f"{_pointer(_SECRET)}, {_pointer(_OWN)}"
    body = f'{{"schemaVersion": 2, "mediaType": "{kind}", "{named}": [], "blobs": [{blobs}]}}'
    registry.add_manifest("mallory/own", body.encode(), kind, "1.0")
    async with live_mirror(tmp_path, {"docker.io": registry.url}) as mirror:
        assert (await mirror.ask(f"/v2/acme/secret/blobs/{Digest.of(_SECRET)}")).status == 200
        assert (await mirror.ask("/v2/mallory/own/manifests/1.0")).status == 200
        assert (await mirror.ask(f"/v2/mallory/own/blobs/{Digest.of(_SECRET)}")).status == 404
        assert (await mirror.ask(f"/v2/mallory/own/blobs/{own}")).status == 200
