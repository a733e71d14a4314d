"""Images and victims as programs are told of them: the same on the command line and by the admin API.

Sizes are bytes, times ISO 8601 in UTC; None: not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mirror.oci.digest import Digest
from mirror.policy.eviction import Victim
from mirror.policy.images import name_of
from mirror.policy.moments import moment
from mirror.repository.overview import ImageHere, Whole
from mirror.repository.pins import PinnedImage

__all__ = ["image_json", "pin_json", "victims_by_image", "victims_json", "whole_json"]


def image_json(image: ImageHere) -> dict[str, Any]:
    """In a list."""
    return {
        "image": image.name,
        "repository": str(image.repo),
        "tag": image.tag,
        "digest": str(image.root.digest),
        "mediaType": image.root.media_type,
        "complete": image.complete,
        "emptied": image.emptied,
        "platforms": [one.name for one in image.platforms if one.name and one.complete],
        "size": image.closure.held,
        "missing": len(image.closure.missing),
        "lastPull": moment(image.used_at),
        "pinned": bool(image.pinned),
        "frozen": image.frozen,
    }


def whole_json(whole: Whole) -> dict[str, Any]:
    """All about one."""
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
    """Why an image stays; `digest` None: it is not here yet."""
    return {
        "image": name_of(image.repo, image.reference),
        "digest": str(image.root.digest) if image.root else None,
        "reason": image.reason,
        "since": moment(image.since),
        "until": moment(image.until),
        "rule": image.rule,
    }


def victims_by_image(victims: Sequence[Victim]) -> dict[Digest | None, list[Victim]]:
    """With each image what goes together with it, loose blobs under None; in the order in which they go."""
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
    """Of `victims_by_image`; of more than `most` images the rest is only counted, under `more`."""
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
