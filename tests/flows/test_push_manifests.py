"""Manifests of every kind that the conformance program pushes, through a whole mirror: listed, pulled, deleted."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, OCI_INDEX, OCI_MANIFEST
from tests.support.push_client import (
    CONFIG_TYPE,
    LAYER_TYPE,
    OPEN,
    PushClient,
    descriptor,
    document,
    hosting_mirror,
    index,
)

_LAYER = b"a layer"
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[PushClient]:
    """Of a repository in a registry where everybody may do everything."""
    async with hosting_mirror(tmp_path) as mirror:
        yield PushClient(mirror)


async def _round(client: PushClient, content: bytes, tag: str, algorithm: str = "sha256") -> Digest:
    """Push a manifest by digest and by tag, pull it both ways, by HEAD as well."""
    digest = Digest.of(content, algorithm)
    by_digest = await client.put(content, digest)
    assert by_digest.status == 201, by_digest
    assert by_digest.headers["Docker-Content-Digest"] == str(digest)
    location = await client.ask("GET", by_digest.headers["Location"])
    assert location.body == content
    references: list[Digest | str] = [digest]
    if algorithm == "sha256":
        assert (await client.put(content, tag)).status == 201
        references.append(tag)
    for reference in references:
        got = await client.manifest(reference)
        head = await client.manifest(reference, method="HEAD")
        assert (got.status, got.body) == (200, content)
        for answer in (got, head):
            assert answer.headers["Docker-Content-Digest"] == str(digest)
            assert answer.headers["Content-Type"] == json.loads(content)["mediaType"]
            assert answer.headers["Content-Length"] == str(len(content))
    return digest


async def _artifact(client: PushClient, subject: bytes | None = None, *, layers: bool = True, **more: Any) -> bytes:
    """An artifact whose config is empty."""
    await client.push_blob(_EMPTY)
    if layers:
        await client.push_blob(_LAYER)
    about = {} if subject is None else {"subject": descriptor(subject, json.loads(subject)["mediaType"])}
    return document(
        OCI_MANIFEST,
        artifactType="application/vnd.example.note",
        config=descriptor(_EMPTY, _EMPTY_TYPE),
        layers=[descriptor(_LAYER, "text/plain")] if layers else [],
        **about,
        **more,
    )


# ----------------------------------------------------------------------------------------------- every kind of content


async def test_images(client: PushClient) -> None:
    """With a layer, without any, with fields that nobody knows, with `data`, with a layer that is elsewhere."""
    await _round(client, await client.make_image(_LAYER), "plain")
    await _round(client, await client.make_image(), "none")
    await _round(client, await client.make_image(_LAYER, custom={"x": [1, 2]}, annotations={"a": "b"}), "custom")
    config = await client.push_blob(_EMPTY)
    foreign = {
        "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "digest": str(Digest.of(b"elsewhere")),
        "size": 9,
        "urls": ["https://layers.example/9"],
    }
    content = document(OCI_MANIFEST, config=descriptor(_EMPTY, CONFIG_TYPE), layers=[foreign])
    await _round(client, content, "foreign")
    assert (await client.blob(Digest.of(b"elsewhere"))).status == 404
    data = document(
        OCI_MANIFEST, config=descriptor(_EMPTY, CONFIG_TYPE, data="e30="), layers=[descriptor(_LAYER, LAYER_TYPE)]
    )
    await _round(client, data, "data")
    assert (await client.blob(config)).status == 200


async def test_indexes(client: PushClient) -> None:
    """Of images, nested, empty."""
    children = [await client.make_image(_LAYER), await client.make_image(_LAYER, annotations={"n": "2"})]
    for child in children:
        await _round(client, child, "child")
    inner = index(*children)
    await _round(client, inner, "index")
    await _round(client, index(inner), "nested")
    await _round(client, index(), "empty")


async def test_artifacts(client: PushClient) -> None:
    """With layers, without, an index of them."""
    for number, layers in enumerate((True, False)):
        await _round(client, await _artifact(client, layers=layers), f"artifact-{number}")
    content = index(await _artifact(client), artifactType="application/vnd.example.notes")
    await _round(client, content, "artifacts")


async def test_sha512(client: PushClient) -> None:
    """A manifest by its sha512, whose blobs have such digests too."""
    content = await client.make_image(_LAYER, algorithm="sha512")
    await _round(client, content, "", "sha512")
    answer = await client.put(content, Digest.of(content, "sha512"), tags=["five", "twelve"])
    assert answer.headers.getall("OCI-Tag") == ["five", "twelve"]
    got = await client.manifest("twelve")
    assert got.headers["Docker-Content-Digest"] == str(Digest.of(content, "sha512"))


async def test_a_large_manifest(client: PushClient) -> None:
    """4 MiB are kept byte for byte, one more is 413."""
    content = await client.make_image(_LAYER, filler="")
    largest = content.replace(b'"filler": ""', b'"filler": "' + b"x" * (LARGEST - len(content)) + b'"')
    await _round(client, largest, "large")
    answer = await client.put(largest + b" ", "larger")
    assert (answer.status, answer.code) == (413, "MANIFEST_INVALID")
    assert (await client.manifest("larger")).status == 404


async def test_sparse_manifests(client: PushClient, tmp_path: Path) -> None:
    """Refused, with the digests that are missing; accepted where the setting says so."""
    child = await client.make_image(_LAYER)
    answer = await client.put(index(child), "sparse")
    assert answer.status == 404
    [error] = json.loads(answer.body)["errors"]
    assert error["code"] == "MANIFEST_BLOB_UNKNOWN"
    assert error["detail"]["digest"] == str(Digest.of(child))
    async with hosting_mirror(tmp_path / "sparse", hosted={"sparse_manifests": True}) as mirror:
        sparse = PushClient(mirror)
        await _round(sparse, index(child), "sparse")
        await _round(sparse, child, "without-blobs")
        # what it names is not here, and comes with the push of its bytes
        assert (await sparse.blob(Digest.of(_LAYER))).status == 404
        await sparse.push_blob(_LAYER)
        assert (await sparse.blob(Digest.of(_LAYER))).body == _LAYER


async def test_what_is_missing_is_named(client: PushClient) -> None:
    """Each blob that the repository lacks, though another repository has it."""
    other = PushClient(client.mirror, "corp/other")
    content = await other.make_image(_LAYER, b"another")
    answer = await client.put(content, "v1")
    assert answer.status == 404
    errors = json.loads(answer.body)["errors"]
    assert {error["code"] for error in errors} == {"MANIFEST_BLOB_UNKNOWN"}
    named = {error["detail"]["digest"] for error in errors}
    assert {str(Digest.of(_LAYER)), str(Digest.of(b"another"))} <= named
    assert (await client.manifest("v1")).status == 404


@pytest.mark.parametrize("reference", ["sha256:baddigeststring", "sha256:" + "0" * 64])
async def test_bad_manifest_digests(client: PushClient, reference: str) -> None:
    """In the path of a PUT and of a GET."""
    content = await client.make_image(_LAYER)
    answer = await client.put(content, reference)
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert (await client.manifest(reference)).status in (400, 404)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"not JSON", OCI_MANIFEST),
        (b"[]", OCI_MANIFEST),
        (document(OCI_MANIFEST, layers=[]), OCI_INDEX),
        (document(OCI_INDEX, manifests=[], layers=[]), OCI_INDEX),
        (b'{"schemaVersion": 2, "layers": [], "layers": []}', OCI_MANIFEST),
    ],
)
async def test_what_is_no_manifest(client: PushClient, content: bytes, kind: str) -> None:
    """400, and no tag."""
    target = f"/v2/{client.name}/manifests/bad"
    answer = await client.ask("PUT", target, body=content, headers={"Content-Type": kind})
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")
    assert (await client.manifest("bad")).status == 404


async def test_missing_manifests(client: PushClient) -> None:
    """By tag and by digest, in a repository that is there and in one that is not: 404."""
    await client.push_image("v1", _LAYER)
    for name in ("corp/app", "corp/none"):
        there = PushClient(client.mirror, name)
        for reference in ("missing", Digest.of(b"missing")):
            assert (await there.manifest(reference)).status == 404


# ---------------------------------------------------------------------------------------------------- tags, lists


async def test_several_tags_at_once(client: PushClient) -> None:
    """`?tag=` ten times: each is said and can be pulled."""
    content = await client.make_image(_LAYER)
    tags = [f"v{number}" for number in range(10)]
    answer = await client.put(content, Digest.of(content), tags=tags)
    assert (answer.status, answer.headers.getall("OCI-Tag")) == (201, tags)
    for tag in tags:
        assert (await client.manifest(tag)).body == content


async def test_tag_lists(client: PushClient) -> None:
    """Sorted, in pages, `n=0` without a Link, `[]` after the last page; an unknown repository may be 404."""
    content = await client.make_image(_LAYER)
    tags = ["a", "a.1", "a1", "b", "latest"]
    await client.put(content, Digest.of(content), tags=list(reversed(tags)))
    listing = f"/v2/{client.name}/tags/list"
    assert (await client.ask("GET", listing)).json == {"name": client.name.removeprefix("corp/"), "tags": tags}
    first = await client.ask("GET", f"{listing}?n=2")
    assert first.json["tags"] == ["a", "a.1"]
    following = first.headers["Link"].partition(">")[0].removeprefix("<")
    assert (await client.ask("GET", following)).json["tags"] == ["a1", "b"]
    none = await client.ask("GET", f"{listing}?n=0")
    assert (none.json["tags"], "Link" in none.headers) == ([], False)
    assert (await client.ask("GET", f"{listing}?last=latest")).json["tags"] == []
    assert (await client.ask("GET", f"{listing}?last=a.0&n=1")).json["tags"] == ["a.1"]


async def test_the_catalog(client: PushClient) -> None:
    """Has what is pushed, in pages."""
    for name in ("corp/b", "corp/a/c", "corp/a"):
        await PushClient(client.mirror, name).push_image("v1", _LAYER)
    assert (await client.ask("GET", "/v2/_catalog")).json["repositories"] == ["corp/a", "corp/a/c", "corp/b"]
    first = await client.ask("GET", "/v2/_catalog?n=2")
    assert first.json["repositories"] == ["corp/a", "corp/a/c"]
    following = first.headers["Link"].partition(">")[0].removeprefix("<")
    assert (await client.ask("GET", following)).json["repositories"] == ["corp/b"]


async def test_pages_of_the_catalog_leave_out_no_registry(tmp_path: Path) -> None:
    """`corp-x/a` comes before `corp/a`, as text: pages continue after a name."""
    async with hosting_mirror(
        tmp_path, more_hosted=[{"name": "corp-x"}], rules=[{**OPEN, "repositories": ["corp*/**"]}]
    ) as mirror:
        names = ["corp-x/a", "corp-x/b", "corp/a", "corp/b"]
        for name in names:
            await PushClient(mirror, name).push_image("v1", _LAYER)
        following, seen = "/v2/_catalog?n=1", []
        while following:
            page = await mirror.ask(following)
            seen += page.json["repositories"]
            following = page.headers.get("Link", "").partition(">")[0].removeprefix("<")
        assert seen == names


async def test_a_moved_tag(client: PushClient) -> None:
    """The next request sees where it points; the old manifest stays by its digest."""
    old = await client.push_image("v1", _LAYER)
    assert (await client.manifest("v1")).body == old
    new = await client.push_image("v1", _LAYER, annotations={"n": "2"})
    assert (await client.manifest("v1")).body == new
    assert (await client.manifest(Digest.of(old))).body == old


async def test_the_audit_log_tells_what_was_moved(tmp_path: Path) -> None:
    """A new tag is a push, the same again too; a tag that goes to another manifest is an overwrite."""
    log = tmp_path / "audit.log"
    async with hosting_mirror(tmp_path, access={"audit_log": str(log)}) as mirror:
        client = PushClient(mirror)
        first = await client.push_image("v1", _LAYER)
        await client.put(first, "v1")
        second = await client.push_image("v1", _LAYER, annotations={"n": "2"})
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    said = [(line["action"], line["digest"]) for line in lines if line.get("kind") == "manifest"]
    digests = str(Digest.of(first)), str(Digest.of(second))
    assert said == [("push", digests[0]), ("push", digests[0]), ("overwrite", digests[1])]


async def test_93_two_pushers_of_one_tag(client: PushClient) -> None:
    """Row 93: whatever the order, the tag points to one of them, whole, and both have their 201."""
    images = [await client.make_image(_LAYER, annotations={"n": str(number)}) for number in range(8)]
    answers = await asyncio.gather(*(client.put(content, "v1") for content in images))
    assert {answer.status for answer in answers} <= {201, 403, 503}
    assert 201 in {answer.status for answer in answers}
    assert (await client.manifest("v1")).body in images


async def test_push_without_overwrite(tmp_path: Path) -> None:
    """New tags yes, the same again yes, another manifest no."""
    rule = {"effect": "allow", "callers": ["*"], "actions": ["pull", "push"], "repositories": ["corp/**"]}
    async with hosting_mirror(tmp_path, rules=[rule]) as mirror:
        client = PushClient(mirror)
        content = await client.push_image("v1", _LAYER)
        assert (await client.put(content, "v1")).status == 201
        other = await client.make_image(_LAYER, annotations={"n": "2"})
        answer = await client.put(other, "v1")
        assert (answer.status, answer.code) == (403, "DENIED")
        assert (await client.manifest("v1")).body == content
        assert (await client.put(other, "v2")).status == 201


# -------------------------------------------------------------------------------------------------------- deletes


async def test_delete_of_a_tag(client: PushClient) -> None:
    """Only that tag; its manifest and its other tags stay."""
    content = await client.push_image("v1", _LAYER)
    await client.put(content, "v2")
    assert (await client.ask("DELETE", f"/v2/{client.name}/manifests/v1")).status == 202
    assert (await client.manifest("v1")).code == "MANIFEST_UNKNOWN"
    assert (await client.manifest("v1", method="HEAD")).status == 404
    for reference in ("v2", Digest.of(content)):
        assert (await client.manifest(reference)).body == content
    again = await client.ask("DELETE", f"/v2/{client.name}/manifests/v1")
    assert (again.status, again.code) == (404, "MANIFEST_UNKNOWN")


async def test_delete_of_a_manifest(client: PushClient) -> None:
    """With all tags that point to it, at once; pushed again, it is there again."""
    content = await client.push_image("v1", _LAYER)
    await client.put(content, "v2")
    await client.manifest("v1")
    assert (await client.ask("DELETE", f"/v2/{client.name}/manifests/{Digest.of(content)}")).status == 202
    for reference in ("v1", "v2", Digest.of(content)):
        assert (await client.manifest(reference)).status == 404
        assert (await client.manifest(reference, method="HEAD")).status == 404
    listing = await client.ask("GET", f"/v2/{client.name}/tags/list")
    assert listing.status == 404 or listing.json["tags"] == []
    assert (await client.put(content, "v1")).status == 201
    assert (await client.manifest("v1")).body == content


# ------------------------------------------------------------------------------------------------------ referrers


async def test_referrers(client: PushClient) -> None:
    """At once after the PUT, with type and annotations, filtered, gone with the manifest."""
    subject = await client.push_image("v1", _LAYER)
    digest = Digest.of(subject)
    signed = await _artifact(client, subject, annotations={"org.example.by": "alice"})
    answer = await client.put(signed, Digest.of(signed))
    assert (answer.status, answer.headers["OCI-Subject"]) == (201, str(digest))
    child = await _artifact(client)
    await client.put(child, Digest.of(child))
    plain = index(child, subject=descriptor(subject, OCI_MANIFEST), annotations={"x": "y"})
    assert (await client.put(plain, "plain")).status == 201
    image_type = await client.make_image(_LAYER, subject=descriptor(subject, OCI_MANIFEST))
    await client.put(image_type, Digest.of(image_type))

    listing = await client.referrers(digest)
    assert (listing.status, listing.headers["Content-Type"]) == (200, OCI_INDEX)
    assert "OCI-Filters-Applied" not in listing.headers
    found = {entry["digest"]: entry for entry in listing.json["manifests"]}
    assert set(found) == {str(Digest.of(content)) for content in (signed, plain, image_type)}
    entry = found[str(Digest.of(signed))]
    assert entry["artifactType"] == "application/vnd.example.note"
    assert entry["annotations"] == {"org.example.by": "alice"}
    assert (entry["mediaType"], entry["size"]) == (OCI_MANIFEST, len(signed))
    assert found[str(Digest.of(image_type))]["artifactType"] == CONFIG_TYPE
    assert "artifactType" not in found[str(Digest.of(plain))]

    for kind, content in (
        ("application/vnd.example.note", signed),
        (CONFIG_TYPE.replace("+", "%2B"), image_type),
        ("", plain),
    ):
        some = await client.referrers(digest, f"?artifactType={kind}")
        assert some.headers["OCI-Filters-Applied"] == "artifactType"
        assert [entry["digest"] for entry in some.json["manifests"]] == [str(Digest.of(content))]

    await client.ask("DELETE", f"/v2/{client.name}/manifests/{Digest.of(signed)}")
    left = {entry["digest"] for entry in (await client.referrers(digest)).json["manifests"]}
    assert left == {str(Digest.of(plain)), str(Digest.of(image_type))}


async def test_referrers_of_what_is_not_here(client: PushClient) -> None:
    """A subject that is missing is accepted; nothing about an unknown one is 404, a bad digest is 400."""
    missing = document(OCI_MANIFEST, layers=[], n=1)
    content = await _artifact(client, missing)
    answer = await client.put(content, "about-nothing")
    assert (answer.status, answer.headers["OCI-Subject"]) == (201, str(Digest.of(missing)))
    listing = await client.referrers(Digest.of(missing))
    assert [entry["digest"] for entry in listing.json["manifests"]] == [str(Digest.of(content))]
    for name in (client.name, "corp/none"):
        empty = await PushClient(client.mirror, name).referrers(Digest.of(b"nothing"))
        assert (empty.status, empty.json["manifests"], empty.headers["Content-Type"]) == (200, [], OCI_INDEX)
    assert (await client.ask("GET", f"/v2/{client.name}/referrers/sha256:x")).status == 400


async def test_referrers_of_the_fallback_tag(client: PushClient) -> None:
    """What an older client has listed under the tag of the subject is merged, each entry once."""
    subject = await client.push_image("v1", _LAYER)
    digest = Digest.of(subject)
    first, second = [await _artifact(client, subject, annotations={"n": str(number)}) for number in range(2)]
    await client.put(first, Digest.of(first))
    await client.put(second, Digest.of(second))
    await client.put(index(first), f"sha256-{digest.hex}")
    entries = [entry["digest"] for entry in (await client.referrers(digest)).json["manifests"]]
    assert sorted(entries) == sorted({str(Digest.of(first)), str(Digest.of(second))})


async def test_referrers_in_pages(client: PushClient) -> None:
    """A list that would be larger than 4 MiB; each page is one that clients take, and together they are all."""
    subject = await client.push_image("v1", _LAYER)
    digest = Digest.of(subject)
    pushed = set()
    for number in range(6):
        content = await _artifact(client, subject, annotations={"n": str(number), "filler": "x" * 1_500_000})
        assert (await client.put(content, Digest.of(content))).status == 201
        pushed.add(str(Digest.of(content)))
    found: list[str] = []
    target: str | None = f"/v2/{client.name}/referrers/{digest}?artifactType=application%2Fvnd.example.note"
    pages = 0
    while target is not None:
        page = await client.ask("GET", target)
        assert len(page.body) <= LARGEST
        assert page.headers["OCI-Filters-Applied"] == "artifactType"
        found += [entry["digest"] for entry in page.json["manifests"]]
        link = page.headers.get("Link")
        target = link.partition(">")[0].removeprefix("<") if link else None
        pages += 1
    assert pages == 3
    assert (set(found), len(found)) == (pushed, 6)
