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
from collections.abc import AsyncGenerator, Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeVar

from mirror.errors import BlobDamaged, BlobUnknown, IndexUnavailable, RequestError, StoreError
from mirror.eviction.pinned_images import PinnedImage, PinsOfRepository, pinned_by_rules, shown_root
from mirror.eviction.reconcile import is_whole
from mirror.graph.blob_places import BlobPlaces
from mirror.graph.closure import Closure, Node, Role, shown_closure
from mirror.graph.listed_repositories import ListedRepositories
from mirror.graph.manifests import for_display, stored_descriptor, stored_manifest
from mirror.graph.walk import any_may_be_missing, walk
from mirror.inspect.untagged_lists import UntaggedLists
from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, Descriptor, Manifest
from mirror.oci.reference import Reference, Repo, read_repo
from mirror.oci.strict_json import read_json
from mirror.oci.text import printable
from mirror.policy.hosted.stay_rules import StayRules
from mirror.policy.image_names import name_of
from mirror.policy.records import ContentRecord, Freeze
from mirror.policy.selection import Selection
from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports import Blobs, Catalog, ContentIndex

#: The largest config, in bytes, that is read to find the platform of an image.
_LARGEST_CONFIG = LARGEST
#: Repositories that are listed first for a page: each may have many images.
_FEW = 8
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


def cursor_of(after: str) -> PageCursor | None:
    """The place behind the image of this name; None, the beginning, if it is empty. The name of a repository alone is
    the place before its first image. Raises `RequestError`.
    """
    if not after:
        return None
    name, _, digest = after.partition("@")
    head, slash, last = name.rpartition("/")
    if not slash:
        raise RequestError(f"after: not the name of an image: {after[:80]!r}")
    last, _, tag = last.partition(":")
    registry, _, name = f"{head}/{last}".partition("/")
    return Repo(registry, name), digest or tag


def cursor_text(cursor: PageCursor) -> str:
    """The inverse of `cursor_of`."""
    repo, name = cursor
    return f"{repo}{'@' if ':' in name else ':'}{name}" if name else str(repo)


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
        untagged: UntaggedLists | None = None,
    ) -> None:
        """`rules` pin further images; they are applied to each repository when it is read. `unread` are the freezes
        that cannot be read. Overviews that share `untagged` give pages that continue each other.
        """
        self._untagged = untagged or UntaggedLists()
        self._blobs = store if isinstance(store, BlobPlaces) else BlobPlaces.only(store)
        self._catalog = catalog
        self._index: ContentIndex | None = index
        self._freezes = {(freeze.repo, freeze.tag): freeze for freeze in freezes}
        self._frozen = {(freeze.repo, freeze.digest) for freeze in self._freezes.values()}
        self._unread = tuple(unread)
        self._rules = tuple(rules.pins)
        self._immutable = rules.immutable
        #: The pins of the repository that was read last.
        self._pins_here: tuple[Repo, PinsOfRepository] | None = None
        self._pinned: dict[Repo, list[PinnedImage]] = {}
        for image in pinned:
            self._pinned.setdefault(image.repo, []).append(image)

    # ------------------------------------------------------------------------------------------------- listing

    async def images(
        self, selection: Selection | None = None, begin: PageCursor | None = None
    ) -> AsyncGenerator[CachedImage, None]:
        """Yields every image here, by repository: first the tags, then the manifests that have no tag and are in no
        index that is here. With `begin`, those behind that place.

        Raises `StoreError`.
        """
        after = "" if begin is None else str(begin[0])
        work = self._walk(chain(_first(begin), self._catalog.repositories(after)), selection, begin)
        while batch := await asyncio.to_thread(_some, work):
            for image in await self._images_of(entry for _, entry in batch if entry is not None):
                yield image

    async def page(
        self, selection: Selection, listed: ListedRepositories, begin: PageCursor | None, limit: int, most: int
    ) -> Page:
        """Returns up to `limit` images of the listed repositories, beginning at `begin`. Raises `StoreError`.

        At most `most` entries are read: tags, images without a tag, and repositories. So a page may be short or empty
        even if others follow.
        """
        entries: list[_Entry] = []
        place: PageCursor | None = None
        after = "" if begin is None else str(begin[0])
        async with aclosing(listed.after(after, min(limit, _FEW), entries)) as steps:
            repos: Sequence[Repo] | None = _first(begin)
            while repos is not None:
                work = self._walk(repos, selection, begin)
                # one more image is read than the page has, to know whether there are more
                while batch := await asyncio.to_thread(_some, work, limit - len(entries) + 1):
                    for here, entry in batch:
                        if place is not None and (len(entries) == limit or most <= 0):
                            return Page(await self._images_of(entries), place)
                        place, most = here, most - 1
                        if entry is not None:
                            entries.append(entry)
                repos = await anext(steps, None)
        return Page(await self._images_of(entries), None)

    async def _images_of(self, entries: Iterable[_Entry]) -> tuple[CachedImage, ...]:
        """Asks the index once for the times of use of all of them."""
        entries = tuple(entries)
        used = await self._used_at([entry.root.digest for entry in entries])
        return tuple(self._image_of(entry, used[entry.root.digest]) for entry in entries)

    def _image_of(self, entry: _Entry, used_at: float) -> CachedImage:
        repo, tag, root = entry.repo, entry.tag, entry.root
        frozen = self._is_frozen(repo, tag, root.digest)
        hosted = self._blobs.is_hosted(repo)
        immutable = tag is not None and self._immutable.rule(repo, tag) is not None
        return CachedImage(
            repo, tag, root, entry.closure, entry.platforms, used_at, entry.pinned, frozen, hosted, immutable
        )

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
                yield (repo, name), entry if entry is not None and (hosted or entry.closure.present) else None

    def _of_repository(
        self, repo: Repo, selection: Selection | None, behind: str
    ) -> Iterator[tuple[str, _Entry | None]]:
        """Blocking: yields the images of a repository that come after `behind`, with their tag or digest. Tags come
        first. A digest has a colon and a tag has none, so that a `behind` with a colon is after every tag.
        """
        looked: dict[Digest, tuple[Closure, tuple[PlatformHere, ...]]] = {}
        tags = self._catalog.tags(repo)
        roots: dict[str, Descriptor | None] = {}
        for tag in tags[bisect.bisect_right(tags, behind) :] if ":" not in behind else ():
            if selection is not None and not selection.has_tag(tag):
                continue
            root = roots[tag] = self._shown_root(repo, tag)
            if root is None:
                yield tag, None
                continue
            if root.digest not in looked:
                looked[root.digest] = self._look_into(repo, root)
            yield tag, self._entry(repo, tag, root, looked[root.digest])
        if selection is None or selection.has_tag(None):
            known = {digest: named for closure, _ in looked.values() for digest, named in closure.named.items()}

            def find() -> Sequence[Digest]:
                tagged = {root.digest for tag in tags if (root := _known(roots, tag, partial(self._shown_root, repo)))}
                return self._untagged_in(repo, tagged, known)

            untagged = self._untagged.find(repo, find, continues=":" in behind)
            first = bisect.bisect_right(untagged, behind, key=str) if ":" in behind else 0
            for digest in untagged[first:]:
                root = self._shown_root(repo, digest)
                yield str(digest), self._entry(repo, None, root, self._look_into(repo, root)) if root else None

    def _untagged_in(
        self, repo: Repo, tagged: Set[Digest], known: Mapping[Digest, Collection[Digest]]
    ) -> Sequence[Digest]:
        """Blocking: returns the manifests to which no tag points and which no manifest here names, sorted as text.
        `known` is what some of the manifests name; two files are read for each of the others.
        """
        named = set(tagged).union(*known.values())
        candidates = [digest for digest in self._catalog.manifest_digests(repo) if digest not in known]
        for digest in candidates:
            manifest = self._shown(repo, digest)
            named.update(child.digest for child in (manifest.manifests if manifest else ()))
        return [digest for digest in sorted(candidates, key=str) if digest not in named]

    def _entry(
        self, repo: Repo, tag: str | None, root: Descriptor, looked: tuple[Closure, tuple[PlatformHere, ...]]
    ) -> _Entry:
        return _Entry(repo, tag, root, *looked, self._why(repo, tag, root.digest))

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
        each tag of the repository, once for all images of the repository that are listed together.
        """
        if self._pins_here is None or self._pins_here[0] != repo:
            pinned = list(self._pinned.get(repo, ()))
            if self._rules:
                pinned += pinned_by_rules(self._rules, self._catalog, repo, shown_root)
            self._pins_here = repo, PinsOfRepository(pinned)
        return self._pins_here[1].why(tag, digest)

    def _is_frozen(self, repo: Repo, tag: str | None, digest: Digest) -> bool:
        """True if a freeze keeps the image: that of its tag, or of another tag of the repository at the same digest."""
        if tag is not None and ((repo, tag) in self._freezes or any(note.is_about(repo, tag) for note in self._unread)):
            return True
        return (repo, digest) in self._frozen

    async def _used_at(self, digests: Sequence[Digest]) -> Mapping[Digest, float]:
        """Returns the times of last use from the index, or else from the disk, where they are less precise; 0 if
        neither knows.
        """
        records: Mapping[Digest, ContentRecord] = {}
        if self._index is not None and digests:
            try:
                records = await self._index.records(digests)
            except IndexUnavailable:
                # do not ask again: an index that is down costs a tenth of a second for each page of a long list
                self._index = None
        used = {digest: record.last_used for digest, record in records.items()}
        if rest := [digest for digest in digests if digest not in used]:
            used |= await asyncio.to_thread(lambda: {digest: self._used_by_disk(digest) for digest in rest})
        return used

    def _used_by_disk(self, digest: Digest) -> float:
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
        entry = await asyncio.to_thread(lambda: self._entry(repo, tag, root, self._look_into(repo, root)))
        [image] = await self._images_of([entry])
        return image

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
        """Returns all details of an image. Reads every manifest of its repository; if index and ledger do not know what
        other repositories share, every manifest here. Raises `StoreError`.
        """
        shared = await (self._shared_by_links(image) if image.hosted else self._shared_by_index(image))
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
        elsewhere = await self._elsewhere(image.repo, named)
        if elsewhere is None:
            return None
        own = set(named)
        return shared | elsewhere | await asyncio.to_thread(self._named_in, image.repo, own, own)

    async def _shared_by_links(self, image: CachedImage) -> set[Digest] | None:
        """Likewise, of a hosted image, by the repositories that have a link to its parts."""
        if self._index is None:
            return None
        own, wanted = set(image.closure.named), {node.digest for node in image.closure.present}
        try:
            elsewhere = await self._elsewhere(image.repo, wanted) if await is_whole(self._index) else None
        except IndexUnavailable:
            return None
        if elsewhere is None:
            return None
        return elsewhere | await asyncio.to_thread(self._named_in, image.repo, wanted, own)

    async def _elsewhere(self, repo: Repo, digests: Iterable[Digest]) -> set[Digest] | None:
        """Returns those of these digests that other repositories have; None if that is not known."""
        found: set[Digest] = set()
        try:
            for digest in digests:
                holders = await self._index.holders(digest, 2) if self._index is not None else ()
                hosted = await asyncio.to_thread(self._blobs.hosted_holders, digest, 2)
                if any(holder != repo for holder in (*holders, *hosted)):
                    found.add(digest)
        except IndexUnavailable:
            return None
        return found

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


def _first(begin: PageCursor | None) -> Sequence[Repo]:
    """The repository in which a page begins; none if there is no such name."""
    repo = None if begin is None else read_repo(str(begin[0]))
    return () if repo is None else (repo,)


_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is read of an image on the disk."""

    repo: Repo
    tag: str | None
    root: Descriptor
    closure: Closure
    platforms: tuple[PlatformHere, ...]
    pinned: tuple[PinnedImage, ...]


def _known(
    roots: Mapping[str, Descriptor | None], tag: str, read: Callable[[str], Descriptor | None]
) -> Descriptor | None:
    return roots[tag] if tag in roots else read(tag)


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
