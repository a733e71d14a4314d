"""What an image consists of, and how much of it is here. Read from the disk alone; upstream is never asked.

    tag ──> index ──> manifest per platform ──> config, layers
       └──> manifest ──> config, layers

An index may be sparse: platforms that nobody pulled have no manifest here, and what they consist of is not known. So an
image is *complete* when all that its present manifests name is here, and at least one of them is for pulling; what is
missing from each platform is told one by one.

What cannot be read at the moment is neither: `read_closure` raises. Only what is shown to people may show it as absent.
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
from mirror.ports import BlobStore, Catalog
from mirror.values.platforms import Platform, wanted_children

__all__ = ["Closure", "Node", "Role", "read_closure", "shown_closure"]


class Role(Enum):
    """What a node is in its image."""

    INDEX = "index"
    MANIFEST = "manifest"
    CONFIG = "config"
    LAYER = "layer"


@dataclass(frozen=True, slots=True)
class Node:
    """One digest of an image. `present` means that its bytes are here, be it in the manifest that names it (`data`);
    `parent` is None for the root.

    `size` of the descriptor is in bytes, -1 where nobody says it (schema 1).
    """

    descriptor: Descriptor
    role: Role
    present: bool
    parent: Digest | None

    @property
    def digest(self) -> Digest:
        """Of the descriptor."""
        return self.descriptor.digest


@dataclass(frozen=True, slots=True)
class Closure:
    """Everything below one digest, parents before children, each digest once.

    Foreign layers, whose bytes registries do not have, are left out.
    """

    root: Digest
    nodes: tuple[Node, ...]
    #: What each present manifest names, also where another one names it too.
    named: Mapping[Digest, tuple[Digest, ...]] = field(default_factory=dict)

    @property
    def present(self) -> list[Node]:
        """What is here."""
        return [node for node in self.nodes if node.present]

    @property
    def missing(self) -> list[Node]:
        """What is not here and is needed: manifests of platforms that nobody pulled are not."""
        return [node for node in self.nodes if not node.present and not self._is_unpulled_platform(node)]

    @property
    def unpulled(self) -> list[Node]:
        """Manifests that an index names and nobody pulled."""
        return [node for node in self.nodes if not node.present and self._is_unpulled_platform(node)]

    @property
    def complete(self) -> bool:
        """Whether all that was begun is whole, and there is something to pull."""
        return not self.missing and any(node.present and node.role is not Role.INDEX for node in self.nodes)

    @property
    def held(self) -> int:
        """Bytes of what is here."""
        return sum(max(0, node.descriptor.size) for node in self.nodes if node.present)

    @property
    def size(self) -> int:
        """Bytes of everything that is known to belong to it."""
        return sum(max(0, node.descriptor.size) for node in self.nodes)

    @property
    def manifests(self) -> list[Node]:
        """The image manifests, one for each platform, present or not."""
        return [node for node in self.nodes if node.role is Role.MANIFEST]

    def below(self, digest: Digest) -> list[Node]:
        """What the manifest `digest` names; of an index the manifests alone."""
        named = set(self.named.get(digest, ()))
        return [node for node in self.nodes if node.digest in named]

    def _is_unpulled_platform(self, node: Node) -> bool:
        return node.role in (Role.MANIFEST, Role.INDEX) and node.parent is not None


def read_closure(
    store: BlobStore, catalog: Catalog, repo: Repo, root: Descriptor, platforms: Iterable[Platform] = ()
) -> Closure:
    """Blocking: everything below `root` in this repository, of these platforms (none: of all).

    A manifest counts as present if the repository may serve it: bytes that are here for another repository do not.
    A damaged one is not present. Raises `StoreError` if something cannot be read: it may name what nothing else does.
    """
    return _closure(
        root,
        tuple(platforms),
        lambda digest: sound_manifest(store, catalog, repo, digest),
        lambda descriptor: _is_here(store, descriptor),
    )


def shown_closure(store: BlobStore, catalog: Catalog, repo: Repo, root: Descriptor) -> Closure:
    """Blocking: the same to be shown to people: what cannot be read is logged, and not present."""
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

    def visit(descriptor: Descriptor, parent: Digest | None) -> None:
        if descriptor.digest in nodes:
            return
        manifest = read(descriptor.digest)
        if manifest is None:
            nodes[descriptor.digest] = Node(descriptor, _role(descriptor), False, parent)
            return
        role = Role.INDEX if manifest.is_index else Role.MANIFEST
        nodes[descriptor.digest] = Node(descriptor, role, True, parent)
        children = wanted_children(manifest.manifests, platforms)
        blobs = [(child, below) for child, below in _blobs(manifest) if not child.foreign]
        named[descriptor.digest] = tuple(child.digest for child in (*children, *(child for child, _ in blobs)))
        for child in children:
            visit(child, descriptor.digest)
        for child, below in blobs:
            if child.digest not in nodes:
                nodes[child.digest] = Node(child, below, child.data is not None or is_here(child), descriptor.digest)

    visit(root, None)
    return Closure(root.digest, tuple(nodes.values()), named)


def _role(descriptor: Descriptor) -> Role:
    return Role.INDEX if "index" in descriptor.media_type or "manifest.list" in descriptor.media_type else Role.MANIFEST


def _blobs(manifest: Manifest) -> Iterator[tuple[Descriptor, Role]]:
    """The config comes first where there is one (`read_manifest`)."""
    for number, blob in enumerate(manifest.blobs):
        yield blob, Role.CONFIG if number == 0 and manifest.has_config else Role.LAYER


def _is_here(store: BlobStore, descriptor: Descriptor) -> bool:
    try:
        info = store.stat(descriptor.digest)
    except BlobUnknown:
        return False
    return descriptor.size in (-1, info.size)
