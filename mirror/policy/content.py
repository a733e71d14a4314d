"""What may be pulled through here, whoever asks: lists of images, sizes, digests instead of tags, signatures.

Pure; reading manifests and signatures is `repository/guarded.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from mirror.errors import Denied, DigestInvalid
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Reference, Repo
from mirror.policy.routing import compile_pattern
from mirror.values.sizes import format_size

__all__ = ["ContentLists", "ContentRule", "ImagePattern", "check_size", "patterns"]

_PATTERN: Final = re.compile(r"(?P<repo>[^:@\s]+(?::\d+/[^:@\s]+)?)(?::(?P<tag>[^:@\s/]+))?(?:@(?P<digest>\S+))?")


@dataclass(frozen=True, slots=True)
class ImagePattern:
    """`registry/name`, `registry/name:tag` or `registry/name@digest`, the first two with `*`, `**` and `?`.

    Without tag and digest it means everything of the repository. Raises `ValueError` where it is none.
    """

    text: str
    _repo: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _tag: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    _digest: Digest | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        found = _PATTERN.fullmatch(self.text)
        if found is None or (found["tag"] and found["digest"]):
            raise ValueError(f"not registry/name, registry/name:tag or registry/name@digest: {self.text!r}")
        digest = None
        if found["digest"]:
            try:
                digest = Digest.parse(found["digest"])
            except DigestInvalid as error:
                raise ValueError(f"not a digest: {found['digest']!r}") from error
        object.__setattr__(self, "_repo", compile_pattern(found["repo"]))
        object.__setattr__(self, "_tag", compile_pattern(found["tag"]) if found["tag"] else None)
        object.__setattr__(self, "_digest", digest)

    def fits(self, repo: Repo, tag: str | None, digest: Digest | None) -> bool:
        """Whether it means this. `tag` and `digest` are what is known; a pattern of the unknown one does not fit."""
        if not self._repo.fullmatch(str(repo)):
            return False
        if self._digest is not None:
            return digest == self._digest
        return self._tag is None or (tag is not None and self._tag.fullmatch(tag) is not None)

    def covers(self, repo: Repo) -> bool:
        """Whether it means anything of this repository."""
        return self._repo.fullmatch(str(repo)) is not None


@dataclass(frozen=True, slots=True)
class ContentLists:
    """`deny` goes before `allow`; an empty `allow` allows everything."""

    allow: tuple[ImagePattern, ...] = ()
    deny: tuple[ImagePattern, ...] = ()

    def check(self, repo: Repo, tag: str | None, digest: Digest | None) -> None:
        """Of a manifest. Raises `Denied` with the reason.

        Asked by digest alone, what is allowed by tag only is let through: its tag was asked for before, or its index.
        """
        self.check_denied(repo, tag, digest)
        if self.allow and not any(
            pattern.covers(repo) if tag is None else pattern.fits(repo, tag, digest) for pattern in self.allow
        ):
            raise Denied(f"{_called(repo, tag, digest)} is on no list of what is allowed here")

    def check_denied(self, repo: Repo, tag: str | None, digest: Digest | None) -> None:
        """Against `deny` alone. Raises `Denied` with the reason."""
        for pattern in self.deny:
            if pattern.fits(repo, tag, digest):
                raise Denied(f"{_called(repo, tag, digest)} is denied here by {pattern.text}")

    def check_blob(self, repo: Repo, digest: Digest) -> None:
        """Of a blob, or of what is about the repository as a whole. Raises `Denied`."""
        self.check(repo, None, digest)


@dataclass(frozen=True, slots=True)
class ContentRule:
    """Of one route. `largest` is bytes of an image's config and layers together; `signed_by` are names of key files."""

    require_digest: bool = False
    largest: int | None = None
    signed_by: tuple[str, ...] = ()

    def check_reference(self, repo: Repo, reference: Reference) -> None:
        """Raises `Denied` for a tag where a digest is required."""
        if self.require_digest and not isinstance(reference, Digest):
            raise Denied(f"{repo} is pulled by digest here, not by tag: {repo}@sha256:… instead of {repo}:{reference}")


def check_size(rule: ContentRule, repo: Repo, manifest: Manifest) -> None:
    """Raises `Denied` for an image that is too large, or does not say how large it is.

    Layers with `urls` count: clients take them from here where these lead nowhere.
    """
    if rule.largest is None:
        return
    if any(blob.size < 0 for blob in manifest.blobs):
        raise Denied(f"{repo}@{manifest.digest} does not say its size, {format_size(rule.largest)} are allowed here")
    size = sum(blob.size for blob in manifest.blobs)
    if size > rule.largest:
        raise Denied(f"{repo}@{manifest.digest} has {format_size(size)}, {format_size(rule.largest)} are allowed here")


def patterns(texts: Iterable[str]) -> tuple[ImagePattern, ...]:
    """Raises `ValueError`."""
    return tuple(ImagePattern(text) for text in texts)


def _called(repo: Repo, tag: str | None, digest: Digest | None) -> str:
    return f"{repo}:{tag}" if tag is not None else f"{repo}@{digest}" if digest is not None else str(repo)
