"""What a push must fulfil. Pure decisions about manifests, names, tags and links of hosted repositories.

config, layers          a link of the repository, or a reservation of this caller; not for foreign layers, and not if
                        the registry accepts sparse manifests
embedded content        nothing: the manifest brings the bytes (`data`)
manifests of an index   the repository has them, unless the registry accepts sparse manifests
subject                 nothing: it may come later (distribution-spec, "Pushing Manifests with Subject")
anything else           nothing: what a manifest of an unknown type names gives no right, and need not be here
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from mirror.errors import Denied, DigestInvalid, ManifestInvalid, ManifestTooLarge
from mirror.oci.digest import Digest
from mirror.oci.manifest import (
    CHECKED,
    INDEXES,
    LARGEST,
    SCHEMA_1,
    Descriptor,
    Manifest,
    ManifestMalformed,
    is_manifest_type,
    read_manifest,
)
from mirror.oci.reference import Reference, Repo
from mirror.policy.access_rules import Action
from mirror.policy.hosted_records import BlobLink, LinkState
from mirror.policy.routing import compile_pattern

#: Callers who may have reserved the same blob at the same time. Of more, the first lose their reservations.
_MOST_RESERVERS: Final = 16
#: Blobs that one manifest may bring: each is written as durably as one that is uploaded, while the client waits.
MOST_EMBEDDED: Final = 256


@dataclass(frozen=True, slots=True)
class HostedRules:
    """The rules of one hosted registry. `names` are patterns of the repositories to which clients may push. Indexes may
    name manifests that are missing if `sparse_indexes`, and images such blobs if `sparse_images`. `keep_deleted` is in
    seconds.
    """

    names: tuple[str, ...] = ("**",)
    read_only: bool = False
    sparse_indexes: bool = False
    sparse_images: bool = False
    keep_deleted: float = 7 * 86400.0
    _patterns: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_patterns", tuple(compile_pattern(pattern) for pattern in self.names))

    def allow_name(self, name: str) -> bool:
        """Whether clients may push to the repository of this name within the registry."""
        return any(pattern.fullmatch(name) for pattern in self._patterns)

    def check_name(self, repo: Repo) -> None:
        """Raises `Denied` if clients may not push to this repository, because of its name."""
        if not self.allow_name(repo.name):
            raise Denied(f"the registry {repo.registry} does not allow repositories named {repo.name}")

    def check_writable(self, repo: Repo, *, creates: bool = True) -> None:
        """Raises `Denied` if the registry is read-only, or, if a client `creates` something, like `check_name`."""
        if self.read_only:
            raise Denied(f"the registry {repo.registry} is read-only")
        if creates:
            self.check_name(repo)


# --------------------------------------------------------------------------------------------------------- manifests


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a repository must have before it accepts a manifest, and what the manifest itself brings."""

    blobs: tuple[Descriptor, ...] = ()
    manifests: tuple[Digest, ...] = ()
    embedded: tuple[Descriptor, ...] = ()


def read_pushed(content: bytes, media_type: str | None, reference: Reference) -> Manifest:
    """The manifest in the body of a PUT. `media_type` is its `Content-Type`, `reference` stands in its path.

    Raises `ManifestTooLarge`; `ManifestInvalid` if the body is no manifest, contradicts its `Content-Type`, has a type
    that is not accepted, or brings too many blobs; `DigestInvalid` if it has another digest than the one in the path.
    """
    if len(content) > LARGEST:
        raise ManifestTooLarge(f"the manifest has more than the {LARGEST} bytes allowed")
    sent = (media_type or "").partition(";")[0].strip()
    if sent.startswith("application/vnd.") and not is_manifest_type(sent):
        raise ManifestInvalid(f"the Content-Type is not a manifest's media type: {sent[:80]!r}")
    algorithm = reference.algorithm if isinstance(reference, Digest) else "sha256"
    try:
        manifest = read_manifest(content, sent or None, algorithm=algorithm)
    except ManifestMalformed as error:
        raise ManifestInvalid(f"not a valid manifest: {error}") from error
    if manifest.media_type in SCHEMA_1:
        raise ManifestInvalid("manifests of schema 1 are not accepted: push the image in a newer format")
    if len({blob.digest for blob in manifest.blobs if blob.data is not None}) > MOST_EMBEDDED:
        raise ManifestInvalid(f"the manifest has more than {MOST_EMBEDDED} blobs in itself (`data`): upload them")
    if isinstance(reference, Digest) and manifest.digest != reference:
        raise DigestInvalid(f"the manifest is {manifest.digest}, and not {reference}")
    return manifest


def requirements(manifest: Manifest, *, sparse: bool) -> Requirements:
    """What the manifest requires; each digest once. `sparse`: whether the manifests of an index may be missing."""
    blobs: dict[Digest, Descriptor] = {}
    embedded: dict[Digest, Descriptor] = {}
    is_known = manifest.media_type in CHECKED or manifest.is_index
    for blob in manifest.blobs:
        if blob.data is not None:
            embedded[blob.digest] = blob
        elif is_known and not blob.foreign:
            blobs.setdefault(blob.digest, blob)
    for digest in embedded:
        blobs.pop(digest, None)
    children = () if sparse or manifest.media_type not in INDEXES else manifest.manifests
    return Requirements(
        tuple(blobs.values()), tuple(dict.fromkeys(child.digest for child in children)), tuple(embedded.values())
    )


def check_size(named: Descriptor, size: int) -> None:
    """Raises `ManifestInvalid` if a manifest gives another size for a blob than it has: no client could pull it."""
    if named.size not in (-1, size):
        raise ManifestInvalid(f"the manifest says that {named.digest} has {named.size} bytes; it has {size}")


def tag_action(digest: Digest, now: Digest | None) -> Action:
    """What a caller must be allowed to do, to let a tag point to `digest` that points to `now` (None: to nothing that
    the repository has).
    """
    return Action.PUSH if now is None or now == digest else Action.OVERWRITE


# ------------------------------------------------------------------------------------------------------------- links


def may_use(link: BlobLink | None, caller: str) -> bool:
    """Whether the caller of a push may rely on a link: it is in force, or the caller has reserved the blob."""
    if link is None or link.state is LinkState.REMOVED:
        return False
    return link.state is LinkState.LINKED or caller in link.by.split("\n")


def linked(digest: Digest, size: int, now: float) -> BlobLink:
    """A link that is in force from now on."""
    return BlobLink(digest, size, LinkState.LINKED, now)


def reserved(link: BlobLink | None, digest: Digest, size: int, now: float, caller: str) -> BlobLink:
    """The link that reserves a blob for a caller as well. One that is in force, or a removal, stays as it is."""
    if link is not None and link.state is not LinkState.RESERVED:
        return link
    others: Iterable[str] = link.by.split("\n") if link else ()
    callers = [*(other for other in others if other != caller), caller][-_MOST_RESERVERS:]
    return BlobLink(digest, size, LinkState.RESERVED, now, by="\n".join(callers))


def renewed(link: BlobLink, now: float) -> BlobLink:
    """The link as a client relies on it again: it waits no longer to be collected."""
    return replace(link, since=now, queued_at=None)


def is_stale(link: BlobLink, now: float, grace: float) -> bool:
    """Whether a link must be renewed when a client relies on it: it waits to be collected, or it soon may."""
    return link.queued_at is not None or not 0 <= now - link.since < grace / 2
