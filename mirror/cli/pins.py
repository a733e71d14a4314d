"""`pin`, `unpin`, `pins`: which images must stay. They work on the disk, beside a running server as well as alone."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.table import Table

from mirror import config as settings
from mirror.app.storage import Disk, open_disk, pin_rules
from mirror.cli.audit import audited
from mirror.cli.base import ConfigFile, application, parse_images, table_console
from mirror.cli.unread import refuse_unread
from mirror.cli.working import check_owner, check_there
from mirror.errors import ConfigError, MirrorError
from mirror.oci.digest import Digest
from mirror.policy.images import name_of
from mirror.policy.pins import parse_until
from mirror.policy.records import Pin
from mirror.repository.closure import Closure, read_closure
from mirror.repository.pins import PinnedImage, images_of, pinned_images, why_pinned
from mirror.repository.told import pin_json
from mirror.repository.unread import Subjects

__all__ = ["pin", "pins", "unpin"]

Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="docker.io/library/app:1.0, or by digest.")]


@application.command()
def pin(
    image: Images,
    config: ConfigFile = None,
    reason: Annotated[str, typer.Option(help="Why, for whoever asks `mirror pins`.")] = "",
    until: Annotated[str | None, typer.Option(help="A date, a time or a duration; without it, for good.")] = None,
) -> None:
    """Never evict these images: by tag whatever it points to at the time, by digest that one."""
    loaded = settings.load(config)
    check_owner(loaded, "pins")
    images = parse_images(image, loaded)
    now = time.time()
    end = _parse_end(until, now)
    disk = open_disk(loaded)
    for one in images:
        with audited(loaded, "pin", repository=str(one.repo), reference=str(one.reference), reason=reason or None):
            disk.pins.put(Pin(one.repo, one.reference, reason, now, end))
    shown = pinned_images(disk.pins, (), disk.catalog, now)
    for one in images:
        [found] = [each for each in shown if (each.repo, each.reference) == (one.repo, one.reference)]
        print(f"{name_of(one.repo, one.reference)}: pinned, {_State.of(disk, found).words}")


@application.command()
def unpin(image: Images, config: ConfigFile = None) -> None:
    """Let these images be evicted again, when they are the least recently used."""
    loaded = settings.load(config)
    check_owner(loaded, "pins")
    images = parse_images(image, loaded)
    disk = open_disk(loaded)
    strangers = []
    for one in images:
        with audited(loaded, "unpin", repository=str(one.repo), reference=str(one.reference)) as about:
            if not disk.pins.drop(one.repo, one.reference):
                about |= {"status": 404, "reason": "was not pinned"}
                strangers.append(one)
    left = pinned_images(disk.pins, pin_rules(loaded), disk.catalog, time.time())
    for one in images:
        name = name_of(one.repo, one.reference)
        print(f"{name}: {'was not pinned' if one in strangers else 'unpinned'}")
        tag = None if one.digest else one.tag
        for why in why_pinned(left, one.repo, tag=tag, digest=one.digest):
            by = f"the rule {why.rule}" if why.rule else f"the pin of {name_of(why.repo, why.reference)}"
            print(f"{name}: still stays because of {by}")
    if strangers:
        raise MirrorError(f"{len(strangers)} of {len(images)} images were not pinned by `mirror pin`")


@application.command()
def pins(
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, for programs.")] = False,
) -> None:
    """List pinned images, by hand and by the rules of the configuration, and whether they are complete."""
    loaded = settings.load(config)
    check_there(loaded)
    disk = open_disk(loaded)
    now = time.time()
    read, unread = disk.pins.look()
    images = images_of(read, Subjects(disk.catalog).known(unread), pin_rules(loaded), disk.catalog, now)
    rows = [(image, _State.of(disk, image)) for image in images]
    over = [each for each in read if not each.holds(now)]
    rows += [(_over(each), _State("over", "over")) for each in over]
    rows.sort(key=lambda row: name_of(row[0].repo, row[0].reference))
    if as_json:
        print(json.dumps([_as_json(image, state) for image, state in rows], indent=1))
    else:
        _show(rows, len(rows) - len(over))
    refuse_unread(unread, disk.catalog)


def _show(rows: Sequence[tuple[PinnedImage, _State]], count: int) -> None:
    table = Table("image", "reason", "since", "until", "state")
    for image, state in rows:
        since = f"rule {image.rule}" if image.rule else "unreadable" if image.unread else _date(image.since)
        table.add_row(name_of(image.repo, image.reference), image.reason, since, _date(image.until), state.words)
    if rows:
        table_console().print(table)
    print(f"{count} pinned image{'' if count == 1 else 's'}")


@dataclass(frozen=True, slots=True)
class _State:
    """How much of an image is here: for programs, for people, and the digests that are missing."""

    code: str
    words: str
    missing: tuple[Digest, ...] = ()

    @classmethod
    def of(cls, disk: Disk, image: PinnedImage) -> _State:
        """Blocking."""
        if image.root is None:
            return cls("absent", "not here yet; it stays once it was pulled")
        closure = read_closure(disk.store, disk.catalog, image.repo, image.root)
        if closure.complete:
            return cls("complete", "complete")
        return cls("incomplete", f"incomplete: {_lacking(closure)}", tuple(node.digest for node in closure.missing))


def _lacking(closure: Closure) -> str:
    """`2 layers, 1 config missing`."""
    count = Counter(node.role.value for node in closure.missing)
    if not count:
        return "no platform was pulled yet"
    return ", ".join(f"{number} {role}{'' if number == 1 else 's'}" for role, number in count.items()) + " missing"


def _parse_end(until: str | None, now: float) -> float | None:
    try:
        return None if until is None else parse_until(until, now)
    except ValueError as error:
        raise ConfigError([f"--until: {error}"]) from error


def _over(each: Pin) -> PinnedImage:
    return PinnedImage(each.repo, each.reference, None, each.reason, each.since, each.until)


def _date(at: float | None) -> str:
    """In UTC, to the minute."""
    return "" if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"


def _as_json(image: PinnedImage, state: _State) -> dict[str, Any]:
    return {
        **pin_json(image),
        "state": state.code,
        "missing": [str(digest) for digest in state.missing],
    }
