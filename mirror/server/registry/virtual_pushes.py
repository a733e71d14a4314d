"""Pushes under the names of virtual registries, and what those who push see there.

push, delete    the writable member ── unless a member before it has the name, or the name would be taken over
mount           from the members that answer for the source
HEAD of a blob  by a caller who may push: the writable member alone
"""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from mirror.errors import BlobUnknown, Denied, NameInvalid, NameUnknown, Unsupported
from mirror.oci.digest import Digest
from mirror.oci.request import RegistryRequest
from mirror.policy.access_rules import Action, Identity
from mirror.ports import BlobObject
from mirror.repository.answers import BlobContent, BlobStat, PartialContent
from mirror.repository.protocol import GivesParts, InBucket, Pusher, Readable, Writable, is_hosted
from mirror.server.registry.access_control import AccessControl, MountSource
from mirror.server.registry.pull import Blobs
from mirror.server.registry.visitor import VirtualVisitor
from mirror.virtual.virtual_repository import VirtualRepository


def mount_source(wanted: RegistryRequest, resolve: Callable[[str], Readable]) -> MountSource | None:
    """What a mount names as its source, whether virtual or not; None if it names nothing. Raises `StoreError`."""
    name = wanted.query.get("from") if "mount" in wanted.query else None
    if not name:
        return None
    try:
        source = resolve(name)
    except (NameInvalid, NameUnknown):
        return MountSource()
    if isinstance(source, VirtualRepository):
        return MountSource(source.repo, source.parts.answering(source.repo).repos)
    return MountSource(source.repo, (source.repo,))


def writable_of(
    virtual: VirtualRepository,
    access: AccessControl | None,
    identity: Identity,
    request: web.BaseRequest,
    wanted: RegistryRequest,
) -> Readable:
    """The repository to which pushes and deletions under a virtual name go. Raises `Unsupported` if there is none, and
    like `refuse_stranger`.
    """
    rules = virtual.parts.rules
    if (repo := rules.writable_repo(virtual.repo.name)) is not None:
        return virtual.parts.member(repo)
    if access is not None:
        access.refuse_stranger(identity, virtual.repo, request, wanted)
    raise Unsupported(f"{rules.name} takes no pushes: it has no `writable` member; push under a member's own name")


def check_way(virtual: VirtualRepository, access: AccessControl, identity: Identity, action: Action) -> None:
    """Raises `Denied` if a member before the writable one has the name: nobody would read what is pushed. Also if a
    first push would take the name over from an upstream of which there is content here, and the caller may not
    overwrite.
    """
    parts, name = virtual.parts, virtual.repo.name
    if (other := parts.rules.in_the_way(name, parts.is_taken)) is not None:
        shown = other if access.allows(identity, Action.PULL, other) else "another repository"
        raise Denied(
            f"under {virtual.repo}, {shown} is pulled, which comes before {parts.rules.writable}: push to it under its "
            "own name"
        )
    writable, answering = parts.rules.writable_repo(name), parts.answering(virtual.repo)
    if action is not Action.PUSH or answering.owned or writable is None:
        return
    if any(map(parts.is_taken, answering.repos)) and not access.may(identity, Action.OVERWRITE, writable):
        raise Denied(
            f"{virtual.repo} is pulled from an upstream until now; to take the name over needs the right to overwrite "
            f"in {writable}"
        )


def visible_blobs(
    virtual: VirtualRepository,
    visitor: VirtualVisitor,
    access: AccessControl | None,
    identity: Identity,
    request: web.BaseRequest,
    wanted: RegistryRequest,
) -> Blobs:
    """The blobs of a virtual repository as this caller sees them. Raises `StoreError`, and like
    `VirtualVisitor.admit`.
    """
    parts, name = virtual.parts, virtual.repo.name
    repo = parts.rules.writable_repo(name)
    if access is None or repo is None or not access.allows(identity, Action.PULL, repo):
        return virtual
    pusher = access.pusher(identity, repo, request, wanted, asked=virtual.repo)
    if pusher is None or parts.rules.in_the_way(name, parts.is_taken) is not None:
        return virtual
    member = parts.member(repo)
    if is_hosted(member) and visitor.admit(repo):
        return WritableMembersBlobs(virtual, member, pusher)
    return virtual


class WritableMembersBlobs:
    """The blobs of a virtual repository for a caller who may push to its writable member.

    HEAD is the answer of the writable member alone: a client that learns that a blob is there does not upload it, and
    the manifest that names it goes to this member. What a HEAD may do there is to reserve a blob, which takes no name.
    """

    def __init__(self, blobs: Blobs, writable: Writable, pusher: Pusher) -> None:
        """`blobs` are those of the virtual repository."""
        self._blobs = blobs
        self._writable = writable
        self._pusher = pusher

    async def blob(self, digest: Digest) -> BlobContent:
        """See `Readable.blob`; also what the caller has reserved."""
        try:
            return await self._writable.blob_for_push(digest, self._pusher)
        except BlobUnknown:
            return await self._blobs.blob(digest)

    async def blob_parts(self, digest: Digest, header: str, by: str) -> PartialContent | None:
        """See `GivesParts`: of the others, if the writable member has not got the blob for the caller."""
        if not isinstance(self._blobs, GivesParts):
            return None
        try:
            (await self._writable.blob_for_push(digest, self._pusher)).close()
        except BlobUnknown:
            return await self._blobs.blob_parts(digest, header, by)
        return None

    async def blob_object(self, digest: Digest) -> BlobObject | None:
        """See `InBucket`: of the writable member, and then of the others."""
        for blobs in (self._writable, self._blobs):
            found = await blobs.blob_object(digest) if isinstance(blobs, InBucket) else None
            if found is not None:
                return found
        return None

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """See `Writable.stat_for_push`."""
        return await self._writable.stat_for_push(digest, self._pusher)
