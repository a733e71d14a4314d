"""Which content may be pulled, for all callers alike: image lists, size limits, required digests and signatures.

Pure functions. `repository/guarded.py` reads the manifests and signatures.
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

_PATTERN: Final = re.compile(r"(?P<repo>[^:@\s]+(?::\d+/[^:@\s]+)?)(?::(?P<tag>[^:@\s/]+))?(?:@(?P<digest>\S+))?")


@dataclass(frozen=True, slots=True)
class ImagePattern:
    """A pattern for images: `registry/name`, `registry/name:tag` or `registry/name@digest`.

    Name and tag may contain `*`, `**` and `?`. A pattern without tag and digest matches everything in the repository.
    Raises `ValueError` if `text` is none of these.
    """

    text: str
    _repo: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _tag: re.Pattern[str] | None = field(init=False, repr=False, compare=False)
    _digest: Digest | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        match = _PATTERN.fullmatch(self.text)
        if match is None or (match["tag"] and match["digest"]):
            raise ValueError(f"not registry/name, registry/name:tag or registry/name@digest: {self.text!r}")
        digest = None
        if match["digest"]:
            try:
                digest = Digest.parse(match["digest"])
            except DigestInvalid as error:
                raise ValueError(f"not a digest: {match['digest']!r}") from error
        object.__setattr__(self, "_repo", compile_pattern(match["repo"]))
        object.__setattr__(self, "_tag", compile_pattern(match["tag"]) if match["tag"] else None)
        object.__setattr__(self, "_digest", digest)

    def fits(self, repo: Repo, tag: str | None, digest: Digest | None) -> bool:
        """Whether the pattern matches this image. None means unknown: a pattern with a tag or digest then fails."""
        if not self._repo.fullmatch(str(repo)):
            return False
        if self._digest is not None:
            return digest == self._digest
        return self._tag is None or (tag is not None and self._tag.fullmatch(tag) is not None)

    def covers(self, repo: Repo) -> bool:
        """Whether the pattern matches any image of this repository."""
        return self._repo.fullmatch(str(repo)) is not None


@dataclass(frozen=True, slots=True)
class ContentLists:
    """Lists of denied and allowed images. `deny` takes precedence; an empty `allow` allows everything."""

    allow: tuple[ImagePattern, ...] = ()
    deny: tuple[ImagePattern, ...] = ()

    def check(self, repo: Repo, tag: str | None, digest: Digest | None) -> None:
        """Check a manifest against both lists. Raises `Denied` with the reason.

        If only the digest is known, any manifest of a repository that `allow` covers passes: the client has asked for
        its tag, or for its index, before.
        """
        self.check_denied(repo, tag, digest)
        if self.allow and not any(
            pattern.covers(repo) if tag is None else pattern.fits(repo, tag, digest) for pattern in self.allow
        ):
            raise Denied(f"{_called(repo, tag, digest)} is on no list of what is allowed here")

    def check_denied(self, repo: Repo, tag: str | None, digest: Digest | None) -> None:
        """Check against `deny` alone. Raises `Denied` with the reason."""
        for pattern in self.deny:
            if pattern.fits(repo, tag, digest):
                raise Denied(f"{_called(repo, tag, digest)} is denied here by {pattern.text}")

    def check_blob(self, repo: Repo, digest: Digest) -> None:
        """Check a blob against both lists. Raises `Denied`."""
        self.check(repo, None, digest)


@dataclass(frozen=True, slots=True)
class ContentRule:
    """The content rule of one route.

    `largest` is the greatest total size of an image's config and layers, in bytes. `signed_by` has names of key files.
    """

    require_digest: bool = False
    largest: int | None = None
    signed_by: tuple[str, ...] = ()

    def check_reference(self, repo: Repo, reference: Reference) -> None:
        """Raises `Denied` if the reference is a tag and the route requires a digest."""
        if self.require_digest and not isinstance(reference, Digest):
            raise Denied(f"{repo} is pulled by digest here, not by tag: {repo}@sha256:… instead of {repo}:{reference}")


def check_size(rule: ContentRule, repo: Repo, manifest: Manifest) -> None:
    """Raises `Denied` if the image is too large, or if its manifest does not state all sizes.

    Layers with `urls` count, because clients pull them from the mirror if the URLs do not work.
    """
    if rule.largest is None:
        return
    most = f"at most {format_size(rule.largest)} may be pulled"
    if any(blob.size < 0 for blob in manifest.blobs):
        raise Denied(f"{repo}@{manifest.digest} does not say its size: {most}")
    size = sum(blob.size for blob in manifest.blobs)
    if size > rule.largest:
        raise Denied(f"{repo}@{manifest.digest} has {format_size(size)}: {most}")


def patterns(texts: Iterable[str]) -> tuple[ImagePattern, ...]:
    """The texts as patterns. Raises `ValueError`."""
    return tuple(ImagePattern(text) for text in texts)


def _called(repo: Repo, tag: str | None, digest: Digest | None) -> str:
    return f"{repo}:{tag}" if tag is not None else f"{repo}@{digest}" if digest is not None else str(repo)
