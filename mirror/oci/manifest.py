"""Manifests and indexes (image-spec, manifest.md and image-index.md; Docker image manifest v2, schemas 1 and 2).

Bytes are never converted or rewritten: a `Manifest` has the exact bytes from upstream, and the fields parsed from them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mirror.errors import DigestInvalid
from mirror.oci.digest import Digest
from mirror.oci.strict_json import FieldTwice, read_json
from mirror.oci.text import printable

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
SCHEMA_1: Final = (
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.distribution.manifest.v1+json",
)
_ARTIFACT: Final = "application/vnd.oci.artifact.manifest.v1+json"

#: The media types that the mirror accepts from upstreams, best first. Without the schema 2 types an old registry
#: converts to schema 1, and a converted manifest has another digest than the one that the tag points to.
ACCEPT: Final = (OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST, _ARTIFACT, *SCHEMA_1)

#: The largest manifest that is accepted, in bytes (distribution-spec, "Pushing Manifests", asks for at least this).
LARGEST: Final = 4 * 1024 * 1024

#: The most descriptors of a manifest. Images have some dozens of layers, caches of build tools some hundreds. Each
#: descriptor costs parsing time and a row in the index, and 4 MiB have room for 36,000.
MOST_DESCRIPTORS: Final = 10_000

#: The form of a manifest's media type (RFC 6838, 4.2, and image-spec, descriptor.md). It is sent as `Content-Type` from
#: the mirror's own origin. With a type other than `application/…`, a browser could show the content as a page.
_MANIFEST_TYPE: Final = re.compile(r"application/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}", re.IGNORECASE)

#: The largest size that a descriptor may give, in bytes: an int64 (image-spec, descriptor.md, "Properties"). Clients
#: refuse larger numbers, and neither a file nor a database has room for them.
_LARGEST_SIZE: Final = 2**63 - 1

#: Media types of indexes, which name manifests.
INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
_IMAGES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
#: Media types that registries know. They accept such a manifest only if they have the blobs in the fields that its type
#: defines.
CHECKED: Final = frozenset({*_IMAGES, _ARTIFACT, *SCHEMA_1})

#: Media types of blobs that an index may list: layers, configs, and the config of BuildKit's cache.
_BLOBS: Final = frozenset(
    {
        "application/octet-stream",
        "application/vnd.buildkit.cacheconfig.v0",
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.oci.empty.v1+json",
        "application/vnd.oci.image.config.v1+json",
    }
)
_BLOB_PREFIXES: Final = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_BLOB_SUFFIXES: Final = ("+gzip", "+zstd", ".gzip", ".tar", "/gzip", "/tar", "/zstd", "/x-tar")

#: The fields that are read. Registries and clients in Go match field names case-insensitively, so they would read a
#: field that differs only in case as one of these (Go's encoding/json, "preferring exact matches but also accepting
#: case-insensitive").
_FIELDS: Final = {
    name.casefold(): name
    for name in (
        *("schemaVersion", "mediaType", "artifactType", "annotations", "platform", "digest", "size", "urls", "data"),
        *("config", "layers", "manifests", "blobs", "subject", "fsLayers", "blobSum", "signatures", "history"),
    )
}


class ManifestMalformed(ValueError):
    """The bytes are not a manifest, or are one that two readers could understand differently."""


def is_manifest_type(text: str) -> bool:
    """Whether a manifest may be sent with this `Content-Type`: `application/…` without parameters."""
    return _MANIFEST_TYPE.fullmatch(text) is not None


def check_manifest_type(text: object) -> str:
    """Return the media type that a descriptor or record gives for a manifest. Raises `ManifestMalformed` if invalid."""
    if not isinstance(text, str) or not is_manifest_type(text):
        raise ManifestMalformed(f"{printable(str(text)[:80])!r} is not a manifest's media type (application/…)")
    return text


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A pointer to content (image-spec, descriptor.md). `size` is in bytes."""

    media_type: str
    digest: Digest
    size: int
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Mapping[str, Any] = field(default_factory=dict)
    #: Whether the descriptor says that its content is elsewhere (`urls`), so that registries do not require it.
    foreign: bool = False
    #: The content, if the descriptor embeds it (`data`) and it matches the digest and size.
    data: bytes | None = field(default=None, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The descriptor as JSON, with the field names of the specification."""
        written: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.artifact_type:
            written["artifactType"] = self.artifact_type
        if self.annotations:
            written["annotations"] = dict(self.annotations)
        if self.platform:
            written["platform"] = dict(self.platform)
        return written


@dataclass(frozen=True, slots=True)
class Manifest:
    """The exact bytes of a manifest or index, its media type and digest, and the content that it names.

    A descriptor is in `manifests` or `blobs` according to its media type, not to the list that contains it: BuildKit
    stores its cache as an index whose `manifests` are layers.
    """

    content: bytes
    media_type: str
    digest: Digest
    manifests: tuple[Descriptor, ...] = ()
    blobs: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str | None = None
    #: Whether the first of `blobs` is the config.
    has_config: bool = False
    #: Whether `digest` is the digest of a signed manifest's payload (schema 1), not of `content`.
    signed: bool = False

    @property
    def descriptor(self) -> Descriptor:
        """A descriptor that points to this manifest."""
        return Descriptor(self.media_type, self.digest, len(self.content), self.artifact_type)

    @property
    def is_index(self) -> bool:
        """Whether this is an index, which names manifests rather than layers."""
        return self.media_type in INDEXES


def read_manifest(content: bytes, media_type: str | None = None, *, algorithm: str = "sha256") -> Manifest:
    """Parse a manifest that was sent with the `Content-Type` `media_type`.

    `algorithm` is the algorithm of the digest by which the manifest was requested. The media type is taken from the
    body if the body states it. Blobs are taken only from the fields that this type defines: a registry ignores all
    other fields, so they prove nothing.

    Raises `ManifestMalformed` if the bytes are not a JSON object, are over 4 MiB, have more than `MOST_DESCRIPTORS`
    descriptors, name both `manifests` and `layers`, have a field twice, have a media type that no manifest may have, or
    contradict their Content-Type (CVE-2021-41190: readers must not interpret one digest in two ways).

    Parsing 4 MiB takes a tenth of a second or more, so large manifests from an upstream are parsed in a thread.
    """
    if len(content) > LARGEST:
        raise ManifestMalformed(f"{len(content)} bytes, more than the {LARGEST} allowed")
    try:
        body = read_json(content, fields_once=True)
    except FieldTwice as error:
        raise ManifestMalformed("has a field twice") from error
    except ValueError as error:
        raise ManifestMalformed("not JSON") from error
    if not isinstance(body, dict):
        raise ManifestMalformed("not a JSON object")
    _check_fields(body)
    _check_count(body)
    if "manifests" in body and ("layers" in body or "fsLayers" in body or "config" in body):
        raise ManifestMalformed("names both manifests and layers")
    kind = _media_type(body, media_type)
    if kind in INDEXES and ("layers" in body or "manifests" not in body):
        raise ManifestMalformed(f"says it is {kind} but names no manifests")
    if kind in _IMAGES and "manifests" in body:
        raise ManifestMalformed(f"says it is {kind} but names manifests")
    config = body.get("config")
    subject = body.get("subject")
    artifact = body.get("artifactType")
    if not isinstance(artifact, str):
        artifact = config.get("mediaType") if isinstance(config, dict) and kind == OCI_MANIFEST else None
    children = _descriptors(body.get("manifests", []))
    return Manifest(
        content=content,
        media_type=kind,
        digest=Digest.of(content, algorithm),
        manifests=tuple(child for child in children if not _is_blob(child)),
        blobs=(*(child for child in children if _is_blob(child)), *_blobs(body, kind)),
        subject=read_descriptor(subject) if isinstance(subject, dict) else None,
        artifact_type=printable(artifact) if isinstance(artifact, str) else None,
        has_config=isinstance(config, dict) and kind not in (_ARTIFACT, *SCHEMA_1),
    )


def _is_blob(child: Descriptor) -> bool:
    """Whether an entry of an index is a blob: its media type is that of a layer, a config or an archive.

    All other entries count as manifests, also those of unknown types, because an index is a list of manifests.
    """
    kind = child.media_type.partition(";")[0].strip().lower()
    return kind in _BLOBS or kind.startswith(_BLOB_PREFIXES) or kind.endswith(_BLOB_SUFFIXES)


def _check_fields(item: Mapping[str, Any]) -> None:
    for name in item:
        if (standard := _FIELDS.get(name.casefold())) is not None and name != standard:
            raise ManifestMalformed(f"has a field {name[:40]!r}, which is {standard} to some readers and not to others")


def _check_count(body: Mapping[str, Any]) -> None:
    lists = (body.get(name) for name in ("manifests", "layers", "blobs", "fsLayers"))
    count = sum(len(listed) for listed in lists if isinstance(listed, list))
    if count > MOST_DESCRIPTORS:
        raise ManifestMalformed(f"has {count} descriptors, more than the {MOST_DESCRIPTORS} allowed")


def _blobs(body: Mapping[str, Any], kind: str) -> tuple[Descriptor, ...]:
    config = body.get("config")
    configs = [read_descriptor(config)] if isinstance(config, dict) else []
    if kind in INDEXES:
        return ()
    if kind in _IMAGES:
        return (*configs, *_descriptors(body.get("layers", [])))
    if kind in SCHEMA_1:
        return _schema_1_layers(body.get("fsLayers", []))
    if kind == _ARTIFACT:
        return _descriptors(body.get("blobs", []))
    return (
        *configs,
        *_descriptors(body.get("layers", [])),
        *_descriptors(body.get("blobs", [])),
        *_schema_1_layers(body.get("fsLayers", [])),
    )


def _media_type(body: dict[str, Any], header: str | None) -> str:
    """The media type in the body, which the header must not contradict. Without one, the header's, or a derived one.

    Only a header in the vendor tree (`application/vnd.…`) counts. All others are ignored: registries have sent
    manifests as `text/html` (Quay, GCR), `text/plain` (registry.access.redhat.com) and `application/octet-stream`
    (Docker Hub).
    """
    own = body.get("mediaType")
    sent = (header or "").partition(";")[0].strip().lower()
    if not sent.startswith("application/vnd.") or not is_manifest_type(sent):
        sent = ""
    if own is None:
        if sent:
            return sent
        if body.get("schemaVersion") == 1:
            return SCHEMA_1[0] if "signatures" in body else SCHEMA_1[1]
        if not body.keys() & {"manifests", "config", "layers", "blobs"}:
            # an error or a login page that was sent as JSON with status 200
            raise ManifestMalformed("has neither content nor a media type")
        return OCI_INDEX if "manifests" in body else OCI_MANIFEST
    own = check_manifest_type(own)
    if sent and sent != own.lower():
        raise ManifestMalformed(f"mediaType is {own} but came as {sent}")
    return own


def _descriptors(listed: object) -> tuple[Descriptor, ...]:
    if listed is None:
        return ()
    if not isinstance(listed, list):
        raise ManifestMalformed("descriptors are not a list")
    return tuple(read_descriptor(item) for item in listed)


def read_descriptor(item: object) -> Descriptor:
    """Read one descriptor from JSON. Its `urls` are never fetched (CVE-2020-15157). Raises `ManifestMalformed`.

    The fields that are shown to people are made printable: media type, artifact type and platform. The media type of a
    layer may be any text.
    """
    if not isinstance(item, dict):
        raise ManifestMalformed("a descriptor is not an object")
    _check_fields(item)
    digest, size, kind = item.get("digest"), item.get("size"), item.get("mediaType", "")
    if not isinstance(digest, str) or not isinstance(size, int) or isinstance(size, bool):
        raise ManifestMalformed("a descriptor lacks digest or size")
    if not 0 <= size <= _LARGEST_SIZE:
        raise ManifestMalformed("a descriptor has a size that nothing has")
    if not isinstance(kind, str):
        raise ManifestMalformed("a descriptor's mediaType is not a string")
    artifact, notes, platform = item.get("artifactType"), item.get("annotations"), item.get("platform")
    try:
        parsed = Digest.parse(digest)
    except DigestInvalid as error:
        raise ManifestMalformed(str(error)) from error
    return Descriptor(
        printable(kind),
        parsed,
        size,
        printable(artifact) if isinstance(artifact, str) else None,
        {k: v for k, v in notes.items() if isinstance(v, str)} if isinstance(notes, dict) else {},
        _printable_values(platform) if isinstance(platform, dict) else {},
        foreign=bool(item.get("urls")) or "foreign" in kind or "nondistributable" in kind,
        data=_embedded(item.get("data"), parsed, size),
    )


def _printable_values(platform: Mapping[str, Any]) -> dict[str, Any]:
    return {name: printable(value) if isinstance(value, str) else value for name, value in platform.items()}


def _embedded(data: object, digest: Digest, size: int) -> bytes | None:
    """The content that a descriptor embeds (image-spec, descriptor.md, "Embedded Content").

    None if there is none, or if it does not match the digest and size.
    """
    if not isinstance(data, str):
        return None
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError:
        return None
    return content if len(content) == size and digest.matches(content) else None


def _schema_1_layers(listed: object) -> tuple[Descriptor, ...]:
    """The layers of schema 1, each once: the list often repeats a layer. Sizes are unknown (-1)."""
    if not isinstance(listed, list):
        raise ManifestMalformed("fsLayers is not a list")
    layers: dict[Digest, Descriptor] = {}
    for item in listed:
        if isinstance(item, dict):
            _check_fields(item)
        text = item.get("blobSum") if isinstance(item, dict) else None
        if not isinstance(text, str):
            raise ManifestMalformed("a layer lacks blobSum")
        try:
            digest = Digest.parse(text)
        except DigestInvalid as error:
            raise ManifestMalformed(str(error)) from error
        layers[digest] = Descriptor("", digest, -1)
    return tuple(layers.values())
