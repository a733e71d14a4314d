"""Copies from a mirror to other registries: another mirror, Debian's docker-registry, and one that fails on demand."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import Denied, RequestError
from mirror.oci.attachments import referrers_tag, signature_tag
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, OCI_MANIFEST
from mirror.policy.access_rules import Action
from tests.support.copies import Rights, copy, only
from tests.support.live_mirror import LiveMirror, live_mirror, noise
from tests.support.push_client import OPEN, PushClient, descriptor, hosting_mirror, index
from tests.support.push_target import PushTarget, answers, cut
from tests.support.registry_process import RegistryProcess

_LAYER = noise(2_000_000, 11)


def _to(url: str, **more: Any) -> dict[str, Any]:
    return {"docker.io": "http://127.0.0.1:9", "other.example.com": {"url": url, "push": True, **more}}


@pytest.fixture
async def mirror(tmp_path: Path, target: PushTarget) -> AsyncIterator[LiveMirror]:
    """A mirror that may push there."""
    async with hosting_mirror(tmp_path, upstreams=_to(target.url)) as running:
        yield running


async def _signed_index(client: PushClient) -> tuple[bytes, bytes, bytes]:
    """An index of two platforms with a referrer and cosign's signature."""
    children = [await client.make_image(_LAYER, noise(2000, seed)) for seed in (1, 2)]
    for child in children:
        await client.put(child, Digest.of(child))
    whole = index(*children)
    await client.put(whole, "v1")
    artifact = await client.make_image(
        b"an SBOM", artifactType="application/vnd.sbom", subject=descriptor(whole, OCI_INDEX)
    )
    await client.put(artifact, Digest.of(artifact))
    signature = await client.push_image(signature_tag(Digest.of(whole)), b"a signature")
    return whole, artifact, signature


async def test_to_another_mirror(tmp_path: Path) -> None:
    """Platforms, referrers and signatures arrive, and a second repository there gets the layers by mounts."""
    async with hosting_mirror(tmp_path / "b") as other:
        upstreams = _to(f"http://127.0.0.1:{other.port}")
        async with hosting_mirror(tmp_path / "a", upstreams=upstreams) as mirror:
            whole, artifact, signature = await _signed_index(PushClient(mirror, "corp/app"))
            result = only(await copy(mirror, "corp/app:v1", "other.example.com/corp/app"))
            assert result["state"] == "copied", result
            assert result["bytes"] >= len(_LAYER)
            there = PushClient(other, "corp/app")
            assert (await there.manifest("v1")).body == whole
            assert (await there.manifest(signature_tag(Digest.of(whole)))).body == signature
            listed = (await there.referrers(Digest.of(whole))).json["manifests"]
            assert [entry["digest"] for entry in listed] == [str(Digest.of(artifact))]
            assert (await there.blob(Digest.of(_LAYER))).body == _LAYER
            second = only(await copy(mirror, "corp/app:v1", "other.example.com/corp/second"))
            assert (second["state"], second["bytes"]) == ("copied", 0)
            assert (await PushClient(other, "corp/second").blob(Digest.of(_LAYER))).body == _LAYER
            again = only(await copy(mirror, "corp/app:v1", "other.example.com/corp/app"))
            assert again["state"] == "same"


async def test_to_docker_registry(tmp_path: Path) -> None:
    """It has no referrers API, so it gets the list of referrers under the tag that clients look for."""
    with RegistryProcess(tmp_path / "registry") as registry:
        async with hosting_mirror(tmp_path / "a", upstreams=_to(registry.url)) as mirror:
            client = PushClient(mirror, "corp/app")
            whole, artifact, signature = await _signed_index(client)
            result = only(await copy(mirror, "corp/app:v1", "other.example.com/team/app:stable"))
            assert result["state"] == "copied", result

            def get(path: str, kind: str = OCI_INDEX) -> bytes:
                asked = urllib.request.Request(f"{registry.url}/v2/team/app/{path}", headers={"Accept": kind})
                with urllib.request.urlopen(asked) as answer:
                    return bytes(answer.read())

            assert get("manifests/stable") == whole
            assert get(f"manifests/{signature_tag(Digest.of(whole))}", OCI_MANIFEST) == signature
            assert get(f"manifests/{Digest.of(artifact)}", OCI_MANIFEST) == artifact
            assert get(f"blobs/{Digest.of(_LAYER)}", "*/*") == _LAYER
            listed = json.loads(get(f"manifests/{referrers_tag(Digest.of(whole))}"))["manifests"]
            assert [(entry["digest"], entry["artifactType"]) for entry in listed] == [
                (str(Digest.of(artifact)), "application/vnd.sbom")
            ]
            # another one later: the list is completed, not replaced
            more = await client.make_image(
                b"more", artifactType="application/vnd.more", subject=descriptor(whole, OCI_INDEX)
            )
            await client.put(more, Digest.of(more))
            assert only(await copy(mirror, "corp/app:v1", "other.example.com/team/app:stable"))["referrers"] == 1
            listed = json.loads(get(f"manifests/{referrers_tag(Digest.of(whole))}"))["manifests"]
            assert {entry["digest"] for entry in listed} == {str(Digest.of(artifact)), str(Digest.of(more))}


async def test_the_tag_comes_last(mirror: LiveMirror, target: PushTarget) -> None:
    """Whatever fails before, the tag is not there; the next copy sends only what is missing."""
    whole, _, _ = await _signed_index(PushClient(mirror, "corp/app"))
    target.fail("manifest", answers(400, "MANIFEST_INVALID"))
    failed = only(await copy(mirror, "corp/app:v1", "other.example.com/app"))
    assert failed["state"] == "failed"
    assert "manifest_invalid" in failed["reason"]
    assert not target.repository("app").tags
    sent = len(target.of_kind("patch"))
    assert sent
    result = only(await copy(mirror, "corp/app:v1", "other.example.com/app"))
    assert result["state"] == "copied", result
    assert len(target.of_kind("patch")) == sent
    puts = [asked.path.rpartition("/")[2] for asked in target.of_kind("manifest")]
    assert puts[-1] == "v1"
    assert target.repository("app").tags["v1"] == Digest.of(whole)


async def test_an_outage_in_the_middle(mirror: LiveMirror, target: PushTarget) -> None:
    """A connection that breaks is resumed; a registry that answers 500 for a while gets the same copy again."""
    await _signed_index(PushClient(mirror, "corp/app"))
    target.fail("patch", cut(700_000))
    target.fail("look", answers(503), 7)
    writer = mirror.app.admin.copies._copies
    writer._sleep = _no_sleep
    result = only(await copy(mirror, "corp/app:v1", "other.example.com/app"))
    assert result["state"] == "copied", result
    assert target.repository("app").blobs[Digest.of(_LAYER)] == _LAYER


async def _no_sleep(_seconds: float) -> None:
    return


async def test_a_tag_that_may_not_move(mirror: LiveMirror, target: PushTarget) -> None:
    """The caller's rights here count for the other registry as well; so does what the other registry forbids."""
    client = PushClient(mirror, "corp/app")
    await client.push_image("v1", b"one")
    await copy(mirror, "corp/app:v1", "other.example.com/app")
    await client.push_image("v1", b"two")
    rights = Rights({(Action.OVERWRITE, "other.example.com/app")})
    refused = only(await copy(mirror, "corp/app:v1", "other.example.com/app", rights))
    assert "do not let it be moved" in str(refused["reason"])
    with pytest.raises(Denied):
        await copy(mirror, "corp/app:v1", "other.example.com/app", Rights({(Action.PUSH, "other.example.com/app")}))
    target.fail("manifest", lambda exchange, usual: usual())
    target.fail("manifest", answers(403, "DENIED"))
    forbidden = only(await copy(mirror, "corp/app:v1", "other.example.com/app"))
    assert "denied" in str(forbidden["reason"])
    assert only(await copy(mirror, "corp/app:v1", "other.example.com/app"))["state"] == "moved"


async def test_registries_that_are_not_written_to(tmp_path: Path) -> None:
    """One without `push`, and one that is sealed."""
    upstreams = {"docker.io": "http://127.0.0.1:9", "sealed.example.com": {"url": "http://127.0.0.1:9", "push": True}}
    sealed = [{"match": "sealed.example.com/**", "offline": True}]
    async with hosting_mirror(tmp_path, upstreams=upstreams, route=sealed) as mirror:
        await PushClient(mirror, "corp/app").push_image("v1", b"one")
        with pytest.raises(RequestError, match="push = true"):
            await copy(mirror, "corp/app:v1", "docker.io/team/app")
        with pytest.raises(RequestError, match="is sealed"):
            await copy(mirror, "corp/app:v1", "sealed.example.com/app")


async def test_messages_do_not_show_the_network(tmp_path: Path) -> None:
    """A caller learns that another registry cannot be reached; an operator also where it was looked for, and why."""
    async with hosting_mirror(tmp_path, upstreams=_to("http://127.0.0.1:9")) as mirror:
        mirror.app.admin.copies._copies._sleep = _no_sleep
        await PushClient(mirror, "corp/app").push_image("v1", b"one")
        for rights, is_shown in ((None, True), (Rights(), False)):
            failed = only(await copy(mirror, "corp/app:v1", "other.example.com/app", rights))
            assert failed["state"] == "failed"
            assert ("127.0.0.1" in failed["reason"]) is is_shown, failed


async def test_private_images_are_not_copied(tmp_path: Path, target: PushTarget) -> None:
    """Of an upstream that is asked about each caller."""
    upstreams = {**_to(target.url), "private.example.com": {"url": "http://127.0.0.1:9", "access": "verify"}}
    async with hosting_mirror(tmp_path, upstreams=upstreams) as mirror:
        with pytest.raises(RequestError, match="asked about each of its callers"):
            await copy(mirror, "private.example.com/app:v1", "corp/app")


async def test_a_cached_image_goes_out(tmp_path: Path, target: PushTarget) -> None:
    """From one registry to another, through the cache."""
    async with live_mirror(
        tmp_path / "origin", {"docker.io": "http://127.0.0.1:9"}, hosted=[{"name": "corp"}], access={"rule": [OPEN]}
    ) as origin:
        image = await PushClient(origin, "corp/app").push_image("v1", _LAYER)
        upstreams = {"origin.example.com": f"http://127.0.0.1:{origin.port}", **_to(target.url)}
        async with hosting_mirror(tmp_path / "a", upstreams=upstreams) as mirror:
            result = only(await copy(mirror, "origin.example.com/corp/app:v1", "other.example.com/app"))
            assert result["state"] == "copied", result
    assert target.repository("app").tags["v1"] == Digest.of(image)
    assert target.repository("app").blobs[Digest.of(_LAYER)] == _LAYER
