"""One run of a sync rule: lists the repository's tags, selects those that the rule names, and prefetches them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from mirror.errors import MirrorError, UpstreamInvalid
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.prefetch.batch import Prefetched, prefetch
from mirror.prefetch.jobs import Ended
from mirror.prefetch.progress import ProgressMeter
from mirror.prefetch.pulling import ImageResult, State
from mirror.prefetch.sync_rules import SyncRule
from mirror.repository.answers import Listing
from mirror.repository.protocol import Readable
from mirror.values.tagsets import choose_tags

#: Tags that are requested at a time, and the most tags that a repository may have.
_PAGE: Final = 10_000
_MOST_TAGS: Final = 2_000_000
#: How many failures and images a result lists.
_MOST_LISTED: Final = 20


async def run_sync(source_for: Callable[[Repo], Readable], rule: SyncRule, meter: ProgressMeter) -> Ended:
    """Bring in what the rule selects. Raises nothing but cancellation; the result says what failed."""
    if rule.sealed:
        return Ended(False, {"error": f"{rule.repo} is sealed: its upstream is never contacted"})
    try:
        listing = await all_tags(source_for(rule.repo))
    except MirrorError as error:
        return Ended(False, {"error": f"its tags: {error}"})
    if listing.outcome.is_old:
        return Ended(False, {"error": f"its tags: {listing.upstream} does not answer"})
    tags = choose_tags(listing.items, rule.tags)
    if not tags:
        return Ended(False, {"error": f"none of its tags matches {rule.tags} (it has {len(listing.items)})"})
    meter.expect(len(tags))
    prefetched = await prefetch(
        source_for,
        [Image(rule.repo, tag) for tag in tags],
        platforms=rule.platforms,
        referrers=rule.referrers,
        report=meter.note,
    )
    return Ended(prefetched.ok and not prefetched.stale, _to_json(prefetched))


async def all_tags(source: Readable) -> Listing:
    """All tags, fetched page by page. If a page is stale, the whole list counts as stale and ends there. Raises
    `UpstreamError`, `StoreError`.
    """
    tags: list[str] = []
    while True:
        listing = await source.tags(tags[-1] if tags else "", _PAGE)
        tags += listing.items
        if len(tags) > _MOST_TAGS:
            raise UpstreamInvalid(f"more than {_MOST_TAGS} tags", upstream=listing.upstream, status=200)
        if not listing.more or not listing.items or listing.outcome.is_old:
            return replace(listing, items=tuple(tags))


def first_failure(result: Mapping[str, Any]) -> str | None:
    """The first failure in a run's result, or else the first image that upstream did not answer for."""
    stale = [f"upstream did not answer for {image}" for image in result.get("stale", ())]
    return next(iter([*result.get("failures", ()), *stale]), None)


def _to_json(prefetched: Prefetched) -> dict[str, Any]:
    """The result of a run, as JSON; `bytes` are those that were fetched."""
    new = [image for image, result in prefetched.images.items() if _is_new(result)]
    return {
        "tags": len(prefetched.images),
        "new_images": len(new),
        "new": [str(image) for image in new[:_MOST_LISTED]],
        "bytes": prefetched.fetched.bytes,
        "failures": [str(failure) for failure in prefetched.failures[:_MOST_LISTED]],
        "stale": [str(image) for image in prefetched.stale[:_MOST_LISTED]],
    }


def _is_new(result: ImageResult) -> bool:
    root = result.blobs.get(result.root) if result.root is not None else None
    return root is not None and root.state is State.FETCHED
