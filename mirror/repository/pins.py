"""Which images are pinned, and which content stays for that. Read from the disk; the index has no say in it.

    pins on disk ─────┐
                      ├──> images ── tag record ──> digest ──> what its manifests name, present or not: it stays
    rules, over tags ─┘                                             │
    freezes on disk ──────────────────────────────────────> digest ─┘

A pinned tag protects what it points to now, and what it answers now where that is another digest: because it is frozen,
or because the newest one is not old enough yet. A frozen tag protects what it answers, pinned or not. What is named but
absent counts too, so that a blob that comes later is safe from its first moment on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.reference import Reference, Repo
from mirror.policy.pins import PinRule, rule_for
from mirror.policy.records import Freeze
from mirror.ports import Catalog, Pins
from mirror.repository.names import NamesOnDisk

__all__ = ["PinnedContent", "PinnedImage", "pinned_by_rules", "pinned_images", "why_pinned"]


@dataclass(frozen=True, slots=True)
class PinnedImage:
    """An image that must stay, and why.

    `root` is what it points to now; None: that is not known here, because nobody pulled it yet. `since` and `until` are
    epoch seconds. `rule` is the pattern of the configuration that says it; None: it was pinned by hand.
    """

    repo: Repo
    reference: Reference
    root: Descriptor | None
    reason: str
    since: float | None = None
    until: float | None = None
    rule: str | None = None


def pinned_images(pins: Pins, rules: Sequence[PinRule], catalog: Catalog, now: float) -> list[PinnedImage]:
    """Blocking: every pin that is in force, then what rules add to them. Raises `StoreError`."""
    found = [
        PinnedImage(pin.repo, pin.reference, _root(catalog, pin.repo, pin.reference), pin.reason, pin.since, pin.until)
        for pin in pins.all()
        if pin.holds(now)
    ]
    known = {(image.repo, image.reference) for image in found}
    for repo in catalog.repositories() if rules else ():
        found += [one for one in pinned_by_rules(rules, catalog, repo) if (repo, one.reference) not in known]
    return found


def pinned_by_rules(rules: Sequence[PinRule], catalog: Catalog, repo: Repo) -> list[PinnedImage]:
    """Blocking: the tags of one repository that rules pin."""
    ruled = ((tag, rule_for(rules, repo, tag)) for tag in catalog.tags(repo))
    return [
        PinnedImage(repo, tag, _root(catalog, repo, tag), rule.reason, rule=rule.match) for tag, rule in ruled if rule
    ]


def why_pinned(
    pinned: Iterable[PinnedImage], repo: Repo, *, tag: str | None = None, digest: Digest | None = None
) -> list[PinnedImage]:
    """Those of `pinned` because of which an image stays: by its tag, or as what its digest is pinned as."""
    return [
        image
        for image in pinned
        if image.repo == repo
        and (
            (tag is not None and image.reference == tag)
            or (digest is not None and (image.reference == digest or (image.root and image.root.digest == digest)))
        )
    ]


def _root(catalog: Catalog, repo: Repo, reference: Reference) -> Descriptor | None:
    if isinstance(reference, Digest):
        manifest = catalog.get_manifest(repo, reference)
        return Descriptor(manifest.media_type, reference, manifest.size) if manifest else None
    tag = catalog.get_tag(repo, reference)
    return Descriptor(tag.media_type, tag.digest, tag.size) if tag else None


class PinnedContent:
    """The digests that stay because of pins and freezes. May be asked from any thread."""

    def __init__(
        self,
        catalog: Catalog,
        pins: Pins,
        rules: Sequence[PinRule],
        names: NamesOnDisk,
        *,
        frozen: Callable[[], Iterable[Freeze]],
        answer: Callable[[Repo, str], Digest | None],
    ) -> None:
        """`frozen` are the tags that are; `answer` is what a tag answers as far as it is known here, and `StoreError`
        where that cannot be told.
        """
        self._frozen = frozen
        self._answer = answer
        self._catalog = catalog
        self._pins = pins
        self._rules = tuple(rules)
        self._names = names
        self._lock = threading.Lock()
        #: What each pinned tag pointed to when last read: a record that cannot be read at the moment unpins nothing.
        self._roots: dict[tuple[Repo, Reference], set[Digest]] = {}

    def digests(self, now: float) -> Collection[Digest]:
        """Blocking, some 0.1 ms for each pinned image. Raises `StoreError` where pins or freezes cannot be read: then
        nobody knows what must stay, and nothing may go.
        """
        with self._lock:
            roots: dict[tuple[Repo, Reference], set[Digest]] = {}
            for image in pinned_images(self._pins, self._rules, self._catalog, now):
                key = image.repo, image.reference
                roots[key] = self._roots_of(image) or self._roots.get(key, set())
            self._roots = roots
            frozen = {freeze.digest for freeze in self._frozen()}
            return self._below(frozen.union(*roots.values()))

    def _roots_of(self, image: PinnedImage) -> set[Digest]:
        """Empty where a tag is not known."""
        if isinstance(image.reference, Digest):
            return {image.reference}
        now = self._answer(image.repo, image.reference)
        return {digest for digest in (now, image.root.digest if image.root else None) if digest}

    def _below(self, roots: set[Digest]) -> set[Digest]:
        """These, and all that they and the manifests below them name."""
        kept, left = set(roots), list(roots)
        while left:
            names = self._names.of(left.pop())
            if names is None:
                continue
            left += [digest for digest in names.manifests if digest not in kept]
            kept.update(names.manifests, names.blobs)
        return kept
