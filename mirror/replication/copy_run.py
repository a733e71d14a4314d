"""Does a copy: one image, or all tags of a repository, one after another.

    source ── cached: fetched first, as `mirror prefetch` does ──> read whole ──> given to the target ──> next tag
                                                                    └── a tag that fails is listed; the others go on

To resume, the same copy is asked for again: what the target has is skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Final, Literal, Protocol

from typing_extensions import TypedDict

from mirror import telemetry
from mirror.errors import BlobUnknown, Denied, MirrorError, RequestError, UpstreamThrottled, UpstreamUnavailable
from mirror.oci.attachments import image_of_tag, is_attached
from mirror.oci.digest import Digest
from mirror.oci.reference import Reference, Repo
from mirror.policy.access_rules import Action
from mirror.policy.image_names import Image, name_of
from mirror.prefetch.progress import ProgressMeter
from mirror.prefetch.pulling import State, pull_image
from mirror.prefetch.sync_run import all_tags
from mirror.replication.copy_order import CopyOrder
from mirror.replication.image_tree import ImageTree, read_tree
from mirror.replication.target import CopiedImage, ImageGiver, Target
from mirror.repository.protocol import Fetchable, Readable
from mirror.values.json_types import Bytes, Count, about

#: Images that a result lists, unless more have failed.
_MOST_LISTED: Final = 200
#: Seconds that a registry may ask to wait, and how often for one image; and the wait after a broken connection.
_LONGEST_WAIT: Final = 300.0
_WAITS: Final = 5
_AFTER_BREAK: Final = 2.0
#: Blobs of one cached image that are fetched at once.
_FETCHED_AT_ONCE: Final = 8


class CopiedImageJson(TypedDict):
    """What a copy did with one image, or, as a dry run, would do."""

    source: str
    destination: str
    state: Annotated[Literal["copied", "moved", "same", "failed"], about("`moved`: the tag pointed elsewhere before.")]
    digest: str | None
    was: Annotated[str | None, about("What the tag pointed to before.")]
    manifests: Annotated[Count, about("Manifests that the destination did not have, referrers among them.")]
    referrers: Count
    blobs: Annotated[Count, about("Blobs that the destination did not have; within the site, links were made.")]
    bytes: Annotated[Bytes, about("Bytes of the blobs that were sent to another registry.")]
    reason: Annotated[str | None, about("Why it failed.")]


class CopiedJson(TypedDict):
    """The result of a copy."""

    copied: Annotated[Count, about("Images whose tag was absent, or that were copied by digest.")]
    moved: Count
    same: Annotated[Count, about("Images that the destination had, referrers included.")]
    failed: Count
    bytes: Bytes
    images: Annotated[list[CopiedImageJson], about("All that failed, and up to 200 of the others.")]
    more: Annotated[Count, about("Number of images that are not listed.")]


@dataclass(slots=True)
class CopyResult:
    """The result of a copy. `images` has one entry for each tag."""

    images: list[CopiedImageJson] = field(default_factory=list)
    bytes: int = 0

    @property
    def failures(self) -> list[str]:
        """What failed, for people."""
        return [f"{image['source']}: {image['reason']}" for image in self.images if image["state"] == "failed"]

    def counts(self) -> dict[str, int]:
        """How many images ended how, and the bytes that were sent."""
        states = [image["state"] for image in self.images]
        counts = {state: states.count(state) for state in ("copied", "moved", "same", "failed")}
        return {**counts, "bytes": self.bytes}

    def to_json(self) -> CopiedJson:
        """The images that failed, and as many of the others as a person reads; `more` counts the rest."""
        failed = [image for image in self.images if image["state"] == "failed"]
        others = [image for image in self.images if image["state"] != "failed"]
        listed = [*failed, *others[: max(0, _MOST_LISTED - len(failed))]]
        counts = self.counts()
        return {
            "copied": counts["copied"],
            "moved": counts["moved"],
            "same": counts["same"],
            "failed": counts["failed"],
            "bytes": counts["bytes"],
            "images": listed,
            "more": len(self.images) - len(listed),
        }


class Rights(Protocol):
    """What the caller of a copy may do. The rules are judged anew at each call."""

    @property
    def may_see_network(self) -> bool:
        """Whether messages may say why, and at which address, another registry did not answer."""

    def may(self, action: Action, repo: Repo) -> bool:
        """True if the caller may do this."""


@dataclass(frozen=True, slots=True)
class AllRights:
    """The rights of an operator, who may do everything."""

    may_see_network: ClassVar[bool] = True

    def may(self, action: Action, repo: Repo) -> bool:
        """See `Rights`."""
        return True


class Copies:
    """Copies within the site and to other registries."""

    def __init__(
        self,
        source_for: Callable[[Repo], Readable],
        target_for: Callable[[CopyOrder, Readable, Rights], Target],
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`source_for` returns a repository as clients see it; it raises `RequestError` for one that may not be copied.
        `target_for` returns what takes the copies of an order; it raises `RequestError` for a registry that takes none.
        """
        self._source_for = source_for
        self._target_for = target_for
        self._sleep = sleep

    def __repr__(self) -> str:
        return "<Copies>"

    async def copy(self, order: CopyOrder, rights: Rights, meter: ProgressMeter) -> CopyResult:
        """Do a copy. Images that fail are in the result. Raises `RequestError` if nothing can be copied, `Denied` if
        the caller has not the rights on both sides, and what listing the tags raises.
        """
        check_rights(order, rights)
        source = self._source_for(order.source)
        target = self._target_for(order, source, rights)
        run = _CopyRun(order, rights, source, target, meter, self._sleep)
        await run.all(await _wanted(order, source))
        telemetry.log.info(
            "copy ended", source=order.source_name, destination=order.destination_name, **run.result.counts()
        )
        return run.result


@dataclass(slots=True)
class _CopyRun:
    """One copy."""

    order: CopyOrder
    rights: Rights
    source: Readable
    target: Target
    meter: ProgressMeter
    sleep: Callable[[float], Awaitable[None]]
    result: CopyResult = field(default_factory=CopyResult)

    async def all(self, wanted: Sequence[tuple[Reference, str | None]]) -> None:
        """Copy these images, each to its tag."""
        self.meter.expect(len(wanted))
        for reference, tag in wanted:
            repo = self.order.source
            image = Image(repo, reference) if isinstance(reference, str) else Image(repo, digest=reference)
            self.result.images.append(await self._copy_one(image, tag))

    async def _copy_one(self, image: Image, tag: str | None) -> CopiedImageJson:
        order = self.order
        destination = name_of(order.destination, tag) if tag is not None else str(order.destination)
        try:
            copied = await self._retried(lambda: self._give(image, tag))
        except MirrorError as error:
            telemetry.COPIES.labels("failed").inc()
            return _failed(image, destination, str(error) if self.rights.may_see_network else error.public)
        except Exception as error:
            # a bug that one image meets must not end the others
            telemetry.log.exception("copy crashed", image=str(image))
            return _failed(image, destination, f"unexpected: {type(error).__name__}")
        state = _state(copied)
        if not order.dry_run:
            telemetry.COPIES.labels(state).inc()
            telemetry.COPIED_BYTES.inc(copied.bytes)
        self.result.bytes += copied.bytes
        return {
            "source": str(image),
            "destination": destination,
            "state": state,
            "digest": str(copied.root),
            "was": str(copied.was) if copied.was else None,
            "manifests": copied.manifests,
            "referrers": copied.referrers,
            "blobs": copied.blobs,
            "bytes": copied.bytes,
            "reason": None,
        }

    async def _give(self, image: Image, tag: str | None) -> CopiedImage:
        order, source, target = self.order, self.source, self.target
        if isinstance(source, Fetchable):
            await self._fetch(source, image)
        tree = await read_tree(source, image.reference, platforms=order.platforms, referrers=order.referrers)
        was = await target.digest_of(tag) if tag is not None else None
        if order.dry_run:
            return await _planned(tree, target, tag, was)
        return await ImageGiver(target, lambda progress: self.meter.note(image, progress)).give(tree, tag, was)

    async def _fetch(self, source: Readable, image: Image) -> None:
        """Brings a cached image in as a whole. Raises `BlobUnknown` with what is missing."""
        pulled = await pull_image(
            source,
            image.reference,
            platforms=self.order.platforms,
            referrers=self.order.referrers,
            slots=asyncio.Semaphore(_FETCHED_AT_ONCE),
            report=lambda progress: self.meter.note(image, progress),
            sleep=self.sleep,
        )
        if pulled.stale:
            raise UpstreamUnavailable(
                f"{image}: upstream does not answer for the tag", upstream=self.order.source.registry
            )
        if not pulled.ok:
            failed = [f"{digest}: {pulled.blobs[digest].error}" for digest in pulled.of(State.FAILED)]
            raise BlobUnknown(
                f"not all of it is here: {next(iter([*filter(None, [pulled.error]), *pulled.problems, *failed]))}"
            )

    async def _retried(self, work: Callable[[], Awaitable[CopiedImage]]) -> CopiedImage:
        """Does the work, and again after a wait if a registry throttles or does not answer: what it has is skipped."""
        for _ in range(_WAITS):
            try:
                return await work()
            except UpstreamThrottled as error:
                if error.retry_after > _LONGEST_WAIT:
                    raise
                telemetry.log.warning("upstream throttled", upstream=error.upstream, wait=error.retry_after)
                await self.sleep(error.retry_after)
            except UpstreamUnavailable as error:
                telemetry.log.warning("copy broken off", upstream=error.upstream, reason=str(error))
                await self.sleep(_AFTER_BREAK)
        return await work()


def check_rights(order: CopyOrder, rights: Rights) -> None:
    """Returns if the caller may pull from the source and push to the destination. Raises `Denied`."""
    for action, joint, repo in ((Action.PULL, "from", order.source), (Action.PUSH, "to", order.destination)):
        if not rights.may(action, repo):
            raise Denied(f"{order.caller} may not {action.value} {joint} {repo}")


async def _wanted(order: CopyOrder, source: Readable) -> list[tuple[Reference, str | None]]:
    """The images to copy, each with the tag that the destination gets. Raises `MirrorError`."""
    if order.reference is not None:
        return [(order.reference, order.tag)]
    listing = await all_tags(source)
    if listing.outcome.is_old:
        raise UpstreamUnavailable(f"the tags of {order.source}: upstream does not answer", upstream=listing.upstream)
    # what belongs to an image goes with it; what is left of images without a tag, at the end
    tags = [tag for tag in listing.items if not is_attached(tag)]
    if order.referrers:
        tags += [tag for tag in listing.items if image_of_tag(tag) is not None]
    if not tags:
        raise RequestError(f"{order.source} has no tags")
    return [(tag, tag) for tag in tags]


def _failed(image: Image, destination: str, reason: str) -> CopiedImageJson:
    return {
        "source": str(image),
        "destination": destination,
        "state": "failed",
        "digest": None,
        "was": None,
        "manifests": 0,
        "referrers": 0,
        "blobs": 0,
        "bytes": 0,
        "reason": reason,
    }


def _state(copied: CopiedImage) -> Literal["copied", "moved", "same"]:
    if copied.is_same:
        return "same"
    return "moved" if copied.has_moved else "copied"


async def _planned(tree: ImageTree, target: Target, tag: str | None, was: Digest | None) -> CopiedImage:
    """What a dry run says: nothing is written."""
    root = tree.root.digest
    tagged = tag is not None and was != root
    if tag is not None and tagged:
        await target.check_tag(tag, was, root)
    manifests = 0 if await target.has_manifest(root) else len(tree.image) + len(tree.referrers)
    return CopiedImage(root, was, manifests, tagged=tagged)
