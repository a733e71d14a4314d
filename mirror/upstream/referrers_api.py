"""What refers to a manifest, as one registry tells it (distribution-spec, "Listing Referrers").

    API ──┬── an index, in pages ──────────────────────────────────────────────────────────> its descriptors
          ├── 404, 400, 405, 406, 501, HTML, JSON that is no index, a page of another host ──┐
          └── another host that it sends to fails: the tag may still tell ───────────────────┤
                                                                                             v
    fallback tag ──┬── an index ── each child is fetched: is this its subject? ──> the children that are
                   └── absent, or something else, such as the manifest itself ───> none

Everything that is collected is bounded over all pages: the answer is an index, and clients read no index that is larger
than a manifest may be.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mirror.aio.latest import put_latest
from mirror.errors import UpstreamError, UpstreamInvalid, UpstreamNotFound, UpstreamUnavailable
from mirror.oci.digest import Digest
from mirror.oci.link import next_query
from mirror.oci.manifest import LARGEST, OCI_INDEX, Descriptor, Manifest, read_descriptor
from mirror.oci.reference import Reference
from mirror.oci.strict_json import read_json

__all__ = ["LACKS_API", "FallbackChildren", "NoReferrersApi", "ReferrersPage", "list_referrers"]

#: Statuses by which a registry says that it has no such API; 404 also means that it does not know the repository.
LACKS_API: Final = frozenset({400, 404, 405, 406, 410, 415, 422, 501})
#: Descriptors of one answer.
_MOST: Final = 10_000
_MOST_PAGES: Final = 200
#: Pages in a row that bring nothing new.
_MOST_IDLE: Final = 8
#: Children of a fallback index that are looked at, how many of them at once, and their bytes together.
_MOST_CHILDREN: Final = 1_000
_AT_ONCE: Final = 8
_MOST_BYTES: Final = 32 * 1024 * 1024
#: Children that are remembered: their bytes never change.
_MOST_REMEMBERED: Final = 4_096
#: Bytes of a page above which it is parsed in a thread.
_LARGE: Final = 64 * 1024


class NoReferrersApi(Exception):
    """The answer is no list of referrers: this registry has no API for them."""


@dataclass(frozen=True, slots=True)
class ReferrersPage:
    """The body of one answer with status 200, and its `Link` lines."""

    content: bytes
    links: Sequence[str]


#: Asks for one page: its query (empty for the first one), and the bytes that it may have. Raises `NoReferrersApi`.
AskPage = Callable[[str, int], Awaitable[ReferrersPage]]
#: GET of a manifest of at most so many bytes. Raises `UpstreamError`.
AskManifest = Callable[[Reference, int], Awaitable[Manifest]]


async def list_referrers(
    upstream: str, repo: str, digest: Digest, ask: AskPage, manifest: AskManifest, children: FallbackChildren
) -> list[Descriptor]:
    """Manifests whose subject is `digest`, by the API or by the fallback tag. Empty if there are none.

    Raises `UpstreamInvalid` for a list that is too long or holds what is no descriptor, and what the callables raise.
    """
    failure: UpstreamError | None = None
    try:
        return await _by_api(upstream, digest, ask)
    except NoReferrersApi:
        pass
    except UpstreamUnavailable as error:
        if not error.elsewhere:
            raise
        failure = error
    found = await children.listed(upstream, repo, digest, manifest)
    if found is None and failure is not None:
        # nothing was told: neither by where the registry sends us, nor by the tag
        raise failure
    return found or []


async def _by_api(upstream: str, digest: Digest, ask: AskPage) -> list[Descriptor]:
    found: dict[Digest, Descriptor] = {}
    query, room, idle = "", LARGEST, 0
    for number in range(_MOST_PAGES):
        try:
            page = await ask(query, room)
            items = await _items(upstream, page.content)
        except NoReferrersApi as error:
            if number == 0:
                raise
            raise _invalid(
                upstream, f"page {number + 1} of the referrers of {digest} is no list of referrers"
            ) from error
        before = len(found)
        try:
            for item in items:
                descriptor = read_descriptor(item)
                found.setdefault(descriptor.digest, descriptor)
            following = next_query(page.links)
        except ValueError as error:
            raise _invalid(upstream, f"not a list of referrers: {error}") from error
        if len(found) > _MOST:
            raise _invalid(upstream, f"more than {_MOST} referrers of {digest}")
        if following is None:
            return list(found.values())
        room -= len(page.content)
        idle = 0 if len(found) > before else idle + 1
        if room <= 0 or idle >= _MOST_IDLE:
            break
        query = following
    raise _invalid(upstream, f"pages of referrers of {digest} without end")


async def _items(upstream: str, content: bytes) -> list[object]:
    """Raises `NoReferrersApi` for what is no index, `UpstreamInvalid` for one that cannot be read."""
    if not content.lstrip().startswith(b"{"):
        raise NoReferrersApi
    try:
        body = await asyncio.to_thread(read_json, content) if len(content) > _LARGE else read_json(content)
    except ValueError as error:
        raise _invalid(upstream, f"a list of referrers that cannot be read: {error}") from error
    if not isinstance(body, dict) or "manifests" not in body:
        raise NoReferrersApi
    items = [] if body["manifests"] is None else body["manifests"]
    if not isinstance(items, list):
        raise NoReferrersApi
    return items


@dataclass(frozen=True, slots=True)
class _Child:
    """What the bytes of a manifest say; `size` counts them."""

    subject: Digest | None
    artifact_type: str | None
    size: int


class FallbackChildren:
    """Reads indexes under fallback tags, and remembers what the manifests in them have for a subject."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, Digest], _Child] = OrderedDict()

    async def listed(self, upstream: str, repo: str, digest: Digest, manifest: AskManifest) -> list[Descriptor] | None:
        """The children of the index under the fallback tag whose subject is `digest`; None: there is no such tag.

        Anybody who may push can put an index there, and a registry may resolve that tag to the subject itself, so a
        child counts if its own bytes name this subject. Raises `UpstreamInvalid` for more children than are looked at.
        """
        try:
            # the tag grammar is why the encoded part is cut (distribution-spec, "Referrers Tag Schema")
            index = await manifest(f"{digest.algorithm}-{digest.hex[:64]}", LARGEST)
        except UpstreamNotFound:
            return None
        if index.media_type != OCI_INDEX or index.digest == digest:
            return []
        children = list({child.digest: child for child in index.manifests}.values())
        if len(children) > _MOST_CHILDREN or sum(max(child.size, 0) for child in children) > _MOST_BYTES:
            raise _invalid(upstream, f"more referrers of {digest} under its fallback tag than can be looked at")
        turns = asyncio.Semaphore(_AT_ONCE)

        async def look(child: Descriptor) -> Descriptor | None:
            async with turns:
                known = await self._look_at(repo, child, manifest)
            if known is None or known.subject != digest or known.size != child.size:
                return None
            return replace(child, artifact_type=known.artifact_type)

        return [one for one in await _all([look(child) for child in children]) if one is not None]

    async def _look_at(self, repo: str, child: Descriptor, manifest: AskManifest) -> _Child | None:
        key = repo, child.digest
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        if not 0 < child.size <= LARGEST:
            return None
        try:
            found = await manifest(child.digest, child.size)
        except (UpstreamNotFound, UpstreamInvalid):
            return None
        subject = found.subject.digest if found.subject else None
        known = _Child(subject, found.artifact_type, len(found.content))
        put_latest(self._known, key, known, _MOST_REMEMBERED)
        return known


async def _all(work: Sequence[Coroutine[Any, Any, Descriptor | None]]) -> list[Descriptor | None]:
    """Side by side, in order; if one fails the others are ended. Raises what the first one raises."""
    failure: BaseException
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
        return [task.result() for task in tasks]
    except* UpstreamError as failures:
        failure = failures.exceptions[0]
    raise failure


def _invalid(upstream: str, message: str) -> UpstreamInvalid:
    return UpstreamInvalid(f"{upstream}: {message}", upstream=upstream, status=200)
