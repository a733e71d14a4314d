"""The admin API's operations on images: list, show, pin, unpin, purge, plan an eviction, and evict."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Annotated, Final

from typing_extensions import TypedDict

from mirror.aio.costly_cache import CostlyCache
from mirror.errors import BodyInvalid, ImageHosted, IndexUnavailable, ManifestUnknown, PinUnknown, StoreFull
from mirror.eviction.evictor import Evictor
from mirror.eviction.pinned_images import pinned_images
from mirror.eviction.purge import Purged
from mirror.eviction.reconcile import is_whole
from mirror.eviction.record_owners import UnreadableRecordOwners
from mirror.eviction.space import Space
from mirror.graph.blob_places import BlobPlaces
from mirror.graph.listed_repositories import ListedRepositories
from mirror.graph.references import names_of
from mirror.inspect.as_json import (
    ImageDetailJson,
    ImageJson,
    PinJson,
    PinsJson,
    PurgedJson,
    VictimsJson,
    image_detail_json,
    image_json,
    new_pin_json,
    pins_json,
    purged_json,
    victims_by_image,
    victims_json,
)
from mirror.inspect.images import Overview, cursor_of, cursor_text
from mirror.inspect.untagged_lists import UntaggedLists
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.eviction import Victim
from mirror.policy.hosted.stay_rules import StayRules
from mirror.policy.image_names import Image, name_of
from mirror.policy.pins import LONGEST_REASON, parse_until
from mirror.policy.records import Pin
from mirror.policy.routing import RoutingTable
from mirror.policy.selection import search
from mirror.ports import Catalog, ContentIndex, Freezes, Pins
from mirror.server.admin.query_values import boolean, number
from mirror.values.json_types import about

_PAGE: Final = 50
_LARGEST_PAGE: Final = 500
#: Images of an eviction that are listed one by one.
_MOST_VICTIMS: Final = 200
#: Repositories in which such an image is looked up.
_MOST_HOLDERS: Final = 50
#: Entries (tags, images without a tag, repositories) that are examined for one page.
_MOST_EXAMINED: Final = 2000


class ImagesJson(TypedDict):
    """A page of images. It may be short or empty although more images follow."""

    images: list[ImageJson]
    next: Annotated[str | None, about("The value of `after` for the next page; null: this is the last one.")]


class UnpinnedJson(TypedDict):
    """An image whose pin was removed."""

    image: str
    still_pinned: Annotated[bool, about("A rule still pins it.")]


class ImageAdmin:
    """The image operations on one store."""

    def __init__(
        self,
        blobs: BlobPlaces,
        catalog: Catalog,
        pins: Pins,
        freezes: Freezes,
        index: ContentIndex,
        evictor: Evictor,
        space: Space,
        purge: Callable[[Image], Awaitable[Purged]],
        *,
        rules: StayRules,
        table: RoutingTable,
    ) -> None:
        """`rules` are those by which images stay; `table` says what the registries in a search text mean."""
        self._blobs = blobs
        self._catalog = catalog
        self._pins = pins
        self._freezes = freezes
        self._index = index
        self._evictor = evictor
        self._space = space
        self._purge = purge
        self._rules = rules
        self._table = table
        self._subjects = UnreadableRecordOwners(catalog)
        self._listed = ListedRepositories(catalog.repositories, catalog.repositories_added, name="repository list")
        self._untagged = UntaggedLists()
        self._plans: CostlyCache[VictimsJson] = CostlyCache(name="eviction plans")

    async def aclose(self) -> None:
        """Ends what is being read. Repeatable."""
        await self._listed.aclose()

    # ---------------------------------------------------------------------------------------------------- images

    async def images(self, query: Mapping[str, str]) -> ImagesJson:
        """A page of images whose names match `search`, ordered by repository, after the cursor `after`. The page may be
        short or even empty while `next` is set: if many of the examined images do not match or are gone. Raises
        `RequestError`.
        """
        limit = number(query, "limit", _PAGE, 1, _LARGEST_PAGE)
        begin = cursor_of(query.get("after", ""))
        selection = search(query.get("search", ""), self._table)
        overview = await asyncio.to_thread(self._overview)
        page = await overview.page(selection, self._listed, begin, limit, _MOST_EXAMINED)
        images = [image_json(image) for image in page.images]
        return {"images": images, "next": None if page.next is None else cursor_text(page.next)}

    async def image(self, image: Image) -> ImageDetailJson:
        """All details of one image. Raises `ManifestUnknown`."""
        overview = await asyncio.to_thread(self._overview)
        cached = await overview.image(image.repo, image.reference)
        if cached is None:
            raise ManifestUnknown(f"{image} is not here")
        return image_detail_json(await overview.detail(cached))

    async def purge(self, image: Image) -> PurgedJson:
        """Remove the image. Raises `ManifestUnknown`, `ImageProtected`, `ImageHosted`, `StoreError`."""
        self._plans.forget()
        return purged_json(await self._purge(image))

    def _overview(self) -> Overview:
        """Blocking: reads a small file for each pin and freeze."""
        pinned = pinned_images(self._pins, (), self._catalog, time.time(), self._subjects)
        freezes, unread = self._freezes.look()
        return Overview(self._blobs, self._catalog, self._index, pinned, freezes, self._rules, unread, self._untagged)

    # ------------------------------------------------------------------------------------------------------ pins

    async def pins(self, query: Mapping[str, str]) -> PinsJson:
        """Pins set by hand and by rules (with `state`, how much of each image is here), expired pins, and the pin and
        freeze files that cannot be read. Raises `RequestError`, `StoreError`.
        """
        state = boolean(query, "state")

        def read() -> PinsJson:
            pins, unread = self._pins.look()
            unread = [*unread, *self._freezes.look()[1]]
            now = time.time()
            return pins_json(
                pins, unread, self._rules.pins, self._blobs.cache, self._catalog, now, self._subjects, state=state
            )

        return await asyncio.to_thread(read)

    async def pin(self, image: Image, body: object) -> PinJson:
        """Pin the image, with `reason` and `until` from the body. The answer says how much of the image is here; that
        much is no longer evicted. Raises `BodyInvalid`, `ImageHosted`, `StoreError`.
        """
        if self._blobs.is_hosted(image.repo):
            raise ImageHosted(f"{image} is hosted here, and hosted images are never evicted: it needs no pin")
        now = time.time()
        reason, until = _read_pin(body, now)
        self._plans.forget()
        pin = Pin(image.repo, image.reference, reason, now, until)
        await asyncio.to_thread(self._pins.put, pin)
        # an eviction or purge that is under way read the pins before this one: wait for its turn to end, so that what
        # it removes is gone before the answer is made
        with suppress(StoreFull):
            async with self._evictor.turn():
                pass
        return await asyncio.to_thread(new_pin_json, pin, self._blobs.cache, self._catalog, now)

    async def unpin(self, image: Image) -> UnpinnedJson:
        """Remove a pin set by hand. Raises `PinUnknown`, `StoreError`."""
        if not await asyncio.to_thread(self._pins.drop, image.repo, image.reference):
            raise PinUnknown(f"{name_of(image.repo, image.reference)} was not pinned by hand")
        self._plans.forget()
        overview = await asyncio.to_thread(self._overview)
        cached = await overview.image(image.repo, image.reference)
        return {"image": name_of(image.repo, image.reference), "still_pinned": bool(cached and cached.pinned)}

    # -------------------------------------------------------------------------------------------------- eviction

    async def plan(self, query: Mapping[str, str]) -> VictimsJson:
        """What an eviction would remove to free `bytes` or, without that, to reach the low water mark. With `limit`,
        only the first images are listed, and the search stops after a few thousand candidates. Raises `RequestError`.
        """
        wanted = number(query, "bytes", None, 1, 1 << 60)
        limit = number(query, "limit", None, 1, _MOST_VICTIMS)

        async def plan() -> VictimsJson:
            victims = await self._space.plan(wanted, short=limit is not None)
            return await self._to_json(victims, dry_run=True, most=limit or _MOST_VICTIMS)

        return await self._plans((wanted, limit), plan)

    async def collect(self) -> VictimsJson:
        """Evict down to the low water mark, and return what was removed."""
        self._plans.forget()
        return await self._to_json(await self._space.collect(), dry_run=False, most=_MOST_VICTIMS)

    async def _to_json(self, victims: Sequence[Victim], *, dry_run: bool, most: int) -> VictimsJson:
        """The victims as JSON. Names are looked up only for the images that are listed."""
        groups = await asyncio.to_thread(victims_by_image, victims)
        images = [image for image in islice(groups, most) if image is not None]
        repos = await self._having(images)

        def look_up() -> VictimsJson:
            return victims_json(groups, names_of(self._catalog, images, repos), dry_run=dry_run, most=most)

        return await asyncio.to_thread(look_up)

    async def _having(self, images: Collection[Digest]) -> Collection[Repo] | None:
        """The repositories that have these images, by index and ledger; None if these do not know of each."""
        found: set[Repo] = set()
        try:
            if not await is_whole(self._index):
                return None
            for image in images:
                cached = await self._index.holders(image, _MOST_HOLDERS)
                hosted = await asyncio.to_thread(self._blobs.hosted_holders, image, _MOST_HOLDERS)
                if not cached and not hosted:
                    return None
                found.update(cached, hosted)
        except IndexUnavailable:
            return None
        return found


def _read_pin(body: object, now: float) -> tuple[str, float | None]:
    """Reason and end (epoch seconds; None: no end) of a pin from the request body. Raises `BodyInvalid` with every
    mistake.
    """
    if body is None:
        return "", None
    if not isinstance(body, dict):
        raise BodyInvalid('not an object such as {"reason": "audit", "until": "30d"}')
    mistakes = [f"{name[:40]!r}: no such field" for name in body if name not in ("reason", "until")]
    reason, until, end = body.get("reason", ""), body.get("until"), None
    if not isinstance(reason, str) or len(reason) > LONGEST_REASON:
        mistakes.append(f"reason: not text of at most {LONGEST_REASON} characters")
    if until is not None:
        try:
            end = parse_until(until, now) if isinstance(until, str) else None
            if end is None:
                mistakes.append("until: not text such as 2026-03-01 or 30d")
        except ValueError as error:
            mistakes.append(f"until: {error}")
    if mistakes:
        raise BodyInvalid("; ".join(mistakes))
    return reason, end
