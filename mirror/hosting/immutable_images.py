"""What immutable tags forbid: that they move or go, and that what they need is deleted.

An immutable tag needs the manifest that it points to and, of an index, the manifests that this one names, however deep.
What cannot be read may need anything: then nothing moves and nothing is deleted. A tag whose manifest has no record
counts as absent only if the manifest was deleted, and not if it was lost.

    push        record of the manifest ──> tag ──> is a deletion marked? ── no ──> 201
                                                       └── yes: the record anew ──> 201
    deletion    reads the record ──> marks it ──> looks for immutable tags ──> drops the record, if it is still the same

The same holds for each manifest that an index names. Whichever comes first, the other one sees it: a deletion that has
looked before the tag was there finds another record, and looks again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from mirror.errors import RecordDamaged, StoreError, TagImmutable
from mirror.graph.manifests import has_blob, manifest_of_bytes
from mirror.hosting.damaged_records import deletion_or_remade, has_manifest
from mirror.hosting.parts import HostedParts
from mirror.oci.attachments import is_attached, is_attached_to
from mirror.oci.digest import Digest
from mirror.oci.manifest import DOCKER_MANIFEST, OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.records import TagRecord


class ImmutableImages:
    """The immutable tags of all hosted repositories. All calls block, and raise `StoreError` if a record that decides
    cannot be read.
    """

    def __init__(self, parts: HostedParts) -> None:
        self._parts = parts
        self._tags = parts.immutable

    def __repr__(self) -> str:
        return f"<ImmutableImages of {', '.join(self._tags.rules)}>"

    def any_of(self, repo: Repo, tags: Iterable[str]) -> bool:
        """True if one of these tags is immutable."""
        return any(self._tags.rule(repo, tag) for tag in tags)

    def check_move(self, repo: Repo, tag: str, now: Digest) -> None:
        """Returns if a tag that points to `now` may move. Raises `TagImmutable`."""
        if self._tags.rule(repo, tag):
            raise TagImmutable(f"the tag {repo}:{tag} is immutable ({_setting(repo)}); it points to {now}")

    def check_stale(self, repo: Repo, tag: str, digest: Digest) -> None:
        """Returns if a tag that points to a manifest without a record counts as absent. Raises `StoreError`."""
        if self._tags.rule(repo, tag) and deletion_or_remade(self._parts, repo, digest) is None:
            raise StoreError(
                f"the immutable tag {repo}:{tag} points to {digest}, which was lost, not deleted; "
                f"push that again, or give the tag up with `mirror delete --force`"
            )

    def check_tag_deletion(self, repo: Repo, tag: str) -> None:
        """Returns if a tag that exists may be deleted. Raises `TagImmutable`."""
        if self._tags.rule(repo, tag):
            raise TagImmutable(f"the tag {repo}:{tag} is immutable ({_setting(repo)}); {_FORCE}")
        if not is_attached(tag):
            return
        for digest, needing in self._needed(repo).items():
            if is_attached_to(tag, digest):
                raise TagImmutable(
                    f"{repo}:{tag} belongs to {digest}, which the immutable tag {needing} needs"
                    f" ({_setting(repo)}); {_FORCE}"
                )

    def check_deletion(self, repo: Repo, digests: Collection[Digest]) -> None:
        """Returns if these manifests may be deleted. Raises `TagImmutable`."""
        needed = self._needed(repo)
        for digest in digests:
            if tag := needed.get(digest):
                raise TagImmutable(
                    f"the tag {repo}:{tag} is immutable ({_setting(repo)}), and needs {digest}; {_FORCE}"
                )

    def _needed(self, repo: Repo) -> dict[Digest, str]:
        """The manifests that the immutable tags of the repository need, each with one of these tags."""
        needed: dict[Digest, str] = {}
        for tag in self._parts.catalog.tags(repo) if self._tags.concern(repo) else ():
            if self._tags.rule(repo, tag) and (record := self._record(repo, tag)):
                for digest in self.family(repo, record, needed):
                    needed[digest] = tag
        return needed

    def family(self, repo: Repo, tag: TagRecord, known: Collection[Digest] = ()) -> Iterator[Digest]:
        """Yields the manifest that a tag points to, and what an index there names, except what is `known` with all that
        it names.
        """
        seen = {tag.digest}
        waiting = [tag.digest]
        while waiting:
            digest = waiting.pop()
            if digest in known:
                continue
            yield digest
            for child in () if tag.media_type in _IMAGES else self._children(repo, tag.tag, digest):
                if child not in seen:
                    seen.add(child)
                    waiting.append(child)

    def _record(self, repo: Repo, tag: str) -> TagRecord | None:
        try:
            record = self._parts.catalog.get_tag(repo, tag)
        except RecordDamaged as error:
            raise StoreError(
                f"the record of the immutable tag {repo}:{tag} is damaged, and it may need the manifest; "
                f"push the tag again after `mirror delete --force {repo}:{tag}`"
            ) from error
        # a tag whose manifest has no record counts as absent
        return record if record and has_manifest(self._parts.catalog, repo, record.digest) else None

    def _children(self, repo: Repo, tag: str, digest: Digest) -> list[Digest]:
        contents = self._parts.contents
        manifest = manifest_of_bytes(contents, digest)
        is_here = manifest is not None or not has_manifest(self._parts.catalog, repo, digest)
        if not is_here and not has_blob(contents, digest):
            raise StoreError(f"{repo}@{digest} is missing; the immutable tag {tag} needs it, and what it may name")
        return [child.digest for child in manifest.manifests] if manifest else []


#: Manifests that name no other manifests.
_IMAGES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})

_FORCE: Final = "only an administrator can delete it, with `mirror delete --force`"


def _setting(repo: Repo) -> str:
    return f"[[hosted.immutable]] of {repo.registry}"
