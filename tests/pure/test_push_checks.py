"""What a push must fulfil, as functions of plain values."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from mirror.errors import DigestInvalid, ManifestInvalid, ManifestTooLarge
from mirror.oci.digest import Digest
from mirror.oci.manifest import DOCKER_LIST, DOCKER_MANIFEST, LARGEST, OCI_INDEX, OCI_MANIFEST
from mirror.policy.access_rules import Action
from mirror.policy.hosted.push_checks import (
    MOST_EMBEDDED,
    HostedRules,
    check_size,
    is_stale,
    linked,
    may_use,
    read_pushed,
    renewed,
    requirements,
    reserved,
    tag_action,
)
from mirror.policy.hosted_records import BlobLink, LinkState

CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
EMPTY = "application/vnd.oci.empty.v1+json"


def _descriptor(content: bytes, media_type: str = LAYER, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content), **more}


def _body(**fields: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, **fields}).encode()


def _required(content: bytes, media_type: str | None = None) -> tuple[list[Digest], list[Digest]]:
    needed = requirements(read_pushed(content, media_type, "1"), sparse=False)
    return [blob.digest for blob in needed.blobs], list(needed.manifests)


_C, _L, _M = Digest.of(b"{}"), Digest.of(b"layer"), Digest.of(b"child")
_CONFIG, _LAYER = _descriptor(b"{}", CONFIG), _descriptor(b"layer")
_CHILD = _descriptor(b"child", OCI_MANIFEST)


def test_a_manifest_brings_no_more_blobs_than_it_may() -> None:
    """Ten thousand small ones would be written one by one, for half a minute. One that is there twice counts once."""

    def embedding(count: int) -> bytes:
        contents = [b"%d" % number for number in range(count)]
        layers = [_descriptor(content, data=base64.b64encode(content).decode()) for content in contents]
        return _body(mediaType=OCI_MANIFEST, config=_CONFIG, layers=[*layers, layers[0]])

    most = requirements(read_pushed(embedding(MOST_EMBEDDED), None, "1"), sparse=False)
    assert len(most.embedded) == MOST_EMBEDDED
    with pytest.raises(ManifestInvalid, match="256"):
        read_pushed(embedding(MOST_EMBEDDED + 1), None, "1")


@pytest.mark.parametrize(
    ("body", "blobs", "manifests"),
    [
        # the data sets of the conformance program
        ({"mediaType": OCI_MANIFEST, "config": _CONFIG, "layers": [_LAYER]}, [_C, _L], []),
        ({"mediaType": DOCKER_MANIFEST, "config": _CONFIG, "layers": [_LAYER, _LAYER]}, [_C, _L], []),
        ({"mediaType": OCI_MANIFEST, "config": _CONFIG, "layers": []}, [_C], []),
        ({"mediaType": OCI_MANIFEST, "config": _CONFIG, "layers": None}, [_C], []),
        ({"mediaType": OCI_MANIFEST, "config": _CONFIG}, [_C], []),
        ({"mediaType": OCI_INDEX, "manifests": [_CHILD]}, [], [_M]),
        ({"mediaType": OCI_INDEX, "manifests": [{**_CHILD, "mediaType": OCI_INDEX}]}, [], [_M]),
        ({"mediaType": OCI_INDEX, "manifests": []}, [], []),
        ({"mediaType": OCI_INDEX, "manifests": None}, [], []),
        ({"mediaType": DOCKER_LIST, "manifests": [_CHILD]}, [], [_M]),
        (
            {
                "mediaType": OCI_MANIFEST,
                "artifactType": "application/x",
                "config": _descriptor(b"{}", EMPTY),
                "layers": [],
            },
            [_C],
            [],
        ),
        ({"mediaType": OCI_MANIFEST, "config": _CONFIG, "layers": [_LAYER], "subject": _CHILD}, [_C, _L], []),
        ({"mediaType": OCI_INDEX, "manifests": [], "subject": _CHILD, "artifactType": "application/x"}, [], []),
        (
            {
                "mediaType": OCI_MANIFEST,
                "org.example.custom": {"layers": [1]},
                "config": {**_CONFIG, "org.example": 1},
                "layers": [{**_LAYER, "mediaType": "text/anything"}],
            },
            [_C, _L],
            [],
        ),
        # without a media type in the body
        ({"config": _CONFIG, "layers": [_LAYER]}, [_C, _L], []),
        ({"manifests": [_CHILD]}, [], [_M]),
        # content that is elsewhere, and a build cache, whose index names blobs
        ({"mediaType": OCI_MANIFEST, "config": _CONFIG, "layers": [{**_LAYER, "urls": ["https://x"]}]}, [_C], []),
        ({"mediaType": OCI_INDEX, "manifests": [_LAYER]}, [_L], []),
        # an unknown type grants nothing and requires nothing
        ({"mediaType": "application/vnd.example+json", "config": _CONFIG, "layers": [_LAYER]}, [], []),
        ({"mediaType": "application/vnd.example+json", "manifests": [_CHILD]}, [], []),
    ],
)
def test_what_a_manifest_requires(body: dict[str, Any], blobs: list[Digest], manifests: list[Digest]) -> None:
    """All that the specification accepts is accepted; each digest is required once."""
    assert _required(_body(**body)) == (blobs, manifests)


def test_embedded_content_is_not_required() -> None:
    """If it is what the digest names; otherwise it is required like any other blob."""
    right = _descriptor(b"layer", data=base64.b64encode(b"layer").decode())
    wrong = _descriptor(b"layer", data=base64.b64encode(b"other").decode())
    needed = requirements(
        read_pushed(_body(mediaType=OCI_MANIFEST, config=_CONFIG, layers=[right, _LAYER]), None, "1"), sparse=False
    )
    assert [blob.digest for blob in needed.blobs] == [_C]
    assert [(blob.digest, blob.data) for blob in needed.embedded] == [(_L, b"layer")]
    assert _required(_body(mediaType=OCI_MANIFEST, config=_CONFIG, layers=[wrong])) == ([_C, _L], [])


def test_a_sparse_index_requires_nothing_of_its_manifests() -> None:
    """If the registry accepts such indexes."""
    manifest = read_pushed(_body(mediaType=OCI_INDEX, manifests=[_CHILD]), None, "1")
    assert requirements(manifest, sparse=True).manifests == ()


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"", None),
        (b"hello", OCI_MANIFEST),
        (b"[]", OCI_MANIFEST),
        (b"{}", None),
        (_body(mediaType="text/html", config=_CONFIG, layers=[]), None),
        (_body(mediaType=OCI_MANIFEST, config=_CONFIG, layers=[]), OCI_INDEX),
        (_body(mediaType=OCI_MANIFEST, config=_CONFIG, layers=[], manifests=[]), None),
        (_body(mediaType=OCI_INDEX, config=_CONFIG, layers=[]), None),
        (_body(mediaType=OCI_MANIFEST, config=_CONFIG, layers=[{"digest": str(_L)}]), None),
        (_body(mediaType=OCI_MANIFEST, config=_CONFIG, layers=[{**_LAYER, "digest": "md5:abc"}]), None),
        (_body(mediaType=OCI_MANIFEST, config=_CONFIG, layers=[{**_LAYER, "size": -1}]), None),
        (_body(mediaType=OCI_MANIFEST, config=_CONFIG, Layers=[]), None),
        (b'{"schemaVersion":2,"layers":[],"layers":[]}', OCI_MANIFEST),
        (_body(config=_CONFIG, layers=[]), "application/vnd.x\x00y"),
        (json.dumps({"schemaVersion": 1, "fsLayers": []}).encode(), None),
        (b"[" * 100_000, OCI_MANIFEST),
    ],
)
def test_105_nonsense_is_refused(content: bytes, media_type: str | None) -> None:
    """Row 105: with a message that says why, and never by any other error."""
    with pytest.raises(ManifestInvalid, match=r"\w+ \w+"):
        read_pushed(content, media_type, "1")


def test_size_and_digest() -> None:
    """4 MiB are accepted and no more; the digest in the path decides about the algorithm."""
    padded = _body(mediaType=OCI_MANIFEST, config=_CONFIG, layers=[], annotations={"x": ""})
    whole = padded.replace(b'"x": ""', b'"x": "' + b"y" * (LARGEST - len(padded)) + b'"')
    assert len(read_pushed(whole, OCI_MANIFEST, "1").content) == LARGEST
    with pytest.raises(ManifestTooLarge):
        read_pushed(whole + b" ", OCI_MANIFEST, "1")
    for algorithm in ("sha256", "sha512"):
        digest = Digest.of(padded, algorithm)
        assert read_pushed(padded, "application/json; charset=utf-8", digest).digest == digest
    with pytest.raises(DigestInvalid, match=r"the manifest is sha256:\w+, and not sha256:"):
        read_pushed(padded, None, Digest.of(b"other"))


def test_a_size_that_is_not_the_blobs_is_refused() -> None:
    """A manifest with a wrong size cannot be pulled."""
    blob = read_pushed(_body(mediaType=OCI_MANIFEST, config=_CONFIG, layers=[]), None, "1").blobs[0]
    check_size(blob, 2)
    with pytest.raises(ManifestInvalid, match="2 bytes; it has 3"):
        check_size(blob, 3)


def test_moving_a_tag_needs_more_than_making_one() -> None:
    """To the same digest, it does not move."""
    assert tag_action(_C, None) is Action.PUSH
    assert tag_action(_C, _C) is Action.PUSH
    assert tag_action(_C, _L) is Action.OVERWRITE


def test_names_that_may_be_pushed_to() -> None:
    """By patterns within the registry; without any, all names."""
    rules = HostedRules(("team-*/**", "tools"))
    assert [name for name in ("team-a/x/y", "tools", "tools/x", "team/x") if rules.allow_name(name)] == [
        "team-a/x/y",
        "tools",
    ]
    assert HostedRules().allow_name("any/thing")


def test_who_may_use_a_link() -> None:
    """All, if it is in force; those who have reserved the blob; nobody, once it was deleted."""
    link = linked(_L, 5, 1000.0)
    assert may_use(link, "user:a")
    assert not may_use(None, "user:a")
    first = reserved(None, _L, 5, 1000.0, "user:a")
    both = reserved(first, _L, 5, 1001.0, "user:b")
    assert [may_use(first, caller) for caller in ("user:a", "user:b", "user", "")] == [True, False, False, False]
    assert [may_use(both, caller) for caller in ("user:a", "user:b", "user:a\nuser:b")] == [True, True, False]
    many = both
    for number in range(20):
        many = reserved(many, _L, 5, 1002.0, f"user:{number}")
    assert not may_use(many, "user:a")
    assert may_use(many, "user:19")
    removed = BlobLink(_L, 5, LinkState.REMOVED, 1000.0)
    assert reserved(removed, _L, 5, 1001.0, "user:a") is removed
    assert reserved(link, _L, 5, 1001.0, "user:a") is link
    assert not may_use(removed, "user:a")
    assert BlobLink.from_json(_L, both.to_json()) == both


def test_a_link_is_renewed_before_it_may_be_collected() -> None:
    """After half of the grace time, if it waits already, or if its time lies in the future."""
    link = linked(_L, 5, 1000.0)
    assert [is_stale(link, now, 100.0) for now in (1000.0, 1049.0, 1050.0, 999.0)] == [False, False, True, True]
    waiting = BlobLink(_L, 5, LinkState.LINKED, 1000.0, queued_at=1001.0)
    assert is_stale(waiting, 1001.0, 100.0)
    assert renewed(waiting, 1002.0) == linked(_L, 5, 1002.0)
