"""Explains an image or a digest: the last answers to clients, what is on the disk, and what the next pull will do.

Everything is read from the disk; neither an upstream nor a running server is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mirror.errors import BlobUnknown, Denied
from mirror.graph.blob_places import BlobPlaces
from mirror.graph.manifests import here_since
from mirror.inspect.images import CachedImage, Overview
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo
from mirror.oci.span import Span
from mirror.policy.content_rules import ContentLists
from mirror.policy.forecast import Facts, Unfinished, blob_forecast, forecast, hosted_blob_forecast
from mirror.policy.history import Choice, choose, recalled
from mirror.policy.last_answer import LastAnswer
from mirror.policy.records import Freeze, TagRecord
from mirror.policy.rules import RouteRule
from mirror.ports import BlobIngester, BlobStore, Catalog, Freezes
from mirror.repository.miss_report import images_naming

#: Returns the pattern of the route that matches a repository (None if none does), and the rule that applies to it.
RouteOf = Callable[[Repo], tuple[str | None, RouteRule]]


@dataclass(frozen=True, slots=True)
class WhyImage:
    """An image in one repository. Times are epoch seconds. `tags` point to the same digest. `answers` are the last
    answers about the image itself, `parts` those about its manifests and blobs. `next` says what the next pull will do.
    `hosted`: the repository is hosted here. `unfinished`: what downloads have so far of the blobs that are missing.
    """

    repo: Repo
    reference: Reference
    image: CachedImage | None
    record: TagRecord | None
    freeze: Freeze | None
    choice: Choice | None
    fetched_at: float | None
    tags: tuple[str, ...]
    route: str | None
    rule: RouteRule
    answers: tuple[LastAnswer, ...]
    parts: tuple[LastAnswer, ...]
    next: tuple[str, ...]
    hosted: bool = False
    unfinished: Mapping[Digest, Unfinished] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BlobHere:
    """A blob on the disk. `size` is in bytes, None if the blob is not here; `unfinished` is what its download has."""

    size: int | None
    used_at: float
    unfinished: Unfinished


@dataclass(frozen=True, slots=True)
class WhyBlob:
    """A digest that none of the repositories in question has as a manifest. `images` name it; `next` says, for each
    repository concerned, what the next pull will do.
    """

    digest: Digest
    here: BlobHere
    images: tuple[tuple[Repo, Reference], ...]
    answers: tuple[LastAnswer, ...]
    next: tuple[tuple[Repo, str], ...]


class Explainer:
    """Explains the contents of one store. `answers` are the last answers to clients, newest first
    (`store/local/answer_files.py`). `blobs` says where the blobs of each repository are read.
    """

    def __init__(
        self,
        store: BlobStore,
        catalog: Catalog,
        freezes: Freezes,
        overview: Overview,
        answers: Sequence[LastAnswer],
        route_of: RouteOf,
        lists: ContentLists | None = None,
        *,
        blobs: BlobPlaces | None = None,
        cache: BlobIngester | None = None,
        unsure: Callable[[], str] = lambda: "",
    ) -> None:
        """`cache` is where the blobs of upstreams are downloaded to, if it is not `store`. `unsure` returns why it
        cannot be known now what of hosted content is not on the disk; empty: it is known. Called in a thread.
        """
        self._store = store
        self._catalog = catalog
        self._freezes = freezes
        self._overview = overview
        self._answers = answers
        self._route_of = route_of
        self._lists = lists or ContentLists()
        self._blobs = blobs or BlobPlaces.only(store)
        self._cache = cache or store
        self._unsure = unsure

    async def image(self, repo: Repo, reference: Reference, now: float) -> WhyImage:
        """Explains an image, even one that is not here. Raises `StoreError`."""
        choice = await asyncio.to_thread(self._choice, repo, reference, now)
        # if the newest version is held back, explain the older one that is answered instead
        older = choice.serve.digest if choice and choice.held_back and choice.serve else None
        image = await self._overview.image(repo, older or reference)
        return await asyncio.to_thread(self._image, repo, reference, image, choice, now)

    async def repositories(self, digest: Digest) -> list[Repo]:
        """Returns the repositories that have the digest as a manifest, in the order of their names. Raises
        `StoreError`.
        """
        return await asyncio.to_thread(
            lambda: [repo for repo in self._catalog.repositories() if self._catalog.get_manifest(repo, digest)]
        )

    async def blob(self, digest: Digest, repos: Iterable[Repo] | None = None) -> WhyBlob:
        """Explains a blob in these repositories (in all if None). Reads all their manifests. Raises `StoreError`."""
        return await asyncio.to_thread(self._blob, digest, None if repos is None else list(repos))

    def _image(
        self, repo: Repo, reference: Reference, image: CachedImage | None, choice: Choice | None, now: float
    ) -> WhyImage:
        tag = "" if isinstance(reference, Digest) else reference
        record = self._catalog.get_tag(repo, tag) if tag else None
        freeze = self._freezes.get(repo, tag) if tag else None
        route, rule = self._route_of(repo)
        root = image.root.digest if image else None
        manifest = self._catalog.get_manifest(repo, root) if root else None
        closure = image.closure if image else None
        here = closure is not None and closure.nodes[0].present
        facts = Facts(
            registry=repo.registry,
            rule=rule,
            tag=tag,
            record=record,
            freeze=freeze,
            choice=choice,
            here=here,
            missing=len(closure.missing) if closure else 0,
            unpulled=len(closure.unpulled) if closure else 0,
            denied=self._denied(repo, tag or None, root or (reference if isinstance(reference, Digest) else None)),
            hosted=self._blobs.is_hosted(repo),
            recorded=manifest is not None,
            unsure=self._unsure() if self._blobs.is_hosted(repo) else "",
        )
        tags = [
            other
            for other in self._catalog.tags(repo)
            if root and (pointer := self._catalog.get_tag(repo, other)) and pointer.digest == root
        ]
        wanted = {str(reference)} | ({str(root)} if root else set())
        named = {str(node.digest) for node in closure.nodes} - wanted if closure else set()
        ours = [answer for answer in self._answers if answer.repository == str(repo)]
        # for a digest, include the pulls by tag that were answered with it
        answers = [answer for answer in ours if answer.reference in wanted or answer.digest == str(reference)]
        return WhyImage(
            repo=repo,
            reference=reference,
            image=image,
            record=record,
            freeze=freeze,
            choice=choice,
            fetched_at=manifest.fetched_at if manifest else None,
            tags=tuple(tags),
            route=route,
            rule=rule,
            answers=tuple(answers),
            parts=tuple(answer for answer in ours if answer.reference in named),
            next=tuple(forecast(facts, now)),
            hosted=facts.hosted,
            unfinished={
                node.digest: unfinished
                for node in (closure.missing if closure and not facts.hosted else ())
                if (unfinished := self._unfinished(node.digest, repo.registry))
            },
        )

    def _unfinished(self, digest: Digest, registry: str) -> Unfinished:
        """What the download from this registry has. Raises `StoreError`."""
        beginning = parts = 0
        if prefix := self._cache.prefix(digest, registry):
            prefix.reader.close()
            beginning = prefix.offset
        if spans := self._cache.spans(digest, registry, None):
            try:
                # blocks may be in both for a moment
                behind = Span(min(beginning, spans.size), spans.size)
                parts = sum(span.length for span in spans.here(behind))
            finally:
                spans.close()
        return Unfinished(beginning, parts)

    def _denied(self, repo: Repo, tag: str | None, digest: Digest | None) -> str:
        try:
            self._lists.check(repo, tag, digest)
        except Denied as error:
            return str(error)
        return ""

    def _choice(self, repo: Repo, reference: Reference, now: float) -> Choice | None:
        """Returns the choice that the minimum age makes, or None if it does not apply: for a digest, for a frozen tag,
        in a sealed repository, or if no minimum age is set or the tag is not known.
        """
        rule = self._route_of(repo)[1]
        if isinstance(reference, Digest) or rule.offline or not rule.age.minimum or self._blobs.is_hosted(repo):
            return None
        if self._freezes.get(repo, reference):
            return None
        record = self._catalog.get_tag(repo, reference)
        history = recalled(self._catalog.get_history(repo, reference), record, now)
        if record is None or not history:
            return None
        return choose(history, rule.age, now, here_since(self._catalog, repo))

    def _blob(self, digest: Digest, repos: list[Repo] | None) -> WhyBlob:
        try:
            info = self._blobs.contents.stat(digest)
            size, used_at = info.size, info.used_at
        except BlobUnknown:
            size, used_at = None, 0.0
        images = [
            (repo, reference)
            for repo in (self._catalog.repositories() if repos is None else repos)
            for reference in images_naming(self._blobs.of(repo), self._catalog, repo, [digest]).get(digest, ())
        ]
        names = None if repos is None else {str(repo) for repo in repos}
        answers = [
            answer
            for answer in self._answers
            if answer.reference == str(digest) and (names is None or answer.repository in names)
        ]
        concerned = dict.fromkeys([repo for repo, _ in images] + (repos or []))
        registries = {repo.registry for repo in concerned if not self._blobs.is_hosted(repo)}
        begun = {registry: self._unfinished(digest, registry) for registry in registries}
        whole = Unfinished(
            sum(unfinished.beginning for unfinished in begun.values()),
            sum(unfinished.parts for unfinished in begun.values()),
        )
        if not whole:
            # of a registry that no image names, or a copy from the bucket
            whole = Unfinished(self._store.growing().get(digest, 0))

        def next_pull(repo: Repo) -> str:
            if self._blobs.is_hosted(repo):
                return hosted_blob_forecast(here=size is not None, unsure=self._unsure())
            rule, unfinished = self._route_of(repo)[1], begun[repo.registry]
            return blob_forecast(repo.registry, rule, here=size is not None, unfinished=unfinished)

        return WhyBlob(
            digest,
            BlobHere(size, used_at, whole),
            tuple(images),
            tuple(answers),
            tuple((repo, next_pull(repo)) for repo in concerned),
        )
