"""One name for several registries: who answers, with what rights, and where pushes go."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from mirror.oci.digest import Digest
from tests.support.fake_registry import FakeRegistry, status
from tests.support.live_mirror import LiveMirror
from tests.support.push_client import OPEN, PushClient, hosting_mirror

ALL: Final = {"name": "all", "members": ["corp", "docker.io", "quay.io"], "writable": "corp"}


@asynccontextmanager
async def _virtual_mirror(
    root: Path,
    hub: FakeRegistry,
    quay: FakeRegistry,
    *,
    virtual: Mapping[str, Any] = ALL,
    rules: Sequence[Mapping[str, Any]] = (OPEN,),
    **more: Any,
) -> AsyncIterator[LiveMirror]:
    """Hosts `corp`, mirrors two upstreams, and has the virtual registry `all`."""
    upstreams = {"docker.io": hub.url, "quay.io": quay.url}
    async with hosting_mirror(root, rules=rules, upstreams=upstreams, virtual=[dict(virtual)], **more) as mirror:
        yield mirror


async def test_who_answers(tmp_path: Path) -> None:
    """The hosted member alone for a name that it has; else the upstreams in order, and only a 404 leads to the next."""
    with FakeRegistry() as hub, FakeRegistry() as quay:
        hub.add_image("team/app", "v1", [b"the hub's"])
        hub.add_image("team/app", "v2", [b"the hub's"])
        both = hub.add_image("org/both", "v1", [b"from the hub"])
        quay.add_image("org/both", "v1", [b"from quay"])
        later = quay.add_image("org/both", "v2", [b"only at quay"])
        only = quay.add_image("org/only", "v1", [b"only there"])
        async with _virtual_mirror(tmp_path, hub, quay) as mirror:
            ours = Digest.of(await PushClient(mirror, "corp/team/app").push_image("v1", b"ours"))
            for method in ("GET", "HEAD"):
                answer = await mirror.ask("/v2/all/team/app/manifests/v1", method=method)
                assert answer.headers["Docker-Content-Digest"] == str(ours)
                assert (await mirror.ask("/v2/all/team/app/manifests/v2", method=method)).status == 404
                for name, tag, digest in (("both", "v1", both), ("both", "v2", later), ("only", "v1", only)):
                    answer = await mirror.ask(f"/v2/all/org/{name}/manifests/{tag}", method=method)
                    assert answer.headers["Docker-Content-Digest"] == str(digest)
            assert not [request for request in hub.requests if "team/app" in request.target]
            for digest, layer in ((both, b"from the hub"), (later, b"only at quay"), (only, b"only there")):
                name = "only" if digest == only else "both"
                assert (await mirror.ask(f"/v2/all/org/{name}/manifests/{digest}")).status == 200
                assert (await mirror.ask(f"/v2/all/org/{name}/blobs/{Digest.of(layer)}")).body == layer
            assert (await mirror.ask("/v2/all/org/neither/manifests/v1")).status == 404


async def test_an_error_is_no_absence(tmp_path: Path) -> None:
    """For a tag, a member that cannot answer is the answer; for a digest, another member may have the content."""
    with FakeRegistry() as hub, FakeRegistry() as quay:
        digest = quay.add_image("org/app", "v1", [b"a layer"])
        async with _virtual_mirror(tmp_path, hub, quay) as mirror:
            for code in (500, 503, 429, 502):
                hub.fail("manifests", status(code), times=1000)
                assert (await mirror.ask("/v2/all/org/app/manifests/v1")).status in (429, 502, 503)
                assert (await mirror.ask(f"/v2/all/org/app/manifests/{digest}")).status == 200
                absent = Digest.of(b"absent")
                assert (await mirror.ask(f"/v2/all/org/app/manifests/{absent}")).status in (429, 502, 503)
                hub.heal()
                mirror.clock.forward(60)
            assert (await mirror.ask("/v2/all/org/app/manifests/v1")).status == 200
