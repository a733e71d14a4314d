"""The data directory of a `docker-registry` (`registry:2`), pull-through caches included, as a source of images.

    <root>/docker/registry/v2/
    ├── blobs/<algorithm>/<ab>/<hex>/data
    └── repositories/<name…>/
        ├── _manifests/tags/<tag>/current/link            the digest that the tag names, as text
        ├── _manifests/revisions/<algorithm>/<hex>/link   the repository has this manifest
        └── _layers/<algorithm>/<hex>/link                the repository has this blob

The registry does not store media types; they are read from the manifests, in which clients have to write them. The
directory is only read. The registry may run meanwhile: a file that its garbage collection deletes counts as missing,
and wrong bytes are found by their digest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from mirror.bundles.inventory import ListedImage
from mirror.bundles.layout_source import FileBody, OnRead, file_errors
from mirror.errors import BundleError, DigestInvalid, RequestError
from mirror.oci.digest import HEX_LENGTHS, Digest
from mirror.oci.manifest import LARGEST, Descriptor, ManifestMalformed, read_manifest
from mirror.oci.reference import check_tag
from mirror.policy.image_names import parse_image
from mirror.policy.routing import RoutingTable

_BELOW: Final = Path("docker/registry/v2")
_LONGEST_LINK: Final = 256


class RegistryData:
    """The data directory of one registry."""

    def __init__(self, root: Path) -> None:
        """`root` is the `rootdirectory` of the registry's settings, or the folder `v2` in it. Raises `BundleError` if
        it is neither.
        """
        for place in (root / _BELOW, root):
            if (place / "repositories").is_dir() and (place / "blobs").is_dir():
                self.place = place
                return
        raise BundleError(f"{root} is not the data directory of a registry: it has no {_BELOW}/repositories")

    def repositories(self) -> Iterator[RegistryRepository]:
        """The repositories, sorted by name. Raises `BundleError` if a folder cannot be read."""

        def fail(error: OSError) -> None:
            raise error

        root = self.place / "repositories"
        with file_errors(f"reading {root}"):
            for folder, below, _files in os.walk(root, onerror=fail):
                if "_manifests" in below:
                    yield RegistryRepository(self, os.path.relpath(folder, root))
                below[:] = sorted(name for name in below if not name.startswith("_"))

    def blob(self, digest: Digest) -> Path:
        """The path of the blob's bytes."""
        return self.place / "blobs" / digest.algorithm / digest.hex[:2] / digest.hex / "data"


class RegistryRepository:
    """A repository as an `ImportSource`: its own manifests, and all blobs of the registry, for those that they name."""

    def __init__(self, data: RegistryData, name: str) -> None:
        self.name = name
        self._data = data
        self._manifests = data.place / "repositories" / name / "_manifests"
        self._layers = data.place / "repositories" / name / "_layers"

    def __repr__(self) -> str:
        return f"<RegistryRepository {self.name} at {self._data.place}>"

    # ----------------------------------------------------------------------------------------------- images

    def images(self, registry: str, table: RoutingTable) -> tuple[list[ListedImage], list[str]]:
        """The repository's images under the given registry of this mirror, and the tags whose manifest is missing or
        damaged. Images are its tags, and the manifests that neither a tag nor an index names.

        Raises `RequestError` if a name or tag is not valid.
        """
        repo = parse_image(f"{registry}/{self.name}", table).repo
        revisions = {digest: root for digest in self._revisions() if (root := self._root(digest))}
        named = {child for _, children in revisions.values() for child in children}
        images, lost = [], []
        for tag, digest in self._tags():
            named.add(digest)
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

    def _tags(self) -> Iterable[tuple[str, Digest]]:
        for tag in _names(self._manifests / "tags"):
            digest = _link(self._manifests / "tags" / tag / "current" / "link")
            if digest is not None:
                yield tag, digest

    def _revisions(self) -> Iterator[Digest]:
        for algorithm in HEX_LENGTHS:
            for name in _names(self._manifests / "revisions" / algorithm):
                with suppress(DigestInvalid):
                    yield Digest.parse(f"{algorithm}:{name}")

    # ---------------------------------------------------------------------------------- as an `ImportSource`

    def size(self, digest: Digest) -> int | None:
        try:
            return os.lstat(self._data.blob(digest)).st_size
        except OSError:
            return None

    def vouches(self, digest: Digest) -> bool:
        """True if the blob was pushed to this repository or mounted into it; the registry itself serves no other."""
        link = self._layers / digest.algorithm / digest.hex / "link"
        return _link(link) == digest

    def manifest(self, digest: Digest) -> bytes | None:
        revision = self._manifests / "revisions" / digest.algorithm / digest.hex / "link"
        if _link(revision) != digest or (size := self.size(digest)) is None:
            # if the repository has no link to it, the bytes may belong to another repository, with other access rights
            return None
        if size > LARGEST:
            raise BundleError(f"the manifest {digest} has {size} bytes, more than the {LARGEST} allowed")
        with self.body(digest, 0) as body:
            buffer = bytearray(size)
            read = 0
            while count := body.readinto(memoryview(buffer)[read:]):
                read += count
        if not digest.matches(bytes(buffer)):
            raise BundleError(f"{digest} is damaged in the registry's data")
        return bytes(buffer)

    @contextmanager
    def body(self, digest: Digest, start: int, on_read: OnRead = lambda _: None) -> Iterator[FileBody]:
        with file_errors(f"reading {digest}"):
            descriptor = os.open(self._data.blob(digest), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield FileBody(descriptor, 0, os.fstat(descriptor).st_size, start, on_read)
        finally:
            os.close(descriptor)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _link(path: Path) -> Digest | None:
    try:
        with path.open("rb") as file:
            return Digest.parse(file.read(_LONGEST_LINK).decode("ascii").strip())
    except (OSError, ValueError, RequestError):
        return None
