"""The data of a `docker-registry` (`registry:2`), pull-through caches included, as a source of images.

    <root>/docker/registry/v2/
    ├── blobs/<algorithm>/<ab>/<hex>/data
    └── repositories/<name…>/
        ├── _manifests/tags/<tag>/current/link            the digest that the tag names, as text
        ├── _manifests/revisions/<algorithm>/<hex>/link   the repository has this manifest
        └── _layers/<algorithm>/<hex>/link                the repository has this blob

It is a directory (`RegistryFolder`), or the same tree as objects of a bucket (`registry_bucket.py`). The registry does
not store media types; they are read from the manifests, in which clients have to write them. The data is only read. The
registry may run meanwhile: a file that its garbage collection deletes counts as missing, and wrong bytes are found by
their digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

from mirror.bundles.inventory import ListedImage
from mirror.bundles.layout_source import FileBody, OnRead, file_errors
from mirror.errors import BundleError, DigestInvalid, RequestError
from mirror.oci.digest import HEX_LENGTHS, Digest
from mirror.oci.manifest import LARGEST, Descriptor, ManifestMalformed, read_manifest
from mirror.oci.reference import check_tag
from mirror.policy.image_names import parse_image
from mirror.policy.routing import RoutingTable
from mirror.ports import Body

#: The folder of all data below the `rootdirectory` of the registry's settings.
BELOW: Final = "docker/registry/v2"
#: The most bytes that a file with a digest has.
LONGEST_LINK: Final = 256


class RegistryBlobs(Protocol):
    """The blobs and manifests of all repositories of a registry, by digest."""

    def size(self, digest: Digest) -> int | None:
        """The size in bytes; None if there is no such blob."""

    def read(self, digest: Digest) -> bytes:
        """The content of a blob of at most `LARGEST` bytes, not verified. Raises `BundleError`."""

    def body(self, digest: Digest, start: int, on_read: OnRead) -> AbstractContextManager[Body]:
        """The bytes from the offset `start` on, not verified. Raises `BundleError`."""


class RepositoryLinks(Protocol):
    """What one repository of a registry has."""

    @property
    def name(self) -> str:
        """Its name within the registry."""

    @property
    def blobs(self) -> RegistryBlobs:
        """The bytes of its manifests and blobs, and of others."""

    def tags(self) -> Iterable[tuple[str, Digest]]:
        """The tags and what they point to, sorted."""

    def revisions(self) -> Iterable[Digest]:
        """The manifests that the repository has."""

    def has_manifest(self, digest: Digest) -> bool:
        """True if the repository has the manifest."""

    def has_blob(self, digest: Digest) -> bool:
        """True if the blob was pushed to this repository or mounted into it."""


class RegistryData(Protocol):
    """The data of one registry."""

    def repositories(self) -> Iterator[RegistryRepository]:
        """The repositories, sorted by name. Raises `BundleError` if the data cannot be read."""


class RegistryRepository:
    """A repository as an `ImportSource`: its own manifests, and all blobs of the registry, for those that they name."""

    def __init__(self, links: RepositoryLinks) -> None:
        self.name = links.name
        self._links = links
        self._blobs = links.blobs

    def __repr__(self) -> str:
        return f"<RegistryRepository {self._links}>"

    # ----------------------------------------------------------------------------------------------- images

    def images(self, registry: str, table: RoutingTable) -> tuple[list[ListedImage], list[str]]:
        """The repository's images under the given registry of this mirror, and the tags whose manifest is missing or
        damaged. Images are its tags, and the manifests that neither a tag nor an index names.

        Raises `RequestError` if a name or tag is not valid.
        """
        repo = parse_image(f"{registry}/{self.name}", table).repo
        revisions = {digest: root for digest in self._links.revisions() if (root := self._root(digest))}
        named = {child for _, children in revisions.values() for child in children}
        images, lost = [], []
        for tag, digest in self._links.tags():
            named.add(digest)
            if digest not in revisions and (root := self._root(digest)):
                # it was pushed while the data was listed
                revisions[digest] = root
            if digest in revisions:
                images.append(ListedImage(repo, check_tag(tag), revisions[digest][0]))
            else:
                lost.append(tag)
        images += [ListedImage(repo, None, revisions[digest][0]) for digest in sorted(revisions.keys() - named)]
        return images, lost

    def _root(self, digest: Digest) -> tuple[Descriptor, list[Digest]] | None:
        """A manifest's descriptor and the manifests that it names; None if it is missing or damaged."""
        try:
            content = self.manifest(digest)
            manifest = read_manifest(content, algorithm=digest.algorithm) if content else None
        except (BundleError, ManifestMalformed):
            return None
        if manifest is None:
            return None
        root = Descriptor(manifest.media_type, digest, len(manifest.content))
        return root, [child.digest for child in manifest.manifests]

    # ---------------------------------------------------------------------------------- as an `ImportSource`

    def size(self, digest: Digest) -> int | None:
        return self._blobs.size(digest)

    def vouches(self, digest: Digest) -> bool:
        """True if the blob was pushed to this repository or mounted into it; the registry itself serves no other."""
        return self._links.has_blob(digest)

    def manifest(self, digest: Digest) -> bytes | None:
        if not self._links.has_manifest(digest) or (size := self._blobs.size(digest)) is None:
            # if the repository has no link to it, the bytes may belong to another repository, with other access rights
            return None
        if size > LARGEST:
            raise BundleError(f"the manifest {digest} has {size} bytes, more than the {LARGEST} allowed")
        content = self._blobs.read(digest)
        if not digest.matches(content):
            raise BundleError(f"{digest} is damaged in the registry's data")
        return content

    def body(self, digest: Digest, start: int, on_read: OnRead = lambda _: None) -> AbstractContextManager[Body]:
        return self._blobs.body(digest, start, on_read)


class RegistryFolder:
    """The data directory of one registry. Implements `RegistryData` and `RegistryBlobs`."""

    def __init__(self, root: Path) -> None:
        """`root` is the `rootdirectory` of the registry's settings, or the folder `v2` in it. Raises `BundleError` if
        it is neither.
        """
        for place in (root / BELOW, root):
            if (place / "repositories").is_dir() and (place / "blobs").is_dir():
                self._place = place
                return
        raise BundleError(f"{root} is not the data directory of a registry: it has no {BELOW}/repositories")

    def __repr__(self) -> str:
        return f"<RegistryFolder {self._place}>"

    def repositories(self) -> Iterator[RegistryRepository]:
        def fail(error: OSError) -> None:
            raise error

        root = self._place / "repositories"
        with file_errors(f"reading {root}"):
            for folder, below, _files in os.walk(root, onerror=fail):
                if "_manifests" in below:
                    yield RegistryRepository(_RepositoryFolder(self, Path(folder), os.path.relpath(folder, root)))
                below[:] = sorted(name for name in below if not name.startswith("_"))

    def size(self, digest: Digest) -> int | None:
        try:
            return os.lstat(self._blob(digest)).st_size
        except OSError:
            return None

    def read(self, digest: Digest) -> bytes:
        with self.body(digest, 0) as body:
            buffer = bytearray(min(body.size or 0, LARGEST))
            read = 0
            while count := body.readinto(memoryview(buffer)[read:]):
                read += count
        return bytes(buffer)

    @contextmanager
    def body(self, digest: Digest, start: int, on_read: OnRead = lambda _: None) -> Iterator[FileBody]:
        with file_errors(f"reading {digest}"):
            descriptor = os.open(self._blob(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield FileBody(descriptor, 0, os.fstat(descriptor).st_size, start, on_read)
        finally:
            os.close(descriptor)

    def _blob(self, digest: Digest) -> Path:
        return self._place / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex / "data"


class _RepositoryFolder:
    """Implements `RepositoryLinks`."""

    def __init__(self, blobs: RegistryFolder, folder: Path, name: str) -> None:
        self.name = name
        self.blobs = blobs
        self._manifests = folder / "_manifests"
        self._layers = folder / "_layers"

    def __repr__(self) -> str:
        return f"{self.name} of {self.blobs}"

    def tags(self) -> Iterator[tuple[str, Digest]]:
        for tag in _names(self._manifests / "tags"):
            digest = _link(self._manifests / "tags" / tag / "current" / "link")
            if digest is not None:
                yield tag, digest

    def revisions(self) -> Iterator[Digest]:
        for algorithm in HEX_LENGTHS:
            for name in _names(self._manifests / "revisions" / algorithm):
                with suppress(DigestInvalid):
                    yield Digest.parse(f"{algorithm}:{name}")

    def has_manifest(self, digest: Digest) -> bool:
        return _link(self._manifests / "revisions" / digest.algorithm / digest.hex / "link") == digest

    def has_blob(self, digest: Digest) -> bool:
        return _link(self._layers / digest.algorithm / digest.hex / "link") == digest


def read_link(content: bytes) -> Digest | None:
    """The digest in a link; None if it is none."""
    try:
        return Digest.parse(content.decode("ascii").strip())
    except (ValueError, RequestError):
        return None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _link(path: Path) -> Digest | None:
    try:
        with path.open("rb") as file:
            return read_link(file.read(LONGEST_LINK))
    except OSError:
        return None
