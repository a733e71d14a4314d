"""Writes images of this site as a bundle: an OCI image layout with an inventory (`oci_layout.py`).

    images ── select: tags, closures, referrers, all from the disk ──> ExportSelection, or all problems in one error
              only what their own repositories may serve: a bundle gives its blobs to whoever pulls its images
    ExportSelection ── export: small files first, then blobs by digest, each hashed while it is written ──> bundle

A bundle always contains the manifests of its images, even if it leaves out blobs that the other side has. So the bundle
alone shows what its images need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mirror import telemetry
from mirror.bundles.inventory import Inventory, ListedImage
from mirror.bundles.layout_source import OnRead
from mirror.bundles.layout_target import LayoutTarget
from mirror.bundles.oci_layout import INDEX, INVENTORY, MARKER, SIGNATURE, blob_name, index_bytes, marker_bytes
from mirror.bundles.signing import sign
from mirror.errors import BlobUnknown, BundleError, StoreError
from mirror.graph.blob_places import BlobPlaces
from mirror.graph.closure import Closure, Node, Role, read_closure
from mirror.graph.manifests import has_blob, sound_manifest
from mirror.graph.walk import walk
from mirror.oci.attachments import ATTESTED_DIGEST, tags_about
from mirror.oci.digest import Digest, hasher
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.ports import BlobReader, BlobStore, Catalog, RepairableBlobs
from mirror.values.platforms import Platform
from mirror.values.sizes import format_size

_CHUNK: Final = 1 << 20
#: How many missing digests an error names for each image.
_SHOWN: Final = 5


@dataclass(slots=True)
class ExportSelection:
    """Images with everything below them. The mappings give sizes in bytes by digest.

    `missing` are blobs that the images need and that are not here (size -1: unknown).
    """

    images: list[ListedImage] = field(default_factory=list)
    manifests: dict[Digest, int] = field(default_factory=dict)
    blobs: dict[Digest, int] = field(default_factory=dict)
    missing: dict[Digest, int] = field(default_factory=dict)

    def inventory(self, since: Inventory | None = None) -> Inventory:
        """The inventory of a bundle of these images, for a site that has what `since` lists."""
        theirs: Mapping[Digest, int] = since.present if since else {}
        left_out = {digest: size for digest, size in self.blobs.items() if theirs.get(digest) == size}
        blobs = {digest: size for digest, size in self.blobs.items() if digest not in left_out}
        missing = {digest: size for digest, size in self.missing.items() if digest not in theirs}
        return Inventory(tuple(self.images), {**blobs, **self.manifests}, left_out, missing)


# ------------------------------------------------------------------------------------------------------ select


def select(
    store: BlobStore,
    catalog: Catalog,
    images: Iterable[Image],
    *,
    answers: Callable[[Repo, str], Digest | None],
    may_serve: Callable[[Repo, Digest], bool],
    places: BlobPlaces | None = None,
    platforms: Iterable[Platform] = (),
    referrers: bool = False,
    partial: bool = False,
    since: Inventory | None = None,
) -> ExportSelection:
    """Blocking: collect everything below these images.

    `answers` gives the digest that this mirror serves for a tag now; because of a freeze or the minimum age this may be
    another digest than upstream's. `places` says where the blobs of each repository are. Without `platforms`, the
    platforms that are here are selected. `referrers` adds signatures, SBOMs and other referrers. `since` is the other
    side's inventory: blobs in it need not be here.

    Raises `BundleError`, which lists everything that is missing, unless `partial` is true; an image whose manifest is
    missing is always an error. Raises `StoreError` if something cannot be read.
    """
    selector = _Selector(store, catalog, answers, may_serve, places or BlobPlaces.only(store), tuple(platforms), since)
    for image in dict.fromkeys(images):
        selector.image(image, referrers=referrers)
    selector.refuse_shared()
    if selector.unknown or (selector.incomplete and not partial):
        raise BundleError("\n  ".join([*selector.unknown, *([] if partial else selector.incomplete)]))
    return selector.selection


class _Selector:
    def __init__(
        self,
        store: BlobStore,
        catalog: Catalog,
        answers: Callable[[Repo, str], Digest | None],
        may_serve: Callable[[Repo, Digest], bool],
        places: BlobPlaces,
        platforms: tuple[Platform, ...],
        since: Inventory | None,
    ) -> None:
        self.selection = ExportSelection()
        self.unknown: list[str] = []
        self.incomplete: list[str] = []
        self._store = store
        self._catalog = catalog
        self._answers = answers
        self._may_serve = may_serve
        self._blobs = places
        self._platforms = platforms
        self._theirs = since.present if since else {}
        self._added: dict[str, Digest] = {}
        #: Blobs that a repository names and may not serve.
        self._unserved: dict[Digest, Repo] = {}
        self._referring: dict[Repo, dict[Digest, list[Descriptor]]] = {}

    def image(self, image: Image, *, referrers: bool) -> None:
        root = self._root(image)
        if root is None:
            self.unknown.append(f"{image} is not here, or not answered yet (minimum_age): pull or prefetch it first")
            return
        listed = ListedImage(image.repo, image.tag, root)
        if self._added.get(listed.name, root.digest) != root.digest:
            self.unknown.append(f"{listed.name} is requested as {root.digest} and as {self._added[listed.name]}")
            return
        closure = self._add(listed, self._platforms)
        if referrers:
            for node in closure.nodes:
                if node.present and _is_manifest(node):
                    self._add_attestations(image.repo, node.digest, {each.digest for each in closure.nodes})
                    self._add_referrers(image.repo, node.digest)

    def refuse_shared(self) -> None:
        """Refuse images that name what their repositories may not serve, if other images bring it: the other side takes
        all that a bundle brings for content of each of its images.
        """
        for digest, repo in self._unserved.items():
            if digest in self.selection.blobs:
                self.unknown.append(f"{repo} may not serve {digest}, which other images bring: export it by itself")

    def _root(self, image: Image) -> Descriptor | None:
        """The descriptor of the manifest that the image resolves to here; None if that manifest is not here."""
        digest = image.digest or self._answers(image.repo, image.tag or "latest")
        manifest = self._stored(image.repo, digest) if digest else None
        return Descriptor(manifest.media_type, manifest.digest, len(manifest.content)) if manifest else None

    def _add(self, image: ListedImage, platforms: tuple[Platform, ...]) -> Closure:
        closure = self._read_closure(image.repo, image.root, platforms)
        if image.name in self._added:
            return closure
        self._added[image.name] = image.root.digest
        self.selection.images.append(image)
        for node in closure.nodes:
            self._add_node(image.repo, node)
        if missing := self._missing(image.repo, closure, platforms):
            shown = ", ".join(_describe(node) for node in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            self.incomplete.append(f"{image.name} lacks {shown}{more}")
        for platform in self._not_for(image, platforms):
            self.incomplete.append(f"{image.name} is not for {platform}")
        if not any(node.present and node.role is not Role.INDEX for node in closure.nodes):
            self.incomplete.append(f"{image.name} has none of the images here that its index names")
        return closure

    def _read_closure(self, repo: Repo, root: Descriptor, platforms: tuple[Platform, ...] = ()) -> Closure:
        store = self._blobs.of(repo)
        return read_closure(store, self._catalog, repo, root, platforms, may_serve=self._may_serve)

    def _stored(self, repo: Repo, digest: Digest) -> Manifest | None:
        """The manifest, or None. Raises `StoreError` if it cannot be read, so that a read error never makes a bundle
        incomplete.
        """
        return sound_manifest(self._blobs.of(repo), self._catalog, repo, digest)

    def _not_for(self, image: ListedImage, platforms: tuple[Platform, ...]) -> list[Platform]:
        """The chosen platforms that the index does not list. An index that lists no platforms fits all of them."""
        manifest = self._stored(image.repo, image.root.digest)
        offered = [child.platform for child in manifest.manifests if child.platform] if manifest else []
        return [wanted for wanted in platforms if offered and not any(wanted.matches(other) for other in offered)]

    def _missing(self, repo: Repo, closure: Closure, platforms: tuple[Platform, ...]) -> list[Node]:
        """The missing nodes, without the blobs that the other side has for the repository. Platforms that were never
        pulled count as missing only if the caller chose platforms.
        """
        missing = [*closure.missing, *(closure.unpulled if platforms else [])]
        return [node for node in missing if _is_manifest(node) or not self._is_theirs(repo, node.digest)]

    def _is_theirs(self, repo: Repo, digest: Digest) -> bool:
        """Whether the other side has a blob that this repository may serve, whether it is here or not."""
        return digest in self._theirs and self._may_serve(repo, digest)

    def _add_node(self, repo: Repo, node: Node) -> None:
        digest, size = node.digest, node.descriptor.size
        if not node.present:
            if not _is_manifest(node):
                self._add_absent(repo, digest, size)
            return
        try:
            if node.descriptor.data is not None and not has_blob(self._blobs.of(repo), digest):
                # only the manifest has the bytes (`data`), and a bundle needs a file
                self._store.put(digest, node.descriptor.data)
            size = self._blobs.contents.stat(digest).size
        except BlobUnknown as error:
            raise BundleError(f"{digest} was evicted meanwhile") from error
        (self.selection.manifests if _is_manifest(node) else self.selection.blobs)[digest] = size

    def _add_absent(self, repo: Repo, digest: Digest, size: int) -> None:
        if self._is_theirs(repo, digest):
            self.selection.blobs[digest] = self._theirs[digest]
            return
        self.selection.missing[digest] = size
        if not self._may_serve(repo, digest):
            self._unserved[digest] = repo

    def _add_attestations(self, repo: Repo, index: Digest, chosen: set[Digest]) -> None:
        """Add the attestations that the index contains for the chosen digests, if they are complete here."""
        manifest = self._stored(repo, index)
        about = {str(digest) for digest in chosen}
        for child in manifest.manifests if manifest else ():
            if child.annotations.get(ATTESTED_DIGEST) in about:
                closure = self._read_closure(repo, child)
                if closure.complete:
                    for node in closure.nodes:
                        self._add_node(repo, node)

    def _add_referrers(self, repo: Repo, subject: Digest) -> None:
        """Add the referrers of the subject in this repository, the referrers of those in turn, and the tags that belong
        to the subject by convention.
        """
        for root in self._referrers(repo).pop(subject, []):
            closure = self._add(ListedImage(repo, None, root), ())
            for node in closure.nodes:
                if node.present and _is_manifest(node):
                    self._add_referrers(repo, node.digest)
        for tag in tags_about(subject):
            custom = self._root(Image(repo, tag)) if self._catalog.get_tag(repo, tag) else None
            if custom is not None:
                self._add(ListedImage(repo, tag, custom), ())

    def _referrers(self, repo: Repo) -> dict[Digest, list[Descriptor]]:
        """The referrers of the repository, by subject. They are read once for each repository."""
        if repo not in self._referring:
            by_subject = self._referring[repo] = {}
            for _, _, manifest in walk(self._catalog, self._stored, repos=[repo]):
                if manifest.subject is not None:
                    root = Descriptor(manifest.media_type, manifest.digest, len(manifest.content))
                    by_subject.setdefault(manifest.subject.digest, []).append(root)
        return self._referring[repo]


def _is_manifest(node: Node) -> bool:
    return node.role in (Role.INDEX, Role.MANIFEST)


def _describe(node: Node) -> str:
    kind = node.role.value
    if platform := node.descriptor.platform:
        kind += f" for {platform.get('os')}/{platform.get('architecture')}"
    size = f", {format_size(node.descriptor.size)}" if node.descriptor.size >= 0 else ""
    return f"{node.digest} ({kind}{size})"


# ------------------------------------------------------------------------------------------------------ export


def export(
    selection: ExportSelection,
    store: RepairableBlobs,
    target: LayoutTarget,
    *,
    since: Inventory | None = None,
    key: Ed25519PrivateKey | None = None,
    on_read: OnRead = lambda _: None,
) -> tuple[Inventory, Digest]:
    """Blocking: write the bundle, and sign it if `key` is given. Returns its inventory and the inventory file's digest.

    If the export fails, nothing of the bundle is left. Raises `BundleError`, `StoreError`.
    """
    inventory = selection.inventory(since)
    content = inventory.to_bytes()
    small = {MARKER: marker_bytes(), INDEX: index_bytes(selection.images, Digest.of(content)), INVENTORY: content}
    if key is not None:
        small[SIGNATURE] = sign(content, key)
    try:
        for name, written in small.items():
            target.add(name, len(written), [written])
        for digest, size in sorted(inventory.blobs.items()):
            target.add(blob_name(digest), size, _verified(store, digest, on_read))
        target.finish()
    except BaseException:
        target.abandon()
        raise
    return inventory, Digest.of(content)


def _verified(store: RepairableBlobs, digest: Digest, on_read: OnRead) -> Iterator[bytes]:
    """The blob's bytes in chunks. Raises `BundleError` after the last one if they do not match the digest; the damaged
    blob is set aside.
    """
    try:
        _, reader = store.open(digest)
    except BlobUnknown as error:
        raise BundleError(f"{digest} was evicted while the bundle was written: pull or prefetch it again") from error
    hashing = hasher(digest)
    offset = 0
    try:
        while chunk := reader.pread(_CHUNK, offset):
            hashing.update(chunk)
            offset += len(chunk)
            on_read(len(chunk))
            yield chunk
        if hashing.hexdigest() != digest.hex:
            raise _damaged(store, digest, reader)
    finally:
        reader.close()


def _damaged(store: RepairableBlobs, digest: Digest, reader: BlobReader) -> BundleError:
    """Set aside the damaged file that the reader has open; returns the error to raise."""
    try:
        if store.set_aside(digest, reader):
            telemetry.log.error("damaged blob set aside", digest=str(digest), reason="found by an export")
    except StoreError as error:
        refused = BundleError(f"{digest} is damaged on this mirror's disk, and could not be set aside")
        refused.__cause__ = error
        return refused
    return BundleError(f"{digest} was damaged on this mirror's disk and is set aside: pull or prefetch it again")
