"""What an image consists of, and which parts of it are on the disk. Upstream is never asked.

    tag ──> index ──> manifest per platform ──> config, layers
       └──> manifest ──> config, layers

An index may be sparse: a platform that no client pulled has no manifest here, and its config and layers are not known.
So an image is *complete* if everything that its present manifests name is here and at least one of them can be pulled.
What is missing is listed for each platform.

Content that cannot be read at the moment is neither present nor absent: `read_closure` raises. Only `shown_closure`,
whose result is shown to people, counts it as absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from mirror.errors import BlobUnknown
from mirror.graph.manifests import for_display, sound_manifest, stored_manifest
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Manifest
from mirror.oci.reference import Repo
from mirror.ports import Blobs, Catalog
from mirror.values.platforms import Platform, wanted_children


class Role(Enum):
    """The role of a node in its image."""

    INDEX = "index"
    MANIFEST = "manifest"
    CONFIG = "config"
    LAYER = "layer"


@dataclass(frozen=True, slots=True)
class Node:
    """One digest of an image. `present` means that its bytes are here, in the store or embedded in the manifest that
    names it (`data`). `parent` is None for the root.

    The `size` of the descriptor is in bytes, or -1 if no manifest states it (schema 1).
    """

    descriptor: Descriptor
    role: Role
    present: bool
    parent: Digest | None

    @property
    def digest(self) -> Digest:
        """The digest of the descriptor."""
        return self.descriptor.digest


@dataclass(frozen=True, slots=True)
class Closure:
    """Everything below one digest, parents before children, each digest once.

    Foreign layers are left out: registries do not have their bytes.
    """

    root: Digest
    nodes: tuple[Node, ...]
    #: What each present manifest names. A digest that several manifests name is listed for each of them.
    named: Mapping[Digest, tuple[Digest, ...]] = field(default_factory=dict)

    @property
    def present(self) -> list[Node]:
        """The nodes that are here."""
        return [node for node in self.nodes if node.present]

    @property
    def missing(self) -> list[Node]:
        """The nodes that are needed but not here. Manifests of platforms that no client pulled are not needed."""
        return [node for node in self.nodes if not node.present and not self._is_unpulled_platform(node)]

    @property
    def unpulled(self) -> list[Node]:
        """Manifests that an index names and no client pulled."""
        return [node for node in self.nodes if not node.present and self._is_unpulled_platform(node)]

    @property
    def complete(self) -> bool:
        """True if nothing is missing from the platforms that were pulled, and at least one of them is here."""
        return not self.missing and any(node.present and node.role is not Role.INDEX for node in self.nodes)

    @property
    def present_size(self) -> int:
        """The size in bytes of the nodes that are here."""
        return sum(max(0, node.descriptor.size) for node in self.nodes if node.present)

    @property
    def size(self) -> int:
        """The size in bytes of all nodes, present or not."""
        return sum(max(0, node.descriptor.size) for node in self.nodes)

    @property
    def manifests(self) -> list[Node]:
        """The image manifests, one for each platform, present or not."""
        return [node for node in self.nodes if node.role is Role.MANIFEST]

    def below(self, digest: Digest) -> list[Node]:
        """The nodes that the manifest or index `digest` names directly; for an index these are its manifests."""
        named = set(self.named.get(digest, ()))
        return [node for node in self.nodes if node.digest in named]

    def _is_unpulled_platform(self, node: Node) -> bool:
        return node.role in (Role.MANIFEST, Role.INDEX) and node.parent is not None


def read_closure(
    store: Blobs,
    catalog: Catalog,
    repo: Repo,
    root: Descriptor,
    platforms: Iterable[Platform] = (),
    *,
    may_serve: Callable[[Repo, Digest], bool] | None = None,
) -> Closure:
    """Blocking: returns everything below `root` in this repository, for these platforms (for all, if none is given).

    A manifest counts as present only if this repository may serve it; bytes that are here for another repository do
    not count. Neither do blobs for which `may_serve` is False (None: all that are here count). A damaged manifest is
    not present. Raises `StoreError` if something cannot be read: an unreadable manifest may be the only one that names
    a blob.
    """
    return _closure(
        root,
        tuple(platforms),
        lambda digest: sound_manifest(store, catalog, repo, digest),
        lambda blob: _is_here(store, blob) and (may_serve is None or may_serve(repo, blob.digest)),
    )


def shown_closure(store: Blobs, catalog: Catalog, repo: Repo, root: Descriptor) -> Closure:
    """Blocking: returns the closure for showing it to people. What cannot be read is logged and counts as absent."""
    return _closure(
        root,
        (),
        lambda digest: for_display(lambda: stored_manifest(store, catalog, repo, digest), digest),
        lambda descriptor: bool(for_display(lambda: _is_here(store, descriptor), descriptor.digest)),
    )


def _closure(
    root: Descriptor,
    platforms: tuple[Platform, ...],
    read: Callable[[Digest], Manifest | None],
    is_here: Callable[[Descriptor], bool],
) -> Closure:
    nodes: dict[Digest, Node] = {}
    named: dict[Digest, tuple[Digest, ...]] = {}
    #: What is still to be looked at, the next one last: the role of a blob, and what names it. Indexes may be nested
    #: more deeply than functions may call themselves.
    ahead: list[tuple[Descriptor, Role | None, Digest | None]] = [(root, None, None)]
    while ahead:
        descriptor, role, parent = ahead.pop()
        digest = descriptor.digest
        if digest in nodes:
            continue
        if role is not None:
            nodes[digest] = Node(descriptor, role, descriptor.data is not None or is_here(descriptor), parent)
            continue
        manifest = read(digest)
        if manifest is None:
            nodes[digest] = Node(descriptor, _role(descriptor), False, parent)
            continue
        nodes[digest] = Node(descriptor, Role.INDEX if manifest.is_index else Role.MANIFEST, True, parent)
        children = [(child, None) for child in wanted_children(manifest.manifests, platforms)]
        below = [*children, *((child, kind) for child, kind in _blobs(manifest) if not child.foreign)]
        named[digest] = tuple(child.digest for child, _ in below)
        ahead += [(child, kind, digest) for child, kind in reversed(below)]
    return Closure(root.digest, tuple(nodes.values()), named)


def _role(descriptor: Descriptor) -> Role:
    return Role.INDEX if "index" in descriptor.media_type or "manifest.list" in descriptor.media_type else Role.MANIFEST


def _blobs(manifest: Manifest) -> Iterator[tuple[Descriptor, Role]]:
    """Yields the blobs with their roles. If there is a config, it is the first blob (see `read_manifest`)."""
    for number, blob in enumerate(manifest.blobs):
        yield blob, Role.CONFIG if number == 0 and manifest.has_config else Role.LAYER


def _is_here(store: Blobs, descriptor: Descriptor) -> bool:
    try:
        info = store.stat(descriptor.digest)
    except BlobUnknown:
        return False
    return descriptor.size in (-1, info.size)
