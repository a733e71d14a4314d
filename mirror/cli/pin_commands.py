"""`pin`, `unpin`, `pins`: images that are never evicted. They ask the running mirror, or use the disk if none runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror.app.storage import hosted_repositories, open_disk, pin_rules
from mirror.cli.admin_client import Refused, ask_if_running, target_of
from mirror.cli.audit_command import audited
from mirror.cli.base import ConfigFile, JsonOption, TextTable, application, counted, parse_images, say, say_json
from mirror.cli.store_checks import check_owner, check_there
from mirror.errors import ConfigError, ImageHosted, MirrorError, PinUnknown, answer_for
from mirror.eviction.record_owners import UnreadableRecordOwners
from mirror.inspect.as_json import new_pin_json, pins_json
from mirror.policy.image_names import Image, name_of
from mirror.policy.pins import LONGEST_REASON, parse_until
from mirror.policy.records import Pin

Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="docker.io/library/app:1.0, or by digest.")]

#: The admin API's error code for an image that was not pinned by hand.
_UNKNOWN = answer_for(PinUnknown("")).code


@application.command()
def pin(
    image: Images,
    config: ConfigFile = None,
    reason: Annotated[str, typer.Option(help="Shown by `mirror pins`.")] = "",
    until: Annotated[str | None, typer.Option(help="A date, a time or a duration; without it, forever.")] = None,
) -> None:
    """Protect images from eviction. A pinned tag protects what it points to, also after it moves."""
    loaded = settings.load(config)
    images = parse_images(image, loaded)
    now = time.time()
    end = _check(reason, until, now)
    is_hosted = hosted_repositories(loaded)
    if hosted := [str(wanted) for wanted in images if is_hosted(wanted.repo)]:
        raise ImageHosted(f"hosted here, and hosted images are never evicted, so they need no pin: {', '.join(hosted)}")
    pins: list[Mapping[str, Any]] = []
    for wanted in images:
        answer = ask_if_running(loaded, "PUT", target_of("pins", wanted), body={"reason": reason, "until": until})
        new = Pin(wanted.repo, wanted.reference, reason, now, end)
        pins.append(_pin_on_disk(loaded, new) if answer is None else answer)
    for pinned in pins:
        say(f"{pinned['image']}: pinned, {pinned['summary']}")


def _check(reason: str, until: str | None, now: float) -> float | None:
    """The end of the pin in epoch seconds. Raises `ConfigError` with every mistake."""
    mistakes = []
    if len(reason) > LONGEST_REASON:
        mistakes.append(f"--reason: longer than {LONGEST_REASON} characters")
    end = None
    try:
        end = None if until is None else parse_until(until, now)
    except ValueError as error:
        mistakes.append(f"--until: {error}")
    if mistakes:
        raise ConfigError(mistakes)
    return end


def _pin_on_disk(loaded: settings.Config, new: Pin) -> Mapping[str, Any]:
    check_there(loaded)
    check_owner(loaded)
    disk = open_disk(loaded)
    with audited(loaded, "pin", repository=str(new.repo), reference=str(new.reference), reason=new.reason or None):
        disk.pins.put(new)
    return new_pin_json(new, disk.evictable, disk.catalog, new.since)


@application.command()
def unpin(image: Images, config: ConfigFile = None) -> None:
    """Allow the eviction of images again, once they are the least recently used."""
    loaded = settings.load(config)
    images = parse_images(image, loaded)
    not_pinned = [wanted for wanted in images if not _unpin(loaded, wanted)]
    remaining = _list(loaded, state=False)["pins"]
    for wanted in images:
        name = name_of(wanted.repo, wanted.reference)
        say(f"{name}: {'was not pinned' if wanted in not_pinned else 'unpinned'}")
        for other in remaining:
            if _protects(other, wanted):
                by = f"the rule {other['rule']}" if other["rule"] else f"the pin of {other['image']}"
                say(f"{name}: still protected by {by}")
    if not_pinned:
        raise MirrorError(f"not pinned by `mirror pin`: {len(not_pinned)} of {counted(len(images), 'image')}")


def _unpin(loaded: settings.Config, image: Image) -> bool:
    """True if the image was pinned. Raises `MirrorError`."""
    try:
        if ask_if_running(loaded, "DELETE", target_of("pins", image)) is None:
            _unpin_on_disk(loaded, image)
    except Refused as error:
        if error.code != _UNKNOWN:
            raise
        return False
    except PinUnknown:
        return False
    return True


def _unpin_on_disk(loaded: settings.Config, image: Image) -> None:
    """Raises `PinUnknown`."""
    check_there(loaded)
    check_owner(loaded)
    disk = open_disk(loaded)
    with audited(loaded, "unpin", repository=str(image.repo), reference=str(image.reference)):
        if not disk.pins.drop(image.repo, image.reference):
            raise PinUnknown(f"{name_of(image.repo, image.reference)} was not pinned by hand")


def _protects(pinned: Mapping[str, Any], image: Image) -> bool:
    """True if this pin protects the image: it is for the same name, or its tag points to the image's digest."""
    if pinned["image"] == name_of(image.repo, image.reference):
        return True
    same_repository = pinned["image"].startswith((f"{image.repo}:", f"{image.repo}@"))
    return same_repository and image.digest is not None and pinned["digest"] == str(image.digest)


@application.command()
def pins(
    config: ConfigFile = None,
    as_json: JsonOption = False,
) -> None:
    """List the images that are pinned, by hand and by rules, and whether they are complete."""
    loaded = settings.load(config)
    listed = _list(loaded, state=True)
    expired = [{**pin, "state": "expired", "missing_digests": [], "summary": "expired"} for pin in listed["expired"]]
    rows = sorted([*listed["pins"], *expired], key=lambda row: str(row["image"]))
    if as_json:
        say_json([{name: row[name] for name in row if name != "summary"} for row in rows])
    else:
        _print_pins(rows, len(listed["pins"]))
    # after the list, so that the list is not taken for complete
    if messages := [unread["message"] for unread in listed["unreadable"] if unread["kind"] == "pins"]:
        raise MirrorError("\n".join(messages))


def _list(loaded: settings.Config, *, state: bool) -> Mapping[str, Any]:
    """The answer of the admin API's `/pins`. With `state` every manifest is read, which may take long."""
    listed = ask_if_running(loaded, "GET", f"/admin/v1/pins?state={str(state).lower()}", patience=None)
    if listed is not None:
        return listed
    check_there(loaded)
    disk = open_disk(loaded)
    pins, unread = disk.pins.look()
    rules, owners = pin_rules(loaded), UnreadableRecordOwners(disk.catalog)
    return pins_json(pins, unread, rules, disk.evictable, disk.catalog, time.time(), owners, state=state)


def _print_pins(rows: Sequence[Mapping[str, Any]], count: int) -> None:
    table = TextTable("image", "reason", "since", "until", "state")
    for row in rows:
        # only a pin that cannot be read has no `since`
        since = f"rule {row['rule']}" if row["rule"] else _minute(row["since"]) or "unreadable"
        table.add_row(row["image"], row["reason"], since, _minute(row["until"]), row["summary"])
    if rows:
        table.show()
    say(counted(count, "pinned image"))


def _minute(moment: str | None) -> str:
    """`2025-01-31 12:30`, from `2025-01-31T12:30:00Z`."""
    return "" if moment is None else moment[:16].replace("T", " ")
