"""Image names as people write them: `alpine`, `quay.io/org/app:1.2`, `ghcr.io/owner/app@sha256:…`.

The rules are Docker's, except that the registry must be configured in this mirror: an image that the mirror would never
serve is reported as a mistake at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mirror.errors import NameInvalid, NameUnknown
from mirror.oci.digest import HEX_LENGTHS, Digest
from mirror.oci.reference import Reference, Repo, check_name, check_registry, check_tag
from mirror.policy.routing import RoutingTable, full_name

_DEFAULT_TAG: Final = "latest"


@dataclass(frozen=True, slots=True)
class Image:
    """A repository with a tag, a digest, or both. If it has both, the digest decides and the tag is only a name."""

    repo: Repo
    tag: str | None = None
    digest: Digest | None = None

    @property
    def reference(self) -> Reference:
        """The reference to request from a registry."""
        return self.digest or self.tag or _DEFAULT_TAG

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repo}{tag}@{self.digest}" if self.digest else f"{self.repo}{tag}"


def name_of(repo: Repo, reference: Reference) -> str:
    """The image as people write it."""
    return str(Image(repo, digest=reference) if isinstance(reference, Digest) else Image(repo, reference))


def has_reference(text: str) -> bool:
    """Whether a name as people write it has a tag or a digest."""
    return "@" in text or ":" in text.rpartition("/")[2]


def parse_image(text: str, table: RoutingTable, *, virtual: bool = False) -> Image:
    """Parse an image of a configured registry. Without a tag or digest, the tag is `latest`.

    Raises `NameInvalid`, `TagInvalid`, `DigestInvalid`, and `NameUnknown` if the registry is not configured, or is
    virtual: only with `virtual` may it be.
    """
    written = text.strip().removeprefix("docker://")
    name, separator, digest = written.partition("@")
    parsed = Digest.parse(digest) if separator else None
    head, slash, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    name = f"{head}{slash}{last}"
    if not name:
        raise NameInvalid(f"not an image: {text[:80]!r}")
    if len(tag) == HEX_LENGTHS.get(name) and not separator:
        raise NameInvalid(f"a digest alone names no image, write NAME@{written}")
    given = check_tag(tag) if colon else None
    first, slash, rest = name.partition("/")
    if slash and table.is_registry(first):
        configured = table.registry(check_registry(first.lower()))
        if configured is None:
            raise NameUnknown(f"{text}: the registry {first} is not configured in this mirror")
        name = rest
    else:
        configured = table.registry(table.default) if table.default is not None else None
        if configured is None:
            raise NameUnknown(f"{text}: no registry is named, and there is no default one")
    registry, entry = configured
    if entry.members and not virtual:
        raise NameUnknown(f"{text}: {registry} is virtual; name the image of a member ({', '.join(entry.members)})")
    name = full_name(name, library=entry.library)
    return Image(Repo(registry, check_name(name)), given or (None if parsed else _DEFAULT_TAG), parsed)
