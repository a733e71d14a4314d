"""A sealed mirror hosts images: no upstream is no reason to refuse a push, and a hosted name is no miss to report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.store.local.miss_file import LocalMisses
from tests.support.live_mirror import LiveMirror, live_mirror

_RULE: Final = {
    "effect": "allow",
    "callers": ["*"],
    "actions": ["pull", "write", "delete"],
    "repositories": ["corp/**"],
}
_CONFIG: Final = b"{}"


async def _push(mirror: LiveMirror, name: str, tag: str) -> bytes:
    """Push an image without layers; its manifest."""
    upload = f"/v2/{name}/blobs/uploads/?digest={Digest.of(_CONFIG)}"
    async with mirror.session.post(f"http://127.0.0.1:{mirror.port}{upload}", data=_CONFIG) as answer:
        assert answer.status == 201, await answer.text()
    config = {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": str(Digest.of(_CONFIG)),
        "size": len(_CONFIG),
    }
    manifest = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": []}).encode()
    url = f"http://127.0.0.1:{mirror.port}/v2/{name}/manifests/{tag}"
    async with mirror.session.put(url, data=manifest, headers={"Content-Type": OCI_MANIFEST}) as answer:
        assert answer.status == 201, await answer.text()
    return manifest


async def test_a_sealed_mirror_takes_pushes(tmp_path: Path) -> None:
    """By the name in the path, and by `Host`; what is not there is a plain 404, which `mirror misses` does not list."""
    async with live_mirror(
        tmp_path / "store",
        {"docker.io": "http://127.0.0.1:9"},
        offline=True,
        hosted=[{"name": "corp", "host_headers": ["registry.corp.example"]}],
        access={"rule": [_RULE]},
    ) as mirror:
        manifest = await _push(mirror, "corp/team/app", "v1")
        assert (await mirror.ask("/v2/corp/team/app/manifests/v1")).body == manifest
        by_host = {"Host": "registry.corp.example"}
        assert (await mirror.ask("/v2/team/app/manifests/v1", headers=by_host)).body == manifest
        assert (await mirror.ask("/v2/corp/team/app/manifests/v2")).code == "MANIFEST_UNKNOWN"
        assert (await mirror.ask("/v2/library/app/manifests/v1")).status == 404
        await mirror.app.shared.misses.flush()
        assert {str(miss.repo) for miss in LocalMisses(mirror.app.storage.layout).read()} == {"docker.io/library/app"}
