"""The JSON forms of images, pins, and victims of eviction, for the command line and the admin API.

Sizes are in bytes; times are ISO 8601 in UTC; None means not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mirror.eviction.damaged_notes import DamagedNoteOwners, unread_json
from mirror.eviction.pinned_images import PinnedImage, images_of, shown_root
from mirror.graph.closure import Closure, shown_closure
from mirror.inspect.images import CachedImage, ImageDetail
from mirror.oci.digest import Digest
from mirror.policy.eviction import Victim
from mirror.policy.image_names import name_of
from mirror.policy.pins import PinRule
from mirror.policy.records import Pin
from mirror.policy.unread_notes import UnreadNote
from mirror.ports import BlobStore, Catalog
from mirror.values.timestamps import moment


def image_json(image: CachedImage) -> dict[str, Any]:
    """Returns an image as an entry of a list."""
    return {
        "image": image.name,
        "repository": str(image.repo),
        "tag": image.tag,
        "digest": str(image.root.digest),
        "mediaType": image.root.media_type,
        "complete": image.complete,
        "emptied": image.emptied,
        "platforms": image.complete_platforms,
        "size": image.closure.held,
        "missing": len(image.closure.missing),
        "lastPull": moment(image.used_at),
        "pinned": bool(image.pinned),
        "frozen": image.frozen,
    }


def whole_json(whole: ImageDetail) -> dict[str, Any]:
    """Returns all details of an image."""
    image = whole.image
    return {
        **image_json(image),
        "missing": [str(node.digest) for node in image.closure.missing],
        "shared": whole.shared,
        "fetched": moment(whole.fetched_at),
        "tagLookedUp": moment(whole.checked_at),
        "pinned": [
            {
                "as": name_of(one.repo, one.reference),
                "reason": one.reason,
                "rule": one.rule,
                "until": moment(one.until),
            }
            for one in image.pinned
        ],
        "frozen": moment(whole.frozen.since) if whole.frozen else None,
        "otherTags": list(whole.other_tags),
        "subject": str(whole.subject) if whole.subject else None,
        "referrers": [one.to_json() for one in whole.referrers],
        "platforms": [
            {
                "platform": one.name or None,
                "digest": str(one.digest),
                "size": one.size,
                "pulled": one.pulled,
                "complete": one.complete,
                "missing": [str(node.digest) for node in one.missing],
            }
            for one in image.platforms
        ],
    }


def pin_json(image: PinnedImage) -> dict[str, Any]:
    """Returns a pinned image and why it stays. `digest` is None if the image is not here yet."""
    return {
        "image": name_of(image.repo, image.reference),
        "digest": str(image.root.digest) if image.root else None,
        "reason": image.reason,
        "since": moment(image.since),
        "until": moment(image.until),
        "rule": image.rule,
    }


def new_pin_json(pin: Pin, store: BlobStore, catalog: Catalog, now: float) -> dict[str, Any]:
    """Blocking: returns a pin that was just set, with how much of its image is here. Raises `StoreError`."""
    [image] = images_of([pin], {}, (), catalog, now, root=shown_root)
    return _with_state(image, store, catalog)


def pins_json(
    pins: Sequence[Pin],
    unread: Sequence[UnreadNote],
    rules: Sequence[PinRule],
    store: BlobStore,
    catalog: Catalog,
    now: float,
    subjects: DamagedNoteOwners,
    *,
    state: bool,
) -> dict[str, Any]:
    """Blocking: returns the images pinned by hand and by rules, and the expired pins (`over`), both sorted by name, and
    the notes that cannot be read. If `state` is true, each pinned image says how much of it is here; for that all its
    manifests are read. Raises `StoreError`.
    """
    known = subjects.known(unread)
    images = images_of(pins, known, rules, catalog, now, root=shown_root)
    over = [
        PinnedImage(one.repo, one.reference, None, one.reason, one.since, one.until)
        for one in pins
        if not one.holds(now)
    ]
    return {
        "pins": _by_name([_with_state(image, store, catalog) if state else pin_json(image) for image in images]),
        "over": _by_name([pin_json(image) for image in over]),
        "unreadable": unread_json(unread, known),
    }


def _by_name(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(told, key=lambda one: str(one["image"]))


def _with_state(image: PinnedImage, store: BlobStore, catalog: Catalog) -> dict[str, Any]:
    """Blocking: returns a pinned image with its `state` for programs, a `summary` of it for people, and the digests
    that are missing.
    """
    closure = None if image.root is None else shown_closure(store, catalog, image.repo, image.root)
    if closure is None:
        state, summary = "absent", "not here yet; it stays once it was pulled"
    elif closure.complete:
        state, summary = "complete", "complete"
    else:
        state, summary = "incomplete", f"incomplete: {_lacking(closure)}"
    missing = [] if closure is None else [str(node.digest) for node in closure.missing]
    return {**pin_json(image), "state": state, "missing": missing, "summary": summary}


def _lacking(closure: Closure) -> str:
    """Returns what is missing, in words: `2 layers, 1 config missing`."""
    count = Counter(node.role.value for node in closure.missing)
    if not count:
        return "no platform was pulled yet"
    return ", ".join(f"{number} {role}{'' if number == 1 else 's'}" for role, number in count.items()) + " missing"


def victims_by_image(victims: Sequence[Victim]) -> dict[Digest | None, list[Victim]]:
    """Groups victims by the image with which they are dropped; loose blobs are under None. The order in which they are
    dropped is preserved.
    """
    groups: dict[Digest | None, list[Victim]] = {}
    for victim in victims:
        groups.setdefault(victim.images[-1] if victim.images else None, []).append(victim)
    return groups


def victims_json(
    groups: Mapping[Digest | None, Sequence[Victim]],
    names: Mapping[Digest, Sequence[str]],
    *,
    dry_run: bool,
    most: int | None = None,
) -> dict[str, Any]:
    """Returns the groups that `victims_by_image` returned. If there are more than `most`, the rest is left out of
    `images` and counted in `more`.
    """
    told = list(groups.items())[:most]
    return {
        "dry_run": dry_run,
        "blobs": sum(len(group) for group in groups.values()),
        "bytes": sum(victim.size for group in groups.values() for victim in group),
        "more": len(groups) - len(told),
        "images": [
            {
                "digest": None if image is None else str(image),
                "names": [] if image is None else list(names.get(image, ())),
                "last_used": max(victim.image_used for victim in group),
                "bytes": sum(victim.size for victim in group),
                "blobs": [
                    {
                        "digest": str(victim.digest),
                        "size": victim.size,
                        "last_used": victim.last_used,
                        "images": [str(each) for each in victim.images],
                        "reason": victim.reason,
                    }
                    for victim in group
                ],
            }
            for image, group in told
        ],
    }
