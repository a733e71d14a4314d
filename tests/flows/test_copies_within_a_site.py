"""Copies from one repository of a mirror into another: from dev to prod, without a byte."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import BodyInvalid, Denied, RequestError
from mirror.oci.attachments import referrers_tag, signature_tag
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action
from mirror.store.local.layout import Layout
from tests.support.copies import Rights, copy, only
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import LiveMirror, noise
from tests.support.push_client import PushClient, descriptor, hosting_mirror, index

_LAYER = noise(300_000, 1)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """An upstream with an image."""
    with FakeRegistry() as running:
        running.add_image("library/app", "v1", [_LAYER])
        yield running


@pytest.fixture
async def mirror(tmp_path: Path, registry: FakeRegistry) -> AsyncIterator[LiveMirror]:
    """A mirror with a hosted registry and that upstream."""
    async with hosting_mirror(tmp_path, upstreams={"docker.io": registry.url}) as running:
        yield running


def _clients(mirror: LiveMirror) -> tuple[PushClient, PushClient]:
    return PushClient(mirror, "corp/dev/app"), PushClient(mirror, "corp/prod/app")


async def _subject(client: PushClient, content: bytes, kind: str = "application/vnd.test.signature") -> bytes:
    """A referrer of a manifest, pushed by digest."""
    artifact = await client.make_image(
        b"signature of " + content[-20:],
        artifactType=kind,
        subject=descriptor(content, "application/vnd.oci.image.manifest.v1+json"),
    )
    assert (await client.put(artifact, Digest.of(artifact))).status == 201
    return artifact


async def test_from_dev_to_prod(mirror: LiveMirror) -> None:
    """The tag, its blobs and its signature can be pulled at the destination; the bytes are there once."""
    dev, prod = _clients(mirror)
    image = await dev.push_image("v1", _LAYER)
    signature = await _subject(dev, image)
    digest, layer = Digest.of(image), Digest.of(_LAYER)
    layout = Layout(mirror.root)
    before = os.stat(layout.hosted_blob(layer)).st_ino
    assert (await prod.blob(layer)).status == 404
    result = only(await copy(mirror, "corp/dev/app:v1", "corp/prod/app"))
    assert result["state"] == "copied", result
    assert (result["manifests"], result["referrers"], result["bytes"], result["was"]) == (2, 1, 0, None)
    assert (await prod.manifest("v1")).body == image
    assert (await prod.blob(layer)).body == _LAYER
    assert os.stat(layout.hosted_blob(layer)).st_ino == before
    listed = (await prod.referrers(digest)).json["manifests"]
    assert [entry["digest"] for entry in listed] == [str(Digest.of(signature))]
    again = only(await copy(mirror, "corp/dev/app:v1", "corp/prod/app"))
    assert (again["state"], again["manifests"]) == ("same", 0)


async def test_a_signature_that_came_later_goes_with_the_next_copy(mirror: LiveMirror) -> None:
    """The tag is the same; what was attached since is copied all the same."""
    dev, prod = _clients(mirror)
    image = await dev.push_image("v1", _LAYER)
    await copy(mirror, "corp/dev/app:v1", "corp/prod/app")
    await _subject(dev, image)
    assert only(await copy(mirror, "corp/dev/app:v1", "corp/prod/app", referrers=False))["state"] == "same"
    result = only(await copy(mirror, "corp/dev/app:v1", "corp/prod/app"))
    assert (result["state"], result["referrers"]) == ("copied", 1)
    assert len((await prod.referrers(Digest.of(image))).json["manifests"]) == 1


async def test_an_index_with_its_platforms_and_cosigns_tags(mirror: LiveMirror) -> None:
    """Children go before their index; what clients keep under tags goes with the image, without being named."""
    dev, prod = _clients(mirror)
    children = [await dev.make_image(noise(1000, seed)) for seed in (2, 3)]
    for child in children:
        await dev.put(child, Digest.of(child))
    whole = index(*children)
    await dev.put(whole, "v1")
    signature = await dev.push_image(signature_tag(Digest.of(whole)), b"a signature")
    listed = await _subject(dev, whole)
    fallback = index(listed)
    await dev.put(fallback, referrers_tag(Digest.of(whole)))
    result = only(await copy(mirror, "corp/dev/app:v1", "corp/prod/app:stable"))
    assert result["state"] == "copied", result
    assert (await prod.manifest("stable")).body == whole
    for child in children:
        assert (await prod.manifest(Digest.of(child))).body == child
    assert (await prod.manifest(signature_tag(Digest.of(whole)))).body == signature
    assert (await prod.manifest(referrers_tag(Digest.of(whole)))).body == fallback
    assert [entry["digest"] for entry in (await prod.referrers(Digest.of(whole))).json["manifests"]] == [
        str(Digest.of(listed))
    ]


async def test_a_list_of_referrers_that_is_there_stays(mirror: LiveMirror) -> None:
    """The destination's own list under the fallback tag is not overwritten, and no referrer is lost."""
    dev, prod = _clients(mirror)
    image = await dev.push_image("v1", _LAYER)
    first = await _subject(dev, image)
    await dev.put(index(first), referrers_tag(Digest.of(image)))
    await prod.push_image("v1", _LAYER)
    own = await _subject(prod, image, "application/vnd.test.sbom")
    await prod.put(index(own), referrers_tag(Digest.of(image)))
    assert only(await copy(mirror, "corp/dev/app:v1", "corp/prod/app"))["referrers"] == 1
    assert (await prod.manifest(referrers_tag(Digest.of(image)))).body == index(own)
    listed = {entry["digest"] for entry in (await prod.referrers(Digest.of(image))).json["manifests"]}
    assert listed == {str(Digest.of(first)), str(Digest.of(own))}


async def test_all_tags(mirror: LiveMirror) -> None:
    """Each tag is a result of its own; one that fails does not end the others."""
    dev, prod = _clients(mirror)
    images = {tag: await dev.push_image(tag, noise(500, seed)) for seed, tag in enumerate(("v1", "v2", "latest"))}
    await prod.push_image("latest", b"another")
    rights = Rights({(Action.OVERWRITE, "corp/prod/app")})
    result = await copy(mirror, "corp/dev/app", "corp/prod/app", rights, all_tags=True)
    assert result.counts() == {"copied": 2, "moved": 0, "same": 0, "failed": 1, "bytes": 0}
    [failed] = result.failures
    assert "corp/dev/app:latest" in failed
    assert "do not let you overwrite" in failed
    assert (await prod.manifest("v2")).body == images["v2"]
    result = await copy(mirror, "corp/dev/app", "corp/prod/app", all_tags=True)
    assert result.counts() == {"copied": 0, "moved": 1, "same": 2, "failed": 0, "bytes": 0}
    [moved] = [image for image in result.images if image["state"] == "moved"]
    assert moved["was"] != moved["digest"]


async def test_rights_on_both_sides(mirror: LiveMirror) -> None:
    """Without the right to pull, or to push, nothing is written; it is asked again while the copy runs."""
    dev, prod = _clients(mirror)
    await dev.push_image("v1", _LAYER)
    for action, repo in ((Action.PULL, "corp/dev/app"), (Action.PUSH, "corp/prod/app")):
        with pytest.raises(Denied, match=f"may not {action.value}"):
            await copy(mirror, "corp/dev/app:v1", "corp/prod/app", Rights({(action, repo)}))
    assert (await prod.manifest("v1")).status == (await prod.blob(Digest.of(_LAYER))).status == 404

    class Shrinking(Rights):
        asked = 0

        def may(self, action: Action, repo: Repo) -> bool:
            self.asked += 1
            return self.asked < 4

    result = only(await copy(mirror, "corp/dev/app:v1", "corp/prod/app", Shrinking()))
    assert result["state"] == "failed"
    assert "may not" in result["reason"]
    assert (await prod.manifest("v1")).status == 404


async def test_a_cached_image_is_fetched_as_a_whole(mirror: LiveMirror, registry: FakeRegistry) -> None:
    """What the cache lacks is fetched first; the copy is hosted, and stays when the cache is emptied."""
    prod = PushClient(mirror, "corp/base/app")
    result = only(await copy(mirror, "docker.io/library/app:v1", "corp/base/app:2024"))
    assert result["state"] == "copied", result
    [digest] = registry.repository("library/app").manifests
    assert (await prod.manifest("2024")).body == registry.manifest("library/app", digest)
    mirror.app.storage.store.delete(Digest.of(_LAYER))
    assert (await prod.blob(Digest.of(_LAYER))).body == _LAYER
    registry.away()
    missing = only(await copy(mirror, "docker.io/library/app:v2", "corp/base/app"))
    assert missing["state"] == "failed"


async def test_what_rules_forbid_is_not_copied(tmp_path: Path, registry: FakeRegistry) -> None:
    """The rules about content hold for copies as for pulls."""
    denied = {"deny": ["docker.io/library/**"]}
    async with hosting_mirror(tmp_path, upstreams={"docker.io": registry.url}, content=denied) as mirror:
        result = only(await copy(mirror, "docker.io/library/app:v1", "corp/base/app"))
        assert result["state"] == "failed"
        assert (await PushClient(mirror, "corp/base/app").manifest("v1")).status == 404


@pytest.mark.parametrize(
    ("hosted", "reason"),
    [
        ({"quota": "100KB"}, "quota"),
        ({"repositories": ["dev/**"]}, "does not allow repositories named prod/app"),
    ],
)
async def test_limits_of_the_destination(tmp_path: Path, hosted: dict[str, Any], reason: str) -> None:
    """Quota and names of the destination hold; the message says which."""
    quotas = {"quotas": {"prod/**": "100KB"}} if "quota" in hosted else hosted
    async with hosting_mirror(tmp_path, hosted=quotas) as mirror:
        dev, prod = _clients(mirror)
        await dev.push_image("v1", _LAYER)
        result = only(await copy(mirror, "corp/dev/app:v1", "corp/prod/app"))
        assert result["state"] == "failed"
        assert reason in result["reason"]
        assert (await prod.manifest("v1")).status == 404


async def test_platforms_need_a_registry_that_takes_sparse_indexes(tmp_path: Path) -> None:
    """An index goes byte for byte, so a choice of platforms leaves gaps, which only some registries accept."""
    for sparse, state in ((False, "failed"), (True, "copied")):
        async with hosting_mirror(tmp_path / str(sparse), hosted={"sparse_manifests": sparse}) as mirror:
            dev, prod = _clients(mirror)
            children = [await dev.make_image(noise(1000, seed)) for seed in (2, 3)]
            for child in children:
                await dev.put(child, Digest.of(child))
            entries = [
                {**entry, "platform": {"os": "linux", "architecture": architecture}}
                for entry, architecture in zip(
                    json.loads(index(*children))["manifests"], ("amd64", "arm64"), strict=True
                )
            ]
            whole = json.dumps(
                {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries}
            )
            await dev.put(whole.encode(), "v1")
            result = only(await copy(mirror, "corp/dev/app:v1", "corp/prod/app", platforms=["linux/arm64"]))
            assert result["state"] == state, result
            assert (await prod.manifest(Digest.of(children[1]))).status == 200
            assert (await prod.manifest(Digest.of(children[0]))).status == 404
            assert (await prod.manifest("v1")).status == (200 if sparse else 404)


async def test_a_dry_run_writes_nothing(mirror: LiveMirror) -> None:
    """It says what would be copied and moved, and what the caller may not do."""
    dev, prod = _clients(mirror)
    await dev.push_image("v1", _LAYER)
    await prod.push_image("v1", b"another")
    result = only(await copy(mirror, "corp/dev/app:v1", "corp/prod/app", dry_run=True))
    assert result["state"] == "moved"
    assert (await prod.blob(Digest.of(_LAYER))).status == 404
    rights = Rights({(Action.OVERWRITE, "corp/prod/app")})
    refused = only(await copy(mirror, "corp/dev/app:v1", "corp/prod/app", rights, dry_run=True))
    assert refused["state"] == "failed"


@pytest.mark.parametrize(
    ("source", "destination", "more", "reason"),
    [
        ("corp/dev/app", "corp/prod/app", {}, "name a tag or a digest"),
        ("corp/dev/app:v1", "corp/prod/app", {"all_tags": True}, "without tag and digest"),
        ("corp/dev/app:v1", "corp/prod/app@sha256:" + "0" * 64, {}, "has the digest of its source"),
        ("corp/dev/app:v1", "corp/dev/app", {}, "are the same"),
        ("corp/dev/app:v1", "corp/prod/app", {"platforms": ["linux"]}, "not a platform"),
        ("corp/dev/app:v1", "corp/prod/app", {"tags": 1}, "no such field"),
        ("nowhere.example/app:v1", "corp/prod/app", {}, "not configured"),
    ],
)
async def test_mistakes_in_a_request(
    mirror: LiveMirror, source: str, destination: str, more: dict[str, Any], reason: str
) -> None:
    """Each is named."""
    with pytest.raises(BodyInvalid, match=reason):
        await copy(mirror, source, destination, **more)


async def test_a_registry_that_takes_no_copies(mirror: LiveMirror) -> None:
    """Upstreams are not written to unless their settings say so."""
    await PushClient(mirror, "corp/dev/app").push_image("v1", _LAYER)
    with pytest.raises(RequestError, match=r"docker\.io"):
        await copy(mirror, "corp/dev/app:v1", "docker.io/team/app")
