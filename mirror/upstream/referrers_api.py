"""The referrers of a manifest, as one registry lists them (distribution-spec, "Listing Referrers").

    API ──┬── an index, in pages ──────────────────────────────────────────────────────────> its descriptors
          ├── 404, 400, 405, 406, 501, HTML, JSON that is no index, a page of another host ──┐
          └── a host to which it redirects fails: the fallback tag may still answer ─────────┤
                                                                                             v
    fallback tag ──┬── an index ── each child is fetched: is this its subject? ──> the children that are
                   └── absent, or not an index, or the subject itself ───> none

Everything that is collected is limited over all pages: the mirror answers with one index, and clients read no index
larger than a manifest may be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mirror.aio.caches import LruCache
from mirror.errors import UpstreamError, UpstreamInvalid, UpstreamNotFound, UpstreamUnavailable
from mirror.oci.attachments import referrers_tag
from mirror.oci.digest import Digest
from mirror.oci.link import next_query
from mirror.oci.manifest import LARGEST, OCI_INDEX, Descriptor, Manifest, read_descriptor
from mirror.oci.reference import Reference
from mirror.oci.strict_json import read_json
from mirror.upstream.http.transport import Endpoint

#: Statuses that mean that a registry has no such API; 404 may also mean that the repository does not exist.
LACKS_API: Final = frozenset({400, 404, 405, 406, 410, 415, 422, 501})
#: The most descriptors, and the most pages, of one list.
_MOST: Final = 10_000
_MOST_PAGES: Final = 200
#: The most pages in a row that bring no new descriptor.
_MOST_IDLE: Final = 8
#: The most children of a fallback index that are fetched, how many of them at once, and their total size in bytes.
_MOST_CHILDREN: Final = 1_000
_AT_ONCE: Final = 8
_MOST_BYTES: Final = 32 * 1024 * 1024
#: The most children that are remembered, which is safe because the bytes of a digest never change.
_MOST_REMEMBERED: Final = 4_096
#: A page with more bytes is parsed in a thread.
_LARGE: Final = 64 * 1024


class NoReferrersApi(Exception):
    """The answer is no list of referrers: the registry has no API for them."""


@dataclass(frozen=True, slots=True)
class ReferrersPage:
    """The body of one answer with status 200, and its `Link` fields."""

    content: bytes
    links: Sequence[str]


#: Requests one page, by its query (empty for the first) and the most bytes it may have. Raises `NoReferrersApi`,
#: `UpstreamError`.
AskPage = Callable[[str, int], Awaitable[ReferrersPage]]
#: Requests a manifest of at most that many bytes by GET. Raises `UpstreamError`.
AskManifest = Callable[[Reference, int], Awaitable[Manifest]]


async def list_referrers(
    endpoint: Endpoint, repo: str, digest: Digest, ask: AskPage, manifest: AskManifest, children: FallbackChildren
) -> list[Descriptor]:
    """The manifests whose subject is `digest`, from the API or from the fallback tag. Empty if there are none.

    Raises `UpstreamInvalid` if the list is too long or contains an invalid descriptor, and what the callables raise.
    """
    failure: UpstreamError | None = None
    try:
        return await _by_api(endpoint, digest, ask)
    except NoReferrersApi:
        pass
    except UpstreamUnavailable as error:
        if not error.elsewhere:
            raise
        failure = error
    referrers = await children.listed(endpoint, repo, digest, manifest)
    if referrers is None and failure is not None:
        # neither the host to which the registry redirects nor the fallback tag gave an answer
        raise failure
    return referrers or []


async def _by_api(endpoint: Endpoint, digest: Digest, ask: AskPage) -> list[Descriptor]:
    referrers: dict[Digest, Descriptor] = {}
    query, room, idle = "", LARGEST, 0
    for number in range(_MOST_PAGES):
        try:
            page = await ask(query, room)
            items = await _items(endpoint, page.content)
        except NoReferrersApi as error:
            if number == 0:
                raise
            raise endpoint.invalid(
                f"page {number + 1} of the referrers of {digest} is not a list of them", 200
            ) from error
        before = len(referrers)
        try:
            for item in items:
                descriptor = read_descriptor(item)
                referrers.setdefault(descriptor.digest, descriptor)
            following = next_query(page.links)
        except ValueError as error:
            raise endpoint.invalid(f"not a list of referrers: {error}", 200) from error
        if len(referrers) > _MOST:
            raise endpoint.invalid(f"more than {_MOST} referrers of {digest}", 200)
        if following is None:
            return list(referrers.values())
        room -= len(page.content)
        idle = 0 if len(referrers) > before else idle + 1
        if room <= 0 or idle >= _MOST_IDLE:
            break
        query = following
    raise endpoint.invalid(f"the list of referrers of {digest} has too many pages", 200)


async def _items(endpoint: Endpoint, content: bytes) -> list[object]:
    """The `manifests` of a page. Raises `NoReferrersApi` if it is no index, `UpstreamInvalid` if it is bad JSON."""
    if not content.lstrip().startswith(b"{"):
        raise NoReferrersApi
    try:
        body = await asyncio.to_thread(read_json, content) if len(content) > _LARGE else read_json(content)
    except ValueError as error:
        raise endpoint.invalid(f"the list of referrers cannot be parsed: {error}", 200) from error
    if not isinstance(body, dict) or "manifests" not in body:
        raise NoReferrersApi
    items = [] if body["manifests"] is None else body["manifests"]
    if not isinstance(items, list):
        raise NoReferrersApi
    return items


@dataclass(frozen=True, slots=True)
class _Child:
    """The facts about a child manifest that was fetched; `size` is in bytes."""

    subject: Digest | None
    artifact_type: str | None
    size: int


class FallbackChildren:
    """Reads the indexes under fallback tags, and remembers the subjects of the manifests in them."""

    def __init__(self) -> None:
        self._children: LruCache[tuple[str, Digest], _Child] = LruCache(_MOST_REMEMBERED, name="referrers at upstream")

    async def listed(
        self, endpoint: Endpoint, repo: str, digest: Digest, manifest: AskManifest
    ) -> list[Descriptor] | None:
        """The children of the index under the fallback tag whose subject is `digest`; None if there is no such tag.

        Anyone who may push can put any index there, so a child counts only if its own bytes name this subject. If the
        registry resolves that tag to the subject itself, or to no index, there are no referrers. Raises
        `UpstreamInvalid` if there are more children than are fetched.
        """
        try:
            index = await manifest(referrers_tag(digest), LARGEST)
        except UpstreamNotFound:
            return None
        if index.media_type != OCI_INDEX or index.digest == digest:
            return []
        children = list({child.digest: child for child in index.manifests}.values())
        if len(children) > _MOST_CHILDREN or sum(max(child.size, 0) for child in children) > _MOST_BYTES:
            raise endpoint.invalid(f"the fallback tag of {digest} lists too many referrers", 200)
        turns = asyncio.Semaphore(_AT_ONCE)

        async def look(child: Descriptor) -> Descriptor | None:
            async with turns:
                facts = await self._look_at(repo, child, manifest)
            if facts is None or facts.subject != digest or facts.size != child.size:
                return None
            return replace(child, artifact_type=facts.artifact_type)

        return [child for child in await _all([look(child) for child in children]) if child is not None]

    async def _look_at(self, repo: str, child: Descriptor, manifest: AskManifest) -> _Child | None:
        key = repo, child.digest
        if (known := self._children.get(key)) is not None:
            return known
        if not 0 < child.size <= LARGEST:
            return None
        try:
            fetched = await manifest(child.digest, child.size)
        except (UpstreamNotFound, UpstreamInvalid):
            return None
        subject = fetched.subject.digest if fetched.subject else None
        facts = self._children[key] = _Child(subject, fetched.artifact_type, len(fetched.content))
        return facts


async def _all(work: Sequence[Coroutine[Any, Any, Descriptor | None]]) -> list[Descriptor | None]:
    """The results of coroutines that run at the same time, in order.

    If one fails, the others are cancelled and the first `UpstreamError` is raised.
    """
    failure: BaseException
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in work]
        return [task.result() for task in tasks]
    except* UpstreamError as failures:
        failure = failures.exceptions[0]
    raise failure
