"""The JSON forms of images, pins, purges, and victims of eviction, for the command line and the admin API.

Each form is a typed dictionary, and the admin API's document is generated from it. Sizes are in bytes; times are ISO
8601 in UTC; None means not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

from typing_extensions import TypedDict

from mirror.eviction.pinned_images import PinnedImage, images_of, shown_root
from mirror.eviction.purge import Purged
from mirror.eviction.record_owners import UnreadableRecordOwners, unread_words
from mirror.graph.closure import Closure, shown_closure
from mirror.inspect.images import CachedImage, ImageDetail
from mirror.oci.digest import Digest
from mirror.policy.eviction import Victim
from mirror.policy.image_names import name_of
from mirror.policy.pins import PinRule
from mirror.policy.records import Pin
from mirror.policy.unreadable_records import UnreadableRecord
from mirror.ports import Blobs, Catalog
from mirror.values.json_types import Bytes, Count, Timestamp, about
from mirror.values.timestamps import moment

# --------------------------------------------------------------------------------------------------------- images


class ImageJson(TypedDict):
    """An image, as in a list."""

    image: str
    repository: str
    tag: str | None
    digest: str
    media_type: str
    complete: Annotated[bool, about("It can be pulled without an upstream.")]
    manifests_only: Annotated[bool, about("Only manifests are here; the blobs were evicted or never pulled.")]
    platforms: Annotated[list[str], about("Platforms that can be pulled without an upstream.")]
    size: Annotated[Bytes, about("Bytes of its content that are here.")]
    missing: Annotated[Count, about("Number of manifests and blobs that are known but not here.")]
    last_pull: Timestamp | None
    pinned: bool
    frozen: Annotated[bool, about("A frozen tag answers it, so it is not evicted.")]
    hosted: Annotated[bool, about("It was pushed to this mirror, which has the only copy: it is never evicted.")]
    immutable: Annotated[bool, about("Its tag neither moves nor goes, by a rule of the hosted registry.")]


class PinReasonJson(TypedDict):
    """A pin because of which an image stays."""

    image: Annotated[str, about("The name that is pinned.")]
    reason: str
    rule: Annotated[str | None, about("The `match` of the configured rule; null: pinned by hand.")]
    until: Timestamp | None


class ImageManifestJson(TypedDict):
    """One manifest of an image: one platform of it, or an artifact."""

    platform: Annotated[str | None, about("As in `linux/arm/v7`; null: not known.")]
    digest: str
    size: Annotated[Bytes, about("Bytes of all its known content, here or not.")]
    pulled: Annotated[bool, about("The manifest is here, so its config and layers are known.")]
    complete: Annotated[bool, about("It can be pulled without an upstream.")]
    missing_digests: list[str]


class ImageDetailJson(ImageJson):
    """All details of an image."""

    missing_digests: Annotated[list[str], about("Manifests and blobs that are known but not here.")]
    shared: Annotated[Bytes, about("Bytes here that other images need too.")]
    fetched: Annotated[Timestamp | None, about("When the manifest was fetched, or pushed.")]
    tag_checked: Annotated[Timestamp | None, about("When upstream was last asked for the tag.")]
    pins: Annotated[list[PinReasonJson], about("Why the image stays.")]
    frozen_since: Annotated[Timestamp | None, about("Set if this tag is frozen.")]
    other_tags: Annotated[list[str], about("Tags of the repository that point to the same digest.")]
    subject: Annotated[str | None, about("The digest to which the image refers.")]
    referrers: Annotated[list[dict[str, Any]], about("OCI descriptors of what refers to the image.")]
    manifests: list[ImageManifestJson]


def image_json(image: CachedImage) -> ImageJson:
    """Returns an image as an entry of a list."""
    return {
        "image": image.name,
        "repository": str(image.repo),
        "tag": image.tag,
        "digest": str(image.root.digest),
        "media_type": image.root.media_type,
        "complete": image.complete,
        "manifests_only": image.manifests_only,
        "platforms": image.complete_platforms,
        "size": image.closure.present_size,
        "missing": len(image.closure.missing),
        "last_pull": moment(image.used_at),
        "pinned": bool(image.pinned),
        "frozen": image.frozen,
        "hosted": image.hosted,
        "immutable": image.immutable,
    }


def image_detail_json(detail: ImageDetail) -> ImageDetailJson:
    """Returns all details of an image."""
    image = detail.image
    return {
        **image_json(image),
        "missing_digests": [str(node.digest) for node in image.closure.missing],
        "shared": detail.shared,
        "fetched": moment(detail.fetched_at),
        "tag_checked": moment(detail.checked_at),
        "pins": [
            {
                "image": name_of(pin.repo, pin.reference),
                "reason": pin.reason,
                "rule": pin.rule,
                "until": moment(pin.until),
            }
            for pin in image.pinned
        ],
        "frozen_since": moment(detail.frozen.since) if detail.frozen else None,
        "other_tags": list(detail.other_tags),
        "subject": str(detail.subject) if detail.subject else None,
        "referrers": [descriptor.to_json() for descriptor in detail.referrers],
        "manifests": [
            {
                "platform": platform.name or None,
                "digest": str(platform.digest),
                "size": platform.size,
                "pulled": platform.pulled,
                "complete": platform.complete,
                "missing_digests": [str(node.digest) for node in platform.missing],
            }
            for platform in image.platforms
        ],
    }


class PurgedJson(TypedDict):
    """What a purge removed."""

    image: str
    tags: list[str]
    manifests: Annotated[list[str], about("Digests of the manifests that the repository no longer has.")]
    blobs: Annotated[Count, about("Number of files removed, manifests among them.")]
    bytes: Bytes
    unconfirmed: Annotated[list[str], about("Other replicas of the cluster that have not removed it yet.")]


def purged_json(purged: Purged) -> PurgedJson:
    """Returns what a purge removed."""
    return {
        "image": purged.image,
        "tags": list(purged.tags),
        "manifests": [str(digest) for digest in purged.manifests],
        "blobs": purged.blobs,
        "bytes": purged.bytes,
        "unconfirmed": list(purged.unconfirmed),
    }


# ----------------------------------------------------------------------------------------------------------- pins


class PinJson(TypedDict):
    """A pinned image, and why it stays."""

    image: str
    digest: Annotated[str | None, about("Null if the image is not here yet.")]
    reason: str
    since: Timestamp | None
    until: Timestamp | None
    rule: Annotated[str | None, about("The `match` of the configured rule; null: pinned by hand.")]
    state: Annotated[NotRequired[Literal["absent", "incomplete", "complete"]], about("How much of the image is here.")]
    missing_digests: NotRequired[list[str]]
    summary: Annotated[NotRequired[str], about("The state in words.")]


class UnreadableNoteJson(TypedDict):
    """The file of a pin or a freeze that cannot be read."""

    kind: Literal["pins", "freezes"]
    image: Annotated[str | None, about("Whose file it is; null: not known, so nothing is evicted.")]
    file: str
    reason: str
    message: Annotated[str, about("The same in words, and how to repair it.")]


class PinsJson(TypedDict):
    """All pins, sorted by name."""

    pins: list[PinJson]
    expired: Annotated[list[PinJson], about("Pins whose `until` has passed: they protect nothing.")]
    unreadable: list[UnreadableNoteJson]


def pin_json(image: PinnedImage) -> PinJson:
    """Returns a pinned image and why it stays."""
    return {
        "image": name_of(image.repo, image.reference),
        "digest": str(image.root.digest) if image.root else None,
        "reason": image.reason,
        "since": moment(image.since),
        "until": moment(image.until),
        "rule": image.rule,
    }


def new_pin_json(pin: Pin, store: Blobs, catalog: Catalog, now: float) -> PinJson:
    """Blocking: returns a pin that was just set, with how much of its image is here. Raises `StoreError`."""
    [image] = images_of([pin], {}, (), catalog, now, root=shown_root)
    return _with_state(image, store, catalog)


def pins_json(
    pins: Sequence[Pin],
    unread: Sequence[UnreadableRecord],
    rules: Sequence[PinRule],
    store: Blobs,
    catalog: Catalog,
    now: float,
    subjects: UnreadableRecordOwners,
    *,
    state: bool,
) -> PinsJson:
    """Blocking: returns the images pinned by hand and by rules, the expired pins, and the records that cannot be read.
    If `state` is true, each pinned image says how much of it is here; for that all its manifests are read. Raises
    `StoreError`.
    """
    owners = subjects.find(unread)
    images = images_of(pins, owners, rules, catalog, now, root=shown_root)
    expired = [
        PinnedImage(pin.repo, pin.reference, None, pin.reason, pin.since, pin.until)
        for pin in pins
        if not pin.is_active(now)
    ]
    return {
        "pins": _by_name([_with_state(image, store, catalog) if state else pin_json(image) for image in images]),
        "expired": _by_name([pin_json(image) for image in expired]),
        "unreadable": [
            {
                "kind": "pins" if note.kind == "pins" else "freezes",
                "image": name_of(*owners[note]) if note in owners else None,
                "file": note.file,
                "reason": note.why,
                "message": words,
            }
            for note, words in zip(unread, unread_words(unread, owners), strict=True)
        ],
    }


def _by_name(pins: list[PinJson]) -> list[PinJson]:
    return sorted(pins, key=lambda pin: pin["image"])


def _with_state(image: PinnedImage, store: Blobs, catalog: Catalog) -> PinJson:
    """Blocking: returns a pinned image with its state."""
    closure = None if image.root is None else shown_closure(store, catalog, image.repo, image.root)
    pin = pin_json(image)
    if closure is None:
        pin["state"], pin["summary"] = "absent", "not here yet; it stays once it was pulled"
    elif closure.complete:
        pin["state"], pin["summary"] = "complete", "complete"
    else:
        pin["state"], pin["summary"] = "incomplete", f"incomplete: {_lacking(closure)}"
    pin["missing_digests"] = [] if closure is None else [str(node.digest) for node in closure.missing]
    return pin


def _lacking(closure: Closure) -> str:
    """Returns what is missing, in words: `2 layers, 1 config missing`."""
    count = Counter(node.role.value for node in closure.missing)
    if not count:
        return "no platform was pulled yet"
    return ", ".join(f"{number} {role}{'' if number == 1 else 's'}" for role, number in count.items()) + " missing"


# ------------------------------------------------------------------------------------------------------- eviction


class VictimJson(TypedDict):
    """A blob or manifest that is evicted."""

    digest: str
    size: Bytes
    last_used: Timestamp | None
    images: Annotated[list[str], about("Digests of the images that need it; it goes with the last of them.")]
    reason: str


class VictimImageJson(TypedDict):
    """An image that is evicted, with everything that goes with it."""

    digest: Annotated[str | None, about("Null: blobs that no manifest here names.")]
    names: list[str]
    last_used: Timestamp | None
    bytes: Bytes
    blobs: list[VictimJson]


class VictimsJson(TypedDict):
    """An eviction, planned or done."""

    dry_run: bool
    blobs: Count
    bytes: Bytes
    more: Annotated[Count, about("Number of images that are not listed.")]
    images: list[VictimImageJson]


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
) -> VictimsJson:
    """Returns the groups that `victims_by_image` returned. If there are more than `most`, the rest is left out of
    `images` and counted in `more`.
    """
    listed = list(groups.items())[:most]
    return {
        "dry_run": dry_run,
        "blobs": sum(len(group) for group in groups.values()),
        "bytes": sum(victim.size for group in groups.values() for victim in group),
        "more": len(groups) - len(listed),
        "images": [
            {
                "digest": None if image is None else str(image),
                "names": [] if image is None else list(names.get(image, ())),
                "last_used": moment(max(victim.image_used for victim in group)),
                "bytes": sum(victim.size for victim in group),
                "blobs": [
                    {
                        "digest": str(victim.digest),
                        "size": victim.size,
                        "last_used": moment(victim.last_used),
                        "images": [str(digest) for digest in victim.images],
                        "reason": victim.reason,
                    }
                    for victim in group
                ],
            }
            for image, group in listed
        ],
    }
