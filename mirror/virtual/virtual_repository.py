"""One repository of a virtual registry, as one caller sees it: each request is answered by the members' repositories.

    who answers      a hosted member has the name? ──> hosted members alone, else the upstreams (`policy/virtual`)
    a tag, hosted    the first member with a record of the tag decides, whatever its answer, and whatever the rights
    a tag, upstream  in order; only "not found" leads to the next member, any other error is the answer
    a digest         first the member that gave the tag or the index, then the others; content of a digest is the same
                     everywhere, so a member that cannot answer is passed over, and its error is the answer if no other
                     member has the content
    lists            those of all members, merged; an error of one member is the answer: a part is not the list

The caller's rights are judged for each member's repository, before the member is asked. A member that the caller may
not pull from is left out, except where it alone decides: then the name is unknown to the caller.

Who has the name is looked up at each request, by one `stat` for each hosted member. Everything else that is remembered
only says which member to ask first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from mirror.aio.caches import LruCache, TtlCache
from mirror.errors import (
    ManifestUnknown,
    MirrorError,
    NameUnknown,
    NotFound,
    StoreError,
    Unauthorized,
    UpstreamError,
    UpstreamInvalid,
)
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo
from mirror.policy.virtual.members import Answering, VirtualRules
from mirror.policy.virtual.merging import ReferrersPart, TagPart, merge_referrers, merge_tags
from mirror.ports import BlobObject
from mirror.repository.answers import BlobContent, BlobStat, Listing, ManifestAnswer, Outcome, PartialContent
from mirror.repository.protocol import Fetchable, GivesParts, InBucket, Readable

T = TypeVar("T")

_MOST: Final = 100_000
#: Seconds for which a member is not asked again for a tag that it did not have, as for a repository of one upstream.
_ABSENT_FOR: Final = 10.0


class Admission(Protocol):
    """The caller of one request, for whom members are asked."""

    def admit(self, repo: Repo) -> bool:
        """True if the caller may pull from this repository of a member. False for a caller who may not; raises
        `Unauthorized` for one who has not logged in.
        """

    def passed_over(self, repo: Repo, error: MirrorError) -> None:
        """Notes that a member did not have what was asked."""


class NoAdmission:
    """The admission of no caller: a virtual repository is read by callers only."""

    def admit(self, repo: Repo) -> bool:
        """Raises `TypeError`."""
        raise TypeError(f"{repo} is asked for nobody")

    def passed_over(self, repo: Repo, error: MirrorError) -> None:
        """Does nothing."""


class VirtualMemory:
    """What one process remembers about members. `now` is in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        #: The member that gave a manifest, or a manifest or index that names the digest; and whether what a manifest
        #: itself names is noted as well.
        self._givers: LruCache[tuple[Repo, Digest], tuple[Repo, bool]] = LruCache(_MOST, name="virtual digests")
        self.absent: TtlCache[tuple[Repo, str], bool] = TtlCache(_MOST, _ABSENT_FOR, now, name="virtual tags")

    def __repr__(self) -> str:
        return f"<VirtualMemory {len(self._givers)} digests, {len(self.absent)} absent tags>"

    def note(self, asked: Repo, answer: ManifestAnswer, giver: Repo) -> None:
        """Notes which member gave a manifest. What it names is noted once, not at every pull."""
        noted = self._givers.get((asked, answer.digest))
        if noted is not None and noted[0] == giver and (noted[1] or answer.manifest is None):
            return
        self._givers[asked, answer.digest] = giver, answer.manifest is not None
        if answer.manifest is not None:
            for named in (*answer.manifest.blobs, *answer.manifest.manifests):
                self._givers[asked, named.digest] = giver, False

    def giver(self, asked: Repo, digest: Digest) -> Repo | None:
        """Returns the member that gave this digest, or something that names it; None if none is remembered."""
        noted = self._givers.get((asked, digest))
        return None if noted is None else noted[0]


@dataclass(frozen=True, slots=True)
class VirtualParts:
    """What the repositories of a virtual registry are made of.

    `is_taken` tells whether a repository exists here or has ever existed; quick, raises `StoreError`. `member` returns
    a member's repository. `has_tag` tells whether a hosted repository has a tag, `may_serve` whether a cached one is
    known to have some content; both may raise `StoreError`. `some_sealed`: some members' repositories may be sealed.
    `learn` makes `is_taken` able to answer for these repositories; None if it always is.
    """

    rules: VirtualRules
    is_taken: Callable[[Repo], bool]
    member: Callable[[Repo], Readable]
    has_tag: Callable[[Repo, str], Awaitable[bool]]
    may_serve: Callable[[Repo, Digest], Awaitable[bool]]
    memory: VirtualMemory
    some_sealed: bool = False
    learn: Callable[[Sequence[Repo]], Awaitable[None]] | None = None

    def answering(self, repo: Repo) -> Answering:
        """Who answers for a virtual repository. Raises `StoreError`."""
        answering = self.rules.answering(repo.name, self.is_taken)
        if self.some_sealed and not answering.owned and len(answering.repos) > 1:
            # a sealed member that has nothing of the name would report a miss of what another member has
            having = tuple(each for each in answering.repos if self.is_taken(each) or self._has_upstream(each))
            return replace(answering, repos=having or answering.repos[:1])
        return answering

    def _has_upstream(self, repo: Repo) -> bool:
        return isinstance(self.member(repo), Fetchable)


class VirtualRepository:
    """One repository of a virtual registry: `Readable`. Made anew for each request by `seen_by`: only then can it be
    read.
    """

    def __init__(self, repo: Repo, parts: VirtualParts, admission: Admission | None = None) -> None:
        self.repo = repo
        self.parts = parts
        self._admission = admission or NoAdmission()

    def __repr__(self) -> str:
        return f"<VirtualRepository {self.repo}>"

    async def learn_names(self) -> None:
        """To be awaited before anything else if `parts.learn` is set. Raises `StoreError`."""
        if self.parts.learn is not None:
            rules = self.parts.rules
            await self.parts.learn(
                [one for each in rules.spellings(self.repo.name) for one in rules.hosted_repos(each)]
            )

    def seen_by(self, admission: Admission) -> VirtualRepository:
        """Returns this repository as a caller sees it."""
        return VirtualRepository(self.repo, self.parts, admission)

    def has(self, digest: Digest) -> bool:
        """True if the store has the content, from any repository."""
        repos = self.parts.answering(self.repo).repos
        return bool(repos) and self.parts.member(repos[0]).has(digest)

    def _answering(self) -> Answering:
        """Who answers. Raises `StoreError`, and if nobody does, `Unauthorized` for a caller who has to log in to see
        what hosted members have: otherwise the 404 would say that the name is free.
        """
        answering = self.parts.answering(self.repo)
        if not answering.repos:
            for repo in self.parts.rules.hosted_repos(self.repo.name):
                self._admission.admit(repo)
        return answering

    # ----------------------------------------------------------------------------------------------------- manifests

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """See `Readable`."""

        async def ask(member: Readable) -> ManifestAnswer:
            answer = await member.manifest(reference)
            if answer.outcome is Outcome.MISS and isinstance(member, Fetchable):
                member.fetch_ahead(answer)
            return answer

        return await self._by_reference(reference, ask)

    async def resolve(self, reference: Reference) -> ManifestAnswer:
        """See `Readable`."""
        return await self._by_reference(reference, lambda member: member.resolve(reference))

    async def _by_reference(
        self, reference: Reference, ask: Callable[[Readable], Awaitable[ManifestAnswer]]
    ) -> ManifestAnswer:
        if isinstance(reference, Digest):
            return await self._by_digest(reference, ask, self.parts.memory.note)
        answering = self._answering()
        if answering.owned:
            return await self._by_hosted_tag(answering.repos, reference, ask)
        return await self._by_tag(answering.repos, reference, ask)

    async def _by_hosted_tag(
        self, repos: Sequence[Repo], tag: str, ask: Callable[[Readable], Awaitable[ManifestAnswer]]
    ) -> ManifestAnswer:
        """One member decides: the first that has the tag, also if it is damaged, or the caller may not pull there."""
        deciding = repos
        if len(repos) > 1:
            for repo in repos:
                if await self.parts.has_tag(repo, tag):
                    deciding = (repo,)
                    break
        # without the tag, every member must be open to the caller: who may not pull learns nothing about tags
        if not deciding or not all(map(self._admission.admit, reversed(deciding))):
            raise NameUnknown("no such repository")
        return await ask(self.parts.member(deciding[0]))

    async def _by_tag(
        self, repos: Sequence[Repo], tag: str, ask: Callable[[Readable], Awaitable[ManifestAnswer]]
    ) -> ManifestAnswer:
        absent: MirrorError | None = None
        for repo in repos:
            if not self._admission.admit(repo):
                continue
            member = self.parts.member(repo)
            try:
                if (repo, tag) in self.parts.memory.absent:
                    absent = absent or ManifestUnknown(f"{repo} has no tag {tag}")
                    continue
                answer = await ask(member)
            except MirrorError as error:
                if not self._is_absent(repo, error):
                    raise
                self._note_absent(member, tag, error)
                absent = absent or error
            else:
                if len(repos) > 1:
                    self.parts.memory.note(self.repo, answer, repo)
                return answer
        raise _unknown(absent, f"{self.repo}:{tag}")

    def _note_absent(self, member: Readable, tag: str, error: MirrorError) -> None:
        self._admission.passed_over(member.repo, error)
        # a sealed repository may be given the tag at any moment
        if isinstance(member, Fetchable):
            self.parts.memory.absent[member.repo, tag] = True

    def _is_absent(self, repo: Repo, error: MirrorError) -> bool:
        """Whether the next member may be asked. A registry that refuses a repository of which there is content here
        has the repository: it may have refused because of the mirror's rights.
        """
        if not self.parts.rules.is_absent(repo.registry, error):
            return False
        return isinstance(error, NotFound) or not self.parts.is_taken(repo)

    # ------------------------------------------------------------------------------------------------------- digests

    async def blob(self, digest: Digest) -> BlobContent:
        """See `Readable`."""
        return await self._by_digest(digest, lambda member: member.blob(digest))

    async def blob_object(self, digest: Digest) -> BlobObject | None:
        """See `InBucket`: the object of the first member whose repository has one, for a caller who may pull there."""
        for repo in await self._in_order(digest):
            member = self.parts.member(repo)
            if isinstance(member, InBucket) and self._admission.admit(repo):
                found = await member.blob_object(digest)
                if found is not None:
                    return found
        return None

    async def blob_parts(self, digest: Digest, header: str, by: str) -> PartialContent | None:
        """See `GivesParts`: those of the member that `blob` would ask first, if it is certain that the member has the
        blob.
        """
        try:
            for repo in await self._in_order(digest):
                member = self.parts.member(repo)
                if self._admission.admit(repo):
                    return await member.blob_parts(digest, header, by) if isinstance(member, GivesParts) else None
        except (Unauthorized, UpstreamError, StoreError, NotFound):
            # another member may answer
            return None
        return None

    async def stat_blob(self, digest: Digest) -> BlobStat:
        """See `Readable`."""
        return await self._by_digest(digest, lambda member: member.stat_blob(digest))

    async def read(self, digest: Digest, limit: int) -> bytes:
        """See `Readable`."""
        return await self._by_digest(digest, lambda member: member.read(digest, limit))

    async def _by_digest(
        self,
        digest: Digest,
        ask: Callable[[Readable], Awaitable[T]],
        note: Callable[[Repo, T, Repo], None] = lambda asked, answer, giver: None,
    ) -> T:
        absent: MirrorError | None = None
        failed: MirrorError | None = None
        repos = await self._in_order(digest)
        for repo in repos:
            try:
                if self._admission.admit(repo):
                    answer = await ask(self.parts.member(repo))
                    if len(repos) > 1:
                        note(self.repo, answer, repo)
                    return answer
            except (Unauthorized, UpstreamError, StoreError, NotFound) as error:
                if self._is_absent(repo, error):
                    absent = absent or error
                else:
                    failed = failed or error
        raise failed or _unknown(absent, f"{self.repo}@{digest}")

    async def _in_order(self, digest: Digest) -> Sequence[Repo]:
        """The repositories that answer, those first that gave the digest or are known to have it."""
        answering = self._answering()
        repos = answering.repos
        if len(repos) < 2:
            return repos
        giver = self.parts.memory.giver(self.repo, digest)
        if giver in repos:
            return [giver, *(repo for repo in repos if repo != giver)]
        if answering.owned:
            return repos
        # another process may have given the manifest
        known = [repo for repo in repos if await self.parts.may_serve(repo, digest)]
        return [*known, *(repo for repo in repos if repo not in known)]

    # --------------------------------------------------------------------------------------------------------- lists

    async def tags(self, last: str, count: int) -> Listing:
        """See `Readable`."""
        listings = await self._lists(lambda member: member.tags(last, count), "tags")
        page = merge_tags([TagPart(listing.items, listing.more) for listing in listings], count)
        if page.more and not page.tags and count:
            upstream = next(listing.upstream for listing in listings if listing.more)
            raise UpstreamInvalid("a page of the tag list has no tags, and more pages follow", upstream=upstream)
        return Listing(tuple(page.tags), _outcome(listings), listings[0].upstream, page.more)

    async def referrers(self, digest: Digest, after: Digest | None = None) -> Listing:
        """See `Readable`."""
        listings = await self._lists(lambda member: member.referrers(digest, after), "referrers")
        page = merge_referrers([ReferrersPart(listing.items, listing.more) for listing in listings])
        return Listing(page.items, _outcome(listings), listings[0].upstream, page.more)

    async def _lists(self, ask: Callable[[Readable], Awaitable[Listing]], what: str) -> Sequence[Listing]:
        """The lists of all members that have the name; at least one. Raises the error of a member that cannot answer,
        and `NameUnknown`.
        """
        listings: list[Listing] = []
        absent: MirrorError | None = None
        for repo in self._answering().repos:
            if not self._admission.admit(repo):
                continue
            try:
                listings.append(await ask(self.parts.member(repo)))
            except MirrorError as error:
                if not self._is_absent(repo, error):
                    raise
                self._admission.passed_over(repo, error)
                absent = absent or error
        if not listings:
            raise _unknown(absent, f"{what} of {self.repo}")
        return listings


def _outcome(listings: Sequence[Listing]) -> Outcome:
    """How a merged list came about: it is as old as its oldest part."""
    outcomes = {listing.outcome for listing in listings}
    return next(
        (each for each in (Outcome.STALE, Outcome.LAST_SEEN, Outcome.NONE) if each in outcomes), listings[0].outcome
    )


def _unknown(absent: MirrorError | None, what: str) -> MirrorError:
    """The error of what no member has. If the caller may pull from none of them, there is no such repository."""
    if absent is None:
        return NameUnknown("no such repository")
    if isinstance(absent, NotFound):
        return absent
    return NameUnknown(f"no registry behind this name has {what}; {absent.public}")
