"""Manifests as they are read, never as they are rewritten."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.oci.digest import Digest
from mirror.oci.manifest import (
    ACCEPT,
    DOCKER_LIST,
    DOCKER_MANIFEST,
    LARGEST,
    MOST_DESCRIPTORS,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ManifestMalformed,
    read_descriptor,
    read_manifest,
)

_ONE, _TWO = Digest.of(b"1"), Digest.of(b"2", "sha512")
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
_LISTS = {
    "layers": OCI_MANIFEST,
    "manifests": OCI_INDEX,
    "blobs": "application/vnd.oci.artifact.manifest.v1+json",
    "fsLayers": _SCHEMA_1,
}


def _pointer(digest: Digest = _ONE, size: int = 1, kind: str = "application/x", **more: Any) -> dict[str, Any]:
    return {"mediaType": kind, "digest": str(digest), "size": size, **more}


def _bytes(**body: Any) -> bytes:
    return json.dumps(body).encode()


def test_image() -> None:
    """Config and layers are its blobs, in order; the bytes and their digest are as they came."""
    content = _bytes(mediaType=OCI_MANIFEST, config=_pointer(), layers=[_pointer(_TWO, 2), _pointer(_ONE, 1)])
    manifest = read_manifest(content, OCI_MANIFEST)
    assert manifest.content == content
    assert manifest.digest == Digest.of(content)
    assert manifest.media_type == OCI_MANIFEST
    assert [(blob.digest, blob.size) for blob in manifest.blobs] == [(_ONE, 1), (_TWO, 2), (_ONE, 1)]
    assert not manifest.is_index
    assert manifest.descriptor == Descriptor(OCI_MANIFEST, manifest.digest, len(content), "application/x")


def test_index() -> None:
    """Its manifests, with platform and annotations; no blobs."""
    child = _pointer(platform={"os": "linux"}, annotations={"a": "b", "odd": 1}, artifactType="x/y", urls=["http://x"])
    manifest = read_manifest(_bytes(mediaType=OCI_INDEX, manifests=[child]), OCI_INDEX)
    [found] = manifest.manifests
    assert (found.platform, found.annotations, found.artifact_type) == ({"os": "linux"}, {"a": "b"}, "x/y")
    assert manifest.is_index
    assert not manifest.blobs


def test_algorithm() -> None:
    """The digest is of the algorithm that the manifest was asked for by."""
    content = _bytes(mediaType=OCI_MANIFEST, layers=[])
    assert read_manifest(content, algorithm="sha512").digest == Digest.of(content, "sha512")


@pytest.mark.parametrize(
    ("body", "sent", "wanted"),
    [
        ({"mediaType": DOCKER_MANIFEST}, DOCKER_MANIFEST, DOCKER_MANIFEST),
        ({"mediaType": DOCKER_MANIFEST}, None, DOCKER_MANIFEST),
        ({"mediaType": DOCKER_MANIFEST}, "application/json", DOCKER_MANIFEST),
        ({"mediaType": DOCKER_MANIFEST}, f"{DOCKER_MANIFEST.upper()}; charset=utf-8", DOCKER_MANIFEST),
        ({}, OCI_MANIFEST, OCI_MANIFEST),
        ({}, f"{OCI_MANIFEST}; charset=utf-8", OCI_MANIFEST),
        ({"manifests": []}, OCI_INDEX, OCI_INDEX),
        ({"manifests": []}, DOCKER_LIST, DOCKER_LIST),
        ({"manifests": []}, "text/plain", OCI_INDEX),
        ({"layers": []}, None, OCI_MANIFEST),
        ({"layers": []}, "text/html", OCI_MANIFEST),
        ({"layers": []}, "application/x\x00", OCI_MANIFEST),
        ({"mediaType": DOCKER_MANIFEST}, "text/html", DOCKER_MANIFEST),
        ({"schemaVersion": 1, "signatures": []}, "application/json", _SCHEMA_1),
        ({"mediaType": "application/vnd.own+json"}, None, "application/vnd.own+json"),
    ],
)
def test_media_type(body: dict[str, Any], sent: str | None, wanted: str) -> None:
    """The body's own word goes before the header, which may repeat it; without either its shape tells."""
    assert read_manifest(_bytes(**body), sent).media_type == wanted


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({"manifests": [], "layers": []}, None),
        ({"manifests": [], "fsLayers": []}, None),
        ({"manifests": [], "config": {}}, None),
        ({"mediaType": OCI_MANIFEST, "manifests": []}, None),
        ({"mediaType": DOCKER_MANIFEST, "manifests": []}, None),
        ({"mediaType": OCI_INDEX, "layers": []}, None),
        ({"mediaType": OCI_INDEX}, None),
        ({"layers": []}, OCI_INDEX),
        ({"manifests": []}, OCI_MANIFEST),
        ({"mediaType": OCI_MANIFEST}, OCI_INDEX),
        ({"mediaType": OCI_MANIFEST}, DOCKER_MANIFEST),
        ({"mediaType": 7}, None),
        ({"mediaType": "a\r\nb"}, None),
        ({"mediaType": "é"}, None),
        ({"mediaType": "a" * 256}, None),
        ({"mediaType": "text/html"}, None),
        ({"mediaType": "image/svg+xml"}, "image/svg+xml"),
        ({"mediaType": "application/x; charset=utf-8"}, None),
        ({"mediaType": "application/"}, None),
        ({"mediaType": " application/x"}, None),
        ({"mediaType": "application/" + "a" * 128}, None),
    ],
)
def test_19_ambiguous(body: dict[str, Any], sent: str | None) -> None:
    """Row 19: what could be read as two things is refused (CVE-2021-41190); nor does a type reach a header unread."""
    with pytest.raises(ManifestMalformed):
        read_manifest(_bytes(**body), sent)


@pytest.mark.parametrize("content", [b"", b"x", b"[]", b"1", b"null", b'{"a":', b"[" * 100_000, b"\xff", b'"x"'])
def test_18_no_json_object(content: bytes) -> None:
    """Row 18: invalid and deeply nested input is refused, not crashed on."""
    with pytest.raises(ManifestMalformed):
        read_manifest(content)


@pytest.mark.parametrize("field", ["layers", "manifests", "blobs", "fsLayers"])
def test_18_descriptors(field: str) -> None:
    """Row 18: so many are accepted, one more is not, before any of them is read."""
    item: Any = {"blobSum": str(_ONE)} if field == "fsLayers" else _pointer()
    for kind in (_LISTS[field], "application/vnd.example.unknown+json"):
        assert read_manifest(_bytes(**{field: [item] * MOST_DESCRIPTORS}), kind)
        with pytest.raises(ManifestMalformed, match="10001 descriptors, more than the 10000 allowed"):
            read_manifest(_bytes(**{field: ["none"] * (MOST_DESCRIPTORS + 1)}), kind)


def test_what_people_are_shown_is_printable() -> None:
    """Types and platforms; annotations are passed on as they are, in JSON, which escapes them."""
    odd = "\x1b[2J\ud800"
    item = _pointer(kind=odd, artifactType=odd, platform={"os": odd, "os.features": [odd]}, annotations={"a": odd})
    found = read_descriptor(item)
    shown = "\\x1b[2J\\ud800"
    assert (found.media_type, found.artifact_type, found.platform["os"]) == (shown, shown, shown)
    assert found.annotations == {"a": odd}
    assert read_manifest(_bytes(mediaType=OCI_MANIFEST, artifactType=odd)).artifact_type == shown


def test_18_size() -> None:
    """Row 18: 4 MiB are accepted, a byte more is not, before anything is parsed."""
    content = _bytes(mediaType=OCI_MANIFEST)
    assert read_manifest(content.ljust(LARGEST)).media_type == OCI_MANIFEST
    with pytest.raises(ManifestMalformed):
        read_manifest(content.ljust(LARGEST + 1))


@pytest.mark.parametrize(
    "item",
    [
        None,
        "x",
        [],
        {},
        _pointer(size=-1),
        _pointer(size=2**63),
        _pointer(size=10**400),
        {**_pointer(), "size": True},
        {**_pointer(), "size": "1"},
        {**_pointer(), "size": 1.5},
        {**_pointer(), "size": None},
        {**_pointer(), "digest": None},
        {**_pointer(), "digest": "sha256:../../etc/passwd"},
        {**_pointer(), "digest": "md5:d41d8cd98f00b204e9800998ecf8427e"},
        {**_pointer(), "mediaType": 1},
    ],
)
def test_bad_descriptors(item: object) -> None:
    """A pointer without a valid digest and size points nowhere; a manifest with one is refused."""
    with pytest.raises(ManifestMalformed):
        read_descriptor(item)
    for field in ("layers", "blobs", "manifests"):
        for kind in (_LISTS[field], "application/vnd.example.unknown+json"):
            with pytest.raises(ManifestMalformed):
                read_manifest(_bytes(**{field: [item]}), kind)


@pytest.mark.parametrize("field", ["layers", "manifests", "blobs", "fsLayers"])
def test_lists_that_are_none(field: str) -> None:
    """Nor is an object a list."""
    for kind in (_LISTS[field], "application/vnd.example.unknown+json"):
        with pytest.raises(ManifestMalformed):
            read_manifest(_bytes(**{field: {"a": 1}}), kind)


def test_blobs_are_named_where_the_type_names_them() -> None:
    """A registry looks at those alone; what else stands in a manifest names nothing."""
    pointers: dict[str, Any] = {"layers": [_pointer()], "blobs": [_pointer(_TWO)], "fsLayers": [{"blobSum": str(_TWO)}]}
    for kind in (OCI_MANIFEST, DOCKER_MANIFEST):
        assert [blob.digest for blob in read_manifest(_bytes(**pointers), kind).blobs] == [_ONE]
    for field, named in (("blobs", _TWO), ("fsLayers", _TWO)):
        found = read_manifest(_bytes(**{**pointers, "layers": None}), _LISTS[field])
        assert [blob.digest for blob in found.blobs] == [named]
    index = read_manifest(_bytes(manifests=[_pointer()], blobs=[_pointer(_TWO)]), OCI_INDEX)
    assert ([one.digest for one in index.manifests], index.blobs) == ([_ONE], ())


@pytest.mark.parametrize(
    "text",
    [
        '"layers": [%s], "Layers": []',
        '"Layers": []',
        '"layers": [%s], "LAYERS": []',
        '"layers": [%s], "layer\u017f": []',
        '"layers": [%s], "layer\\u017f": []',
        '"layers": [%s], "layers": []',
        '"layers": [], "bloBs": [%s]',
        '"layers": [], "con\ufb01g": %s, "Config": {}',
        '"layers": [{"mediaType": "x", "size": 1, "digest": "sha256:0", "digest": "sha256:1"}]',
        '"layers": [], "annotations": {"a": "1", "a": "2"}',
    ],
)
def test_fields_that_two_readers_take_for_another(text: str) -> None:
    """Go takes names in any case, and the last of two: what the registry has looked at must be what is read here."""
    content = f'{{"mediaType": "{OCI_MANIFEST}", {text.replace("%s", json.dumps(_pointer()))}}}'
    with pytest.raises(ManifestMalformed, match="has a field"):
        read_manifest(content.encode())


@pytest.mark.parametrize("name", ["Digest", "DIGEST", "Size", "\u017fize", "URLs", "mediatype"])
def test_fields_of_a_pointer_that_two_readers_take_for_another(name: str) -> None:
    """The same within each pointer; in annotations any name is one."""
    odd = {**_pointer(), name: str(_TWO)}
    more: dict[str, Any]
    for more in ({"config": odd}, {"layers": [odd]}, {"subject": odd}):
        with pytest.raises(ManifestMalformed, match="has a field"):
            read_manifest(_bytes(mediaType=OCI_MANIFEST, **more))
    with pytest.raises(ManifestMalformed, match="has a field"):
        read_manifest(_bytes(fsLayers=[{"blobSum": str(_ONE), "blobsum": str(_TWO)}]), _SCHEMA_1)
    assert read_manifest(_bytes(mediaType=OCI_MANIFEST, annotations={name: "x"}, layers=[]))


def test_null_lists() -> None:
    """`null` is what Go writes for an empty list."""
    assert read_manifest(_bytes(mediaType=OCI_INDEX, manifests=None)).manifests == ()
    assert read_manifest(_bytes(mediaType=OCI_MANIFEST, layers=None)).blobs == ()


def test_schema_1() -> None:
    """Its layers have no sizes, and the same one often stands several times."""
    layers = [{"blobSum": str(_ONE)}, {"blobSum": str(_ONE)}, {"blobSum": str(_TWO)}]
    manifest = read_manifest(_bytes(schemaVersion=1, fsLayers=layers, signatures=[]), _SCHEMA_1)
    assert [(blob.digest, blob.size) for blob in manifest.blobs] == [(_ONE, -1), (_TWO, -1)]
    odd: list[list[Any]] = [[{}], [1], [{"blobSum": "x"}]]
    for listed in odd:
        with pytest.raises(ManifestMalformed):
            read_manifest(_bytes(schemaVersion=1, fsLayers=listed))


def test_subject_and_artifact_type() -> None:
    """What a manifest refers to, and as what; without `artifactType` the config's media type counts (image-spec)."""
    signed = read_manifest(_bytes(mediaType=OCI_MANIFEST, subject=_pointer(), config=_pointer(kind="x/config")))
    assert signed.subject is not None
    assert signed.subject.digest == _ONE
    assert signed.artifact_type == "x/config"
    assert read_manifest(_bytes(mediaType=OCI_MANIFEST, artifactType="x/own")).artifact_type == "x/own"
    assert read_manifest(_bytes(mediaType=OCI_MANIFEST)).subject is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(str(_ONE)),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["mediaType", "layers", "manifests", "config", "digest", "size", "subject", "blobs", "x"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json(body: Any) -> None:
    """Whatever comes is refused as malformed, or a manifest whose bytes are untouched."""
    content = json.dumps(body).encode()
    try:
        manifest = read_manifest(content)
    except ManifestMalformed:
        return
    assert manifest.content == content


def test_accepted_types() -> None:
    """Upstreams are asked for schema 2 before schema 1: an old registry would convert, and the digest be another."""
    assert ACCEPT.index(DOCKER_MANIFEST) < ACCEPT.index(_SCHEMA_1)
    assert {OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST} <= set(ACCEPT)


def test_descriptor_as_json() -> None:
    """Written as the specification writes it; what is empty is left out; read back it is the same."""
    assert Descriptor("a/b", _ONE, 5).to_json() == {"mediaType": "a/b", "digest": str(_ONE), "size": 5}
    rich = Descriptor("a/b", _ONE, 5, "x/y", {"k": "v"}, {"os": "linux"})
    assert read_descriptor(rich.to_json()) == rich
