"""`pin`, `unpin`, `pins`: which images must stay. The mirror that runs is asked; where none does, the disk is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror.app.storage import open_disk, pin_rules
from mirror.cli.admin_client import Refused, ask_if_running, target_of
from mirror.cli.audit_command import audited
from mirror.cli.base import ConfigFile, TextTable, application, parse_images, say, say_json
from mirror.cli.long_running import check_owner, check_there
from mirror.errors import ConfigError, MirrorError, PinUnknown, answer_for
from mirror.eviction.damaged_notes import DamagedNoteOwners
from mirror.inspect.as_json import new_pin_json, pins_json
from mirror.policy.image_names import Image, name_of
from mirror.policy.pins import LONGEST_REASON, parse_until
from mirror.policy.records import Pin

Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="docker.io/library/app:1.0, or by digest.")]

#: How the admin API calls an image that was not pinned by hand.
_UNKNOWN = answer_for(PinUnknown("")).code


@application.command()
def pin(
    image: Images,
    config: ConfigFile = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever asks `mirror pins`.")] = "",
    until: Annotated[str | None, typer.Option(help="A date, a time or a duration; without it, for good.")] = None,
) -> None:
    """Never evict these images: by tag whatever it points to at the time, by digest that one."""
    loaded = settings.load(config)
    images = parse_images(image, loaded)
    now = time.time()
    end = _check(reason, until, now)
    told = []
    for one in images:
        body = {"reason": reason, "until": until}
        pinned: Mapping[str, Any] | None = ask_if_running(loaded, "PUT", target_of("pins", one), body=body)
        told.append(_pin_on_disk(loaded, Pin(one.repo, one.reference, reason, now, end)) if pinned is None else pinned)
    for pinned in told:
        say(f"{pinned['image']}: pinned, {pinned['summary']}")


def _check(reason: str, until: str | None, now: float) -> float | None:
    """Until when, in epoch seconds. Raises `ConfigError` with every mistake: the same, whoever pins."""
    mistakes = []
    if len(reason) > LONGEST_REASON:
        mistakes.append(f"--reason: not text of at most {LONGEST_REASON} characters")
    end = None
    try:
        end = None if until is None else parse_until(until, now)
    except ValueError as error:
        mistakes.append(f"--until: {error}")
    if mistakes:
        raise ConfigError(mistakes)
    return end


def _pin_on_disk(loaded: settings.Config, new: Pin) -> Mapping[str, Any]:
    check_owner(loaded, "pins")
    disk = open_disk(loaded)
    with audited(loaded, "pin", repository=str(new.repo), reference=str(new.reference), reason=new.reason or None):
        disk.pins.put(new)
    return new_pin_json(new, disk.store, disk.catalog, new.since)


@application.command()
def unpin(image: Images, config: ConfigFile = None) -> None:
    """Let these images be evicted again, when they are the least recently used."""
    loaded = settings.load(config)
    images = parse_images(image, loaded)
    strangers = [one for one in images if not _unpin(loaded, one)]
    left = _listed(loaded, state=False)["pins"]
    for one in images:
        name = name_of(one.repo, one.reference)
        say(f"{name}: {'was not pinned' if one in strangers else 'unpinned'}")
        for why in left:
            if _keeps(why, one):
                by = f"the rule {why['rule']}" if why["rule"] else f"the pin of {why['image']}"
                say(f"{name}: still stays because of {by}")
    if strangers:
        raise MirrorError(f"{len(strangers)} of {len(images)} images were not pinned by `mirror pin`")


def _unpin(loaded: settings.Config, image: Image) -> bool:
    """Whether it was pinned. Raises `MirrorError`."""
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
    check_owner(loaded, "pins")
    disk = open_disk(loaded)
    with audited(loaded, "unpin", repository=str(image.repo), reference=str(image.reference)):
        if not disk.pins.drop(image.repo, image.reference):
            raise PinUnknown(f"{name_of(image.repo, image.reference)} was not pinned by hand")


def _keeps(pinned: Mapping[str, Any], image: Image) -> bool:
    """Whether an image stays because of this one: it is the same, or its tag points to this digest."""
    if pinned["image"] == name_of(image.repo, image.reference):
        return True
    here = pinned["image"].startswith((f"{image.repo}:", f"{image.repo}@"))
    return here and image.digest is not None and pinned["digest"] == str(image.digest)


@application.command()
def pins(
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, for programs.")] = False,
) -> None:
    """List pinned images, by hand and by the rules of the configuration, and whether they are complete."""
    loaded = settings.load(config)
    told = _listed(loaded, state=True)
    expired = [{**one, "state": "expired", "missing_digests": [], "summary": "expired"} for one in told["expired"]]
    rows = sorted([*told["pins"], *expired], key=lambda row: str(row["image"]))
    if as_json:
        say_json([{name: row[name] for name in row if name != "summary"} for row in rows])
    else:
        _show(rows, len(told["pins"]))
    # after all that could be told, so that nobody takes a part for the whole
    if words := [one["message"] for one in told["unreadable"] if one["kind"] == "pins"]:
        raise MirrorError("\n".join(words))


def _listed(loaded: settings.Config, *, state: bool) -> Mapping[str, Any]:
    """As the admin API tells it, which has all the time it needs: with `state` every manifest is read."""
    told = ask_if_running(loaded, "GET", f"/admin/v1/pins?state={str(state).lower()}", patience=None)
    if told is not None:
        return told
    check_there(loaded)
    disk = open_disk(loaded)
    read, unread = disk.pins.look()
    rules, subjects = pin_rules(loaded), DamagedNoteOwners(disk.catalog)
    return pins_json(read, unread, rules, disk.store, disk.catalog, time.time(), subjects, state=state)


def _show(rows: Sequence[Mapping[str, Any]], count: int) -> None:
    table = TextTable("image", "reason", "since", "until", "state")
    for row in rows:
        # every pin that can be read says since when
        since = f"rule {row['rule']}" if row["rule"] else _minute(row["since"]) or "unreadable"
        table.add_row(row["image"], row["reason"], since, _minute(row["until"]), row["summary"])
    if rows:
        table.show()
    say(f"{count} pinned image{'' if count == 1 else 's'}")


def _minute(moment: str | None) -> str:
    """`2025-01-31 12:30` in UTC."""
    return "" if moment is None else moment[:16].replace("T", " ")
