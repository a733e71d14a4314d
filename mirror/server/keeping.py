"""What the admin API does with images: list, show, pin, purge, and make room."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from mirror.errors import BodyInvalid, ManifestUnknown, PinUnknown, RequestError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.images import Image
from mirror.policy.pins import PinRule, parse_until
from mirror.policy.records import Pin
from mirror.policy.selection import Selection
from mirror.ports import BlobStore, Catalog, ContentIndex, Freezes, Pins
from mirror.repository.evictor import Evictor
from mirror.repository.names import called
from mirror.repository.overview import Overview
from mirror.repository.pins import PinnedImage, pinned_images
from mirror.repository.purge import Purge, Purged
from mirror.repository.told import image_json, name_of, pin_json, victims_json, whole_json

__all__ = ["Keeping"]

_PAGE: Final = 50
_LARGEST_PAGE: Final = 500
#: Images that are told one by one of those that go.
_MOST_VICTIMS: Final = 200
_LONGEST_REASON: Final = 1000


class Keeping:
    """Of one store."""

    def __init__(
        self,
        store: BlobStore,
        catalog: Catalog,
        pins: Pins,
        freezes: Freezes,
        index: ContentIndex,
        evictor: Evictor,
        purge: Purge,
        *,
        rules: Sequence[PinRule],
        search: Callable[[str], Selection],
    ) -> None:
        """`rules` pin images, too; `search` reads what is looked for."""
        self._store = store
        self._catalog = catalog
        self._pins = pins
        self._freezes = freezes
        self._index = index
        self._evictor = evictor
        self._purge = purge
        self._rules = rules
        self._search = search

    # ---------------------------------------------------------------------------------------------------- images

    async def images(self, query: Mapping[str, str]) -> dict[str, Any]:
        """A page of images whose names fit `search`, in the order of repositories, behind `after`."""
        limit = _number(query, "limit", _PAGE, 1, _LARGEST_PAGE)
        after = query.get("after", "")
        selection = self._search(query.get("search", ""))
        first = _repository_of(after)
        overview = await asyncio.to_thread(self._overview)
        found: list[dict[str, Any]] = []
        reached = not after
        async for image in overview.images(selection.beginning_with(first) if first else selection):
            if not reached and image.repo == first:
                # the order within a repository is tags, then digests: the last one that was told ends what was told
                reached = image.name == after
                continue
            reached = True
            if len(found) == limit:
                return {"images": found, "next": found[-1]["image"]}
            found.append(image_json(image))
        return {"images": found, "next": None}

    async def image(self, image: Image) -> dict[str, Any]:
        """All about one. Raises `ManifestUnknown`."""
        overview = await asyncio.to_thread(self._overview)
        found = await overview.image(image.repo, image.reference)
        if found is None:
            raise ManifestUnknown(f"{image} is not here")
        return whole_json(await overview.whole(found))

    async def purge(self, image: Image) -> Purged:
        """Drop it. Raises `ManifestUnknown`, `Kept`, `StoreError`."""
        return await self._purge(image)

    def _overview(self) -> Overview:
        """Blocking."""
        pinned = pinned_images(self._pins, self._rules, self._catalog, time.time())
        return Overview(self._store, self._catalog, self._index, pinned, self._freezes.all())

    # ------------------------------------------------------------------------------------------------------ pins

    async def pins(self) -> dict[str, Any]:
        """By hand and by rules."""
        pinned = await asyncio.to_thread(pinned_images, self._pins, self._rules, self._catalog, time.time())
        return {"pins": sorted((pin_json(one) for one in pinned), key=lambda one: str(one["image"]))}

    async def pin(self, image: Image, body: object) -> dict[str, Any]:
        """With `reason` and `until`. Raises `BodyInvalid`, `StoreError`."""
        now = time.time()
        reason, until = _read_pin(body, now)
        await asyncio.to_thread(self._pins.put, Pin(image.repo, image.reference, reason, now, until))
        return pin_json(await asyncio.to_thread(self._pinned, image))

    def _pinned(self, image: Image) -> PinnedImage:
        found = pinned_images(self._pins, (), self._catalog, time.time())
        return next(one for one in found if (one.repo, one.reference) == (image.repo, image.reference))

    async def unpin(self, image: Image) -> dict[str, Any]:
        """Raises `PinUnknown`, `StoreError`."""
        if not await asyncio.to_thread(self._pins.drop, image.repo, image.reference):
            raise PinUnknown(f"{name_of(image.repo, image.reference)} was not pinned by hand")
        return {"image": name_of(image.repo, image.reference)}

    # -------------------------------------------------------------------------------------------------- eviction

    async def plan(self, query: Mapping[str, str]) -> dict[str, Any]:
        """What would go to free `bytes`, or without it to come down to the low water."""
        wanted = _number(query, "bytes", None, 1, 1 << 60)
        return await self._told(await self._evictor.plan(wanted), dry_run=True)

    async def collect(self) -> dict[str, Any]:
        """Come down to the low water."""
        return await self._told(await self._evictor.collect(), dry_run=False)

    async def _told(self, victims: Sequence[Any], *, dry_run: bool) -> dict[str, Any]:
        images: set[Digest] = {image for victim in victims for image in victim.images}
        names = await asyncio.to_thread(called, self._catalog, images)
        return victims_json(victims, names, dry_run=dry_run, most=_MOST_VICTIMS)


def _repository_of(image: str) -> Repo | None:
    """Of what a page ended with. Raises `RequestError`."""
    if not image:
        return None
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    if not slash:
        raise RequestError(f"after: not the name of an image: {image[:80]!r}")
    registry, _, name = f"{head}/{last.partition(':')[0]}".partition("/")
    return Repo(registry, name)


def _number(query: Mapping[str, str], name: str, default: Any, least: int, most: int) -> Any:
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or not least <= int(text[:20]) <= most:
        raise RequestError(f"{name}: not a number from {least} to {most}: {text[:40]!r}")
    return int(text)


def _read_pin(body: object, now: float) -> tuple[str, float | None]:
    """Raises `BodyInvalid` with every mistake."""
    if body is None:
        return "", None
    if not isinstance(body, dict):
        raise BodyInvalid('not an object such as {"reason": "audit", "until": "30d"}')
    mistakes = [f"{name[:40]!r}: no such field" for name in body if name not in ("reason", "until")]
    reason, until, end = body.get("reason", ""), body.get("until"), None
    if not isinstance(reason, str) or len(reason) > _LONGEST_REASON:
        mistakes.append(f"reason: not text of at most {_LONGEST_REASON} characters")
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
