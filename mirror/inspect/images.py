"""Which images are here and whether they are complete, read from the disk.

The index only tells when an image was last used, and which of its content other images share.

A listing goes repository by repository and forgets each one before the next, so that its first lines come at once and
its memory does not grow. Within a repository the closures of tags are kept, so that an image to which several tags
point is read once. A page of a listing begins behind the place where the previous page ended, and reads none of the
images before that place.

An image that was evicted entirely is not listed, although its tag is still remembered. What cannot be read at the
moment is left out of a listing and logged: no decision depends on a listing.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Container, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

from mirror.errors import BlobDamaged, BlobUnknown, IndexUnavailable, StoreError
from mirror.eviction.pinned_images import PinnedImage, pinned_by_rules, shown_root, why_pinned
from mirror.eviction.reconcile import is_whole
from mirror.graph.blob_places import BlobPlaces
from mirror.graph.closure import Closure, Node, Role, shown_closure
from mirror.graph.manifests import for_display, stored_descriptor, stored_manifest
from mirror.graph.walk import any_may_be_missing, walk
from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, Descriptor, Manifest
from mirror.oci.reference import Reference, Repo
from mirror.oci.strict_json import read_json
from mirror.oci.text import printable
from mirror.policy.hosted.stay_rules import StayRules
from mirror.policy.image_names import name_of
from mirror.policy.records import Freeze
from mirror.policy.selection import Selection
from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports import Blobs, Catalog, ContentIndex

#: The largest config, in bytes, that is read to find the platform of an image.
_LARGEST_CONFIG = LARGEST
_CONFIGS = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")


@dataclass(frozen=True, slots=True)
class PlatformHere:
    """One image manifest of an image. `name` is like `linux/amd64`, or empty if the platform is not known (artifacts).

    `size` is in bytes and covers all content that is known to belong to it. If `pulled` is False its manifest is not
    here, so that its config and layers are not known. `missing` are those that are known but not here.
    """

    name: str
    digest: Digest
    size: int
    pulled: bool
    missing: tuple[Node, ...] = ()

    @property
    def complete(self) -> bool:
        """True if the platform can be pulled without an upstream."""
        return self.pulled and not self.missing


@dataclass(frozen=True, slots=True)
class CachedImage:
    """An image, by tag, or by digest alone if `tag` is None. `used_at` is in epoch seconds, 0 if not known.

    `hosted` is true if it was pushed to this mirror, which then has the only copy; `immutable` if its tag then neither
    moves nor goes.
    """

    repo: Repo
    tag: str | None
    root: Descriptor
    closure: Closure
    platforms: tuple[PlatformHere, ...]
    used_at: float
    pinned: tuple[PinnedImage, ...]
    frozen: bool = False
    hosted: bool = False
    immutable: bool = False

    @property
    def name(self) -> str:
        """The name of the image as people write it."""
        return name_of(self.repo, self.tag or self.root.digest)

    @property
    def complete(self) -> bool:
        """True if nothing is missing from the platforms that were pulled, and at least one of them is here."""
        return self.closure.complete

    @property
    def complete_platforms(self) -> list[str]:
        """Names of the platforms that can be pulled without an upstream, each once. Nested indexes, and several
        versions of an operating system, have more than one manifest for the same platform.
        """
        complete = (platform.name for platform in self.platforms if platform.name and platform.complete)
        return list(dict.fromkeys(complete))

    @property
    def manifests_only(self) -> bool:
        """True if only manifests are here, and none of the blobs that they name: these were evicted or never pulled."""
        blobs = [node.present for node in self.closure.nodes if node.role in (Role.CONFIG, Role.LAYER)]
        return not self.complete and not any(blobs)


#: Where a page begins: in this repository, behind this tag or digest; with its first image if the string is empty.
PageCursor = tuple[Repo, str]


@dataclass(frozen=True, slots=True)
class Page:
    """Some images, and where the next page begins (None if there are no more)."""

    images: tuple[CachedImage, ...]
    next: PageCursor | None


@dataclass(frozen=True, slots=True)
class ImageDetail:
    """All details of an image. `shared` is the number of bytes here that other images need too. Times are epoch
    seconds, None if not known; `checked_at` is when upstream was last asked for the tag.

    `subject` is the manifest to which the image refers. `referrers` refer to the image or to one of its manifests.
    """

    image: CachedImage
    fetched_at: float | None
    checked_at: float | None
    shared: int
    other_tags: tuple[str, ...]
    subject: Digest | None
    referrers: tuple[Descriptor, ...] = ()
    frozen: Freeze | None = None


class Overview:
    """The images of one store. `pinned` are those that must stay (`pinned_images`); `freezes` are the frozen tags.

    A tag of a hosted repository counts only while the repository has the manifest that it points to.
    """

    def __init__(
        self,
        store: Blobs | BlobPlaces,
        catalog: Catalog,
        index: ContentIndex,
        pinned: Iterable[PinnedImage] = (),
        freezes: Iterable[Freeze] = (),
        rules: StayRules = StayRules(),  # noqa: B008 -- immutable
        unread: Iterable[UnreadableRecord] = (),
    ) -> None:
        """`rules` pin further images; they are applied to each repository when it is read. `unread` are the freezes
        that cannot be read.
        """
        self._blobs = store if isinstance(store, BlobPlaces) else BlobPlaces.only(store)
        self._catalog = catalog
        self._index: ContentIndex | None = index
        self._freezes = {(freeze.repo, freeze.tag): freeze for freeze in freezes}
        self._frozen = {(freeze.repo, freeze.digest) for freeze in self._freezes.values()}
        self._unread = tuple(unread)
        self._rules = tuple(rules.pins)
        self._immutable = rules.immutable
        self._by_rules: tuple[Repo, list[PinnedImage]] | None = None
        self._pinned: dict[Repo, list[PinnedImage]] = {}
        for image in pinned:
            self._pinned.setdefault(image.repo, []).append(image)

    # ------------------------------------------------------------------------------------------------- listing

    async def images(self, selection: Selection | None = None) -> AsyncIterator[CachedImage]:
        """Yields every image here, by repository: first the tags, then the manifests that have no tag and are in no
        index that is here.

        Raises `StoreError`.
        """
        repos = await asyncio.to_thread(lambda: sorted(self._catalog.repositories()))
        work = self._walk(repos, selection)
        while batch := await asyncio.to_thread(_some, work):
            for (repo, _), entry in batch:
                if entry is not None:
                    yield await self._image_of(repo, entry)

    async def page(
        self, selection: Selection, repositories: Sequence[Repo], begin: PageCursor | None, limit: int, most: int
    ) -> Page:
        """Returns up to `limit` images of these repositories (sorted), beginning at `begin`. Raises `StoreError`.

        At most `most` entries are read: tags, images without a tag, and repositories. So a page may be short or empty
        even if others follow.
        """
        repos = repositories if begin is None else repositories[bisect.bisect_left(repositories, begin[0]) :]
        work = self._walk(repos, selection, begin)
        images: list[CachedImage] = []
        place: PageCursor | None = None
        # one more image is read than the page has, to know whether there are more
        while batch := await asyncio.to_thread(_some, work, limit - len(images) + 1):
            for here, entry in batch:
                if place is not None and (len(images) == limit or most <= 0):
                    return Page(tuple(images), place)
                place, most = here, most - 1
                if entry is not None:
                    images.append(await self._image_of(here[0], entry))
        return Page(tuple(images), None)

    async def _image_of(self, repo: Repo, entry: _Entry) -> CachedImage:
        tag, root, closure, platforms = entry
        why = await asyncio.to_thread(self._why, repo, tag, root.digest)
        used_at = await self._used_at(root.digest)
        frozen = self._is_frozen(repo, tag, root.digest)
        hosted = self._blobs.is_hosted(repo)
        immutable = tag is not None and self._immutable.rule(repo, tag) is not None
        return CachedImage(repo, tag, root, closure, platforms, used_at, why, frozen, hosted, immutable)

    def _walk(
        self, repos: Iterable[Repo], selection: Selection | None, begin: PageCursor | None = None
    ) -> Iterator[tuple[PageCursor, _Entry | None]]:
        """Blocking: yields every entry that is read, as the place behind which a later page begins and the image. The
        image is None if the entry is not listed.
        """
        for repo in repos:
            if selection is not None and not selection.has(repo):
                continue
            behind = begin[1] if begin is not None and begin[0] == repo else ""
            if begin is None or begin[0] != repo:
                yield (repo, ""), None
            # nothing else has a hosted image, so one that has lost its manifest is listed, as incomplete
            hosted = self._blobs.is_hosted(repo)
            for name, entry in self._of_repository(repo, selection, behind):
                yield (repo, name), entry if entry is not None and (hosted or entry[2].present) else None

    def _of_repository(
        self, repo: Repo, selection: Selection | None, behind: str
    ) -> Iterator[tuple[str, _Entry | None]]:
        """Blocking: yields the images of a repository that come after `behind`, with their tag or digest. Tags come
        first. A digest has a colon and a tag has none, so that a `behind` with a colon is after every tag.
        """
        closures: dict[Digest, tuple[Closure, tuple[PlatformHere, ...]]] = {}
        for tag in self._catalog.tags(repo) if ":" not in behind else ():
            if tag <= behind or (selection is not None and not selection.has_tag(tag)):
                continue
            root = self._shown_root(repo, tag)
            if root is None:
                yield tag, None
                continue
            if root.digest not in closures:
                closures[root.digest] = self._look_into(repo, root)
            yield tag, (tag, root, *closures[root.digest])
        if selection is None or selection.has_tag(None):
            for root in self._untagged(repo):
                name = str(root.digest)
                if ":" not in behind or name > behind:
                    yield name, (None, root, *self._look_into(repo, root))

    def _untagged(self, repo: Repo) -> list[Descriptor]:
        """Blocking: returns the manifests to which no tag points and which no manifest here names, sorted by their
        digests as text. Reads one or two files for each manifest of the repository.
        """
        named = {root.digest for tag in self._catalog.tags(repo) if (root := self._shown_root(repo, tag))}
        roots = {}
        for _, digest, record in walk(self._catalog, self._catalog.get_manifest, any_may_be_missing, [repo]):
            roots[digest] = record.descriptor
            manifest = self._shown(repo, digest)
            named.update(child.digest for child in (manifest.manifests if manifest else ()))
        return [roots[digest] for digest in sorted(roots.keys() - named, key=str)]

    def _look_into(self, repo: Repo, root: Descriptor) -> tuple[Closure, tuple[PlatformHere, ...]]:
        closure = shown_closure(self._blobs.of(repo), self._catalog, repo, root)
        return closure, tuple(self._platforms(repo, closure))

    def _platforms(self, repo: Repo, closure: Closure) -> Iterator[PlatformHere]:
        nodes = {node.digest: node for node in closure.nodes}
        for node in closure.manifests:
            below = [nodes[digest] for digest in closure.named.get(node.digest, ()) if digest in nodes]
            missing = tuple(child for child in below if not child.present)
            size = sum(max(0, each.descriptor.size) for each in (node, *below))
            yield PlatformHere(self._platform_of(repo, node, below), node.digest, size, node.present, missing)

    def _platform_of(self, repo: Repo, node: Node, below: list[Node]) -> str:
        if node.descriptor.platform:
            return _platform(node.descriptor.platform)
        config = next((child for child in below if child.role is Role.CONFIG), None)
        if config is None or not config.present or config.descriptor.media_type not in _CONFIGS:
            return ""
        try:
            return _platform(read_json(self._blobs.of(repo).read(config.digest, _LARGEST_CONFIG)))
        except (BlobUnknown, BlobDamaged, StoreError, ValueError):
            return ""

    def _why(self, repo: Repo, tag: str | None, digest: Digest) -> tuple[PinnedImage, ...]:
        """Blocking: returns the pins because of which an image stays. If there are rules, this reads a small file for
        each tag of the repository.
        """
        if self._rules and (self._by_rules is None or self._by_rules[0] != repo):
            self._by_rules = repo, pinned_by_rules(self._rules, self._catalog, repo, shown_root)
        pinned = [*self._pinned.get(repo, ()), *(self._by_rules[1] if self._by_rules else ())]
        return tuple(why_pinned(pinned, repo, tag=tag, digest=digest)) if pinned else ()

    def _is_frozen(self, repo: Repo, tag: str | None, digest: Digest) -> bool:
        """True if a freeze keeps the image: that of its tag, or of another tag of the repository at the same digest."""
        if tag is not None and ((repo, tag) in self._freezes or any(note.is_about(repo, tag) for note in self._unread)):
            return True
        return (repo, digest) in self._frozen

    async def _used_at(self, digest: Digest) -> float:
        """Returns the time of last use from the index, or else from the disk, where it is less precise; 0 if neither
        knows.
        """
        record = None
        if self._index is not None:
            try:
                record = await self._index.get(digest)
            except IndexUnavailable:
                # do not ask again: an index that is down costs a tenth of a second for each of perhaps 100,000 images
                self._index = None
        if record is not None:
            return record.last_used
        try:
            return self._blobs.contents.stat(digest).used_at
        except (BlobUnknown, StoreError):
            return 0.0

    # --------------------------------------------------------------------------------------------- one image

    async def image(self, repo: Repo, reference: Reference) -> CachedImage | None:
        """Returns one image, or None if it is not here. Raises `StoreError`."""
        tag = None if isinstance(reference, Digest) else reference
        root = await asyncio.to_thread(self._root, repo, reference)
        if root is None:
            return None
        return await self._image_of(repo, (tag, root, *await asyncio.to_thread(self._look_into, repo, root)))

    def _root(self, repo: Repo, reference: Reference) -> Descriptor | None:
        if self._blobs.is_hosted(repo):
            root = stored_descriptor(self._catalog, repo, reference)
            return root if root and self._catalog.get_manifest(repo, root.digest) else None
        # a frozen tag answers with the digest of its freeze
        if not isinstance(reference, Digest) and (freeze := self._freezes.get((repo, reference))):
            return freeze.descriptor
        return stored_descriptor(self._catalog, repo, reference)

    def _shown_root(self, repo: Repo, reference: Reference) -> Descriptor | None:
        return for_display(lambda: self._root(repo, reference), name_of(repo, reference))

    def _shown(self, repo: Repo, digest: Digest) -> Manifest | None:
        """Blocking: returns the manifest, or None if it is not here or cannot be read."""
        return for_display(
            lambda: stored_manifest(self._blobs.of(repo), self._catalog, repo, digest), f"{repo}@{digest}"
        )

    async def detail(self, image: CachedImage) -> ImageDetail:
        """Returns all details of an image. If the index does not know what other images share, every manifest here is
        read. Raises `StoreError`.
        """
        shared = await self._shared_by_index(image)
        return await asyncio.to_thread(self._detail, image, shared)

    def _detail(self, image: CachedImage, shared: set[Digest] | None) -> ImageDetail:
        repo, root = image.repo, image.root
        record = self._catalog.get_manifest(repo, root.digest)
        tag = self._catalog.get_tag(repo, image.tag) if image.tag else None
        manifest = self._shown(repo, root.digest)
        others = [
            other
            for other in self._catalog.tags(repo)
            if other != image.tag and (other_root := self._shown_root(repo, other)) and other_root.digest == root.digest
        ]
        return ImageDetail(
            image,
            record.fetched_at if record else None,
            tag.fetched_at if tag else None,
            _size_of(image.closure, self._shared_by_disk(image) if shared is None else shared),
            tuple(others),
            manifest.subject.digest if manifest and manifest.subject else None,
            tuple(self._referrers(image)),
            self._freezes.get((repo, image.tag)) if image.tag else None,
        )

    async def _shared_by_index(self, image: CachedImage) -> set[Digest] | None:
        """Returns the digests of the image that another manifest names, or that the same manifest in another repository
        names. None if the index is unavailable or does not know what all manifests name.
        """
        if self._index is None:
            return None
        named = image.closure.named
        try:
            below = await self._index.successors(list(named)) if await is_whole(self._index) else {}
        except IndexUnavailable:
            return None
        if below.keys() != named.keys():
            return None
        ours = Counter(child for children in named.values() for child in {*children})
        children = (child for named in below.values() for child in named)
        shared = {child.record.digest for child in children if child.parents > ours[child.record.digest]}
        return shared | await asyncio.to_thread(self._manifests_elsewhere, image)

    def _manifests_elsewhere(self, image: CachedImage) -> set[Digest]:
        """Blocking: returns the manifests of the image that other repositories have, or that another manifest of its
        own repository names.
        """
        own = set(image.closure.named)
        shared = self._named_in(image.repo, own, own)
        for repo in self._catalog.repositories():
            if repo != image.repo:
                shared |= own & set(self._catalog.manifest_digests(repo))
        return shared

    def _shared_by_disk(self, image: CachedImage) -> set[Digest]:
        """Blocking: like `_shared_by_index`, but reads all manifests that are here."""
        own, wanted = set(image.closure.named), {node.digest for node in image.closure.present}
        repos = self._catalog.repositories()
        return set().union(*(self._named_in(repo, wanted, own if repo == image.repo else ()) for repo in repos))

    def _named_in(self, repo: Repo, wanted: Set[Digest], but: Container[Digest]) -> set[Digest]:
        """Blocking: returns the `wanted` digests that manifests of a repository are or name. Manifests in `but` are
        skipped.
        """
        named: set[Digest] = set()
        for digest, manifest in self._manifests(repo, but):
            children = (child.digest for child in (*manifest.manifests, *manifest.blobs))
            named |= wanted & {digest, *children}
        return named

    def _referrers(self, image: CachedImage) -> Iterator[Descriptor]:
        subjects = {node.digest for node in image.closure.nodes if node.role in (Role.INDEX, Role.MANIFEST)}
        for _, manifest in self._manifests(image.repo):
            if manifest.subject and manifest.subject.digest in subjects:
                yield manifest.descriptor

    def _manifests(self, repo: Repo, but: Container[Digest] = ()) -> Iterator[tuple[Digest, Manifest]]:
        """Blocking: yields the manifests of a repository that are here and can be read, except those in `but`."""

        def read(repo: Repo, digest: Digest) -> Manifest | None:
            return None if digest in but else stored_manifest(self._blobs.of(repo), self._catalog, repo, digest)

        return ((digest, manifest) for _, digest, manifest in walk(self._catalog, read, any_may_be_missing, [repo]))


_T = TypeVar("_T")
_Entry = tuple[str | None, Descriptor, Closure, tuple[PlatformHere, ...]]


def _some(
    work: Iterator[_T], most: int = 1000, seconds: float = 0.05, now: Callable[[], float] = time.monotonic
) -> list[_T]:
    """Returns up to `most` items, as many as `work` yields within `seconds`, but at least one; empty at the end."""
    items: list[_T] = []
    until = now() + seconds
    for item in work:
        items.append(item)
        if len(items) >= most or now() >= until:
            break
    return items


def _size_of(closure: Closure, shared: Set[Digest]) -> int:
    """Returns the bytes here of the `shared` digests and of everything below a shared manifest."""
    needed, pending = set(shared), list(shared)
    while pending:
        children = [child for child in closure.named.get(pending.pop(), ()) if child not in needed]
        needed.update(children)
        pending += children
    return sum(max(0, node.descriptor.size) for node in closure.present if node.digest in needed)


def _platform(platform: object) -> str:
    """Returns a name like `linux/arm/v7` from a descriptor's `platform` or an image's config; empty if not known."""
    if not isinstance(platform, dict):
        return ""
    parts = [platform.get(name) for name in ("os", "architecture", "variant")]
    text = "/".join(part for part in parts if isinstance(part, str) and part)
    return "" if text == "unknown/unknown" else printable(text)
