"""`history`, `freeze`, `unfreeze`, `freezes`: the digests that tags have pointed to, and tags that must not move."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from mirror import config as settings
from mirror.cli.audit_command import audited
from mirror.cli.base import ConfigFile, JsonOption, TextTable, application, load, parse_images, say, say_json
from mirror.cli.store_checks import check_owner, check_there, refuse_unread
from mirror.errors import ConfigError, MirrorError, NotFound, RequestError
from mirror.graph.closure import read_closure
from mirror.graph.manifests import stored_descriptor
from mirror.inspect.tag_view import TagState, TagView, read_tag
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.reference import Reference, Repo
from mirror.policy.history import pointed_to, recalled
from mirror.policy.image_names import Image
from mirror.policy.records import Freeze, Sighting
from mirror.ports import Catalog
from mirror.values.timestamps import format_moment, parse_moment

TagArgument = Annotated[str, typer.Argument(metavar="IMAGE:TAG", help="An image by tag: alpine, quay.io/org/app:1.2")]


@application.command()
def history(image: TagArgument, config: ConfigFile = None, as_json: JsonOption = False) -> None:
    """Show the digests that a tag has pointed to, newest first, and which one the mirror answers now."""
    loaded = load(config, level="warning")
    wanted = _tag(image, loaded)
    check_there(loaded)
    view = asyncio.run(_read_tag(loaded, wanted.repo, str(wanted.tag)))
    if not view.states and not view.freeze:
        raise MirrorError(f"{wanted}: this mirror has never seen that tag, or has forgotten it (forget_after)")
    if as_json:
        say_json(_history_json(view))
        return
    table = TextTable("digest", "first seen", "last seen", "content", "now")
    for state in view.states:
        seen = state.sighting
        table.add_row(
            str(seen.digest),
            format_moment(seen.first_seen),
            format_moment(seen.last_seen),
            _content(state),
            ", ".join(_describe(state)),
        )
    table.show()
    say(_summary(view))


@application.command()
def freeze(
    image: TagArgument,
    config: ConfigFile = None,
    at: Annotated[
        str | None,
        typer.Option(help="A digest, or a time in UTC (2025-01-31, 2025-01-31T12:30) at which the tag had it."),
    ] = None,
    reason: Annotated[str, typer.Option(help="Shown by `mirror freezes`.")] = "",
) -> None:
    """Make a tag answer one digest until it is unfrozen: its present digest, or the one given with --at.

    A frozen tag of a hosted repository cannot be moved or deleted.
    """
    loaded = load(config, level="warning")
    wanted = _tag(image, loaded, digest=at is None)
    check_there(loaded)
    check_owner(loaded)
    where = _parse_at(at) if at is not None else wanted.digest
    tag = str(wanted.tag)
    with audited(loaded, "freeze", repository=str(wanted.repo), reference=tag, reason=reason or None) as about:
        made, missing = asyncio.run(_freeze(loaded, wanted.repo, tag, where, reason))
        about["digest"] = str(made.digest)
    hosted = _is_hosted(loaded, wanted.repo)
    say(
        f"{made.repo}:{made.tag} answers {made.digest} until it is unfrozen"
        f"{'; pushes and deletions of it are refused' if hosted else ''}"
    )
    if missing:
        say(f"the image is not complete here ({missing} missing); a pull fetches the rest by digest")


@application.command()
def unfreeze(image: TagArgument, config: ConfigFile = None) -> None:
    """Make a tag follow upstream again, or, if it is hosted here, the next push."""
    loaded = load(config, level="warning")
    wanted = _tag(image, loaded)
    check_there(loaded)
    check_owner(loaded)
    with audited(loaded, "unfreeze", repository=str(wanted.repo), reference=str(wanted.tag)):
        if not asyncio.run(_unfreeze(loaded, wanted.repo, str(wanted.tag))):
            raise MirrorError(f"{wanted} is not frozen")
    say(f"{wanted} {'can be moved' if _is_hosted(loaded, wanted.repo) else 'follows upstream'} again")


@application.command()
def freezes(config: ConfigFile = None, as_json: JsonOption = False) -> None:
    """List the frozen tags."""
    loaded = load(config, level="warning")
    check_there(loaded)
    from mirror.app.stored_records import stored_records

    with stored_records(loaded) as stored:
        freezes, unread = stored.shown.freezes.look()
        frozen = sorted(freezes, key=lambda freeze: (freeze.repo, freeze.tag))
        if as_json:
            say_json([{"image": f"{freeze.repo}:{freeze.tag}", **_freeze_json(freeze)} for freeze in frozen])
        else:
            _print_freezes(frozen)
        refuse_unread(unread, stored.shown.catalog)


def _print_freezes(freezes: Sequence[Freeze]) -> None:
    table = TextTable("image", "digest", "since", "reason")
    for freeze in freezes:
        name = f"{freeze.repo}:{freeze.tag}"
        table.add_row(name, str(freeze.digest), format_moment(freeze.since), freeze.reason)
    if freezes:
        table.show()
    say(f"frozen tags: {len(freezes)}")


# ---------------------------------------------------------------------------------------------------- arguments


def _tag(text: str, loaded: settings.Config, *, digest: bool = False) -> Image:
    """An image with a tag, and with a digest only if `digest` allows it. Raises `ConfigError`."""
    [image] = parse_images([text], loaded)
    if image.tag is None:
        raise ConfigError([f"{text}: name a tag; a digest never moves"])
    if image.digest is not None and not digest:
        raise ConfigError([f"{text}: name the tag without a digest"])
    return image


def _parse_at(at: str) -> Digest | float:
    """The digest or time that `--at` means. Raises `ConfigError`."""
    try:
        if at.startswith(("sha256:", "sha512:")):
            return Digest.parse(at)
        when = parse_moment(at)
    except (ValueError, RequestError) as error:
        raise ConfigError([f"--at: {error}"]) from error
    if when > time.time():
        raise ConfigError([f"--at: {at} is in the future"])
    return when


# ------------------------------------------------------------------------------------------------------ actions


async def _read_tag(loaded: settings.Config, repo: Repo, tag: str) -> TagView:
    from mirror.app.routes import age_rule
    from mirror.app.storage import blob_places, open_storage

    async with open_storage(loaded) as storage:
        rule = age_rule(loaded, repo)
        store = blob_places(loaded, storage).of(repo)
        return await asyncio.to_thread(read_tag, store, storage.catalog, storage.freezes, repo, tag, rule, time.time())


async def _freeze(
    loaded: settings.Config, repo: Repo, tag: str, where: Digest | float | None, reason: str
) -> tuple[Freeze, int]:
    """The freeze, and how many blobs of the image are missing."""
    from mirror.app.routes import age_rule
    from mirror.app.storage import blob_places, open_storage

    async with open_storage(loaded) as storage:
        rule = age_rule(loaded, repo)
        store = blob_places(loaded, storage).of(repo)

        def find_here() -> Descriptor | None:
            if _is_hosted(loaded, repo):
                # not what is remembered: another replica may have moved the tag
                return _hosted_target(storage.hosted.strict.catalog, repo, tag, where)
            if where is None:
                if frozen := storage.freezes.get(repo, tag):
                    return frozen.descriptor
                view = read_tag(store, storage.catalog, storage.freezes, repo, tag, rule, time.time())
                return next((state.sighting.descriptor for state in view.states if state.answers), None)
            seen = recalled(storage.catalog.get_history(repo, tag), storage.catalog.get_tag(repo, tag), time.time())
            if isinstance(where, float):
                return _at_time(repo, tag, seen, where).descriptor
            if same := [sighting for sighting in seen if sighting.digest == where]:
                return same[-1].descriptor
            link = storage.catalog.get_manifest(repo, where)
            return link.descriptor if link else None

        target = await asyncio.to_thread(find_here)
        if target is None:
            target = await _ask(loaded, repo, where if isinstance(where, Digest) else tag)
        made = Freeze(repo, tag, target.digest, target.media_type, target.size, reason, time.time())
        await asyncio.to_thread(storage.freezes.put, made)
        closure = await asyncio.to_thread(read_closure, store, storage.catalog, repo, target)
        return made, len(closure.missing)


def _hosted_target(catalog: Catalog, repo: Repo, tag: str, where: Digest | float | None) -> Descriptor:
    """Blocking: what a tag of a hosted repository points to. It moves by pushes only, so it is frozen where it is."""
    root = stored_descriptor(catalog, repo, tag)
    if root is None or catalog.get_manifest(repo, root.digest) is None:
        raise MirrorError(f"{repo}:{tag} is not here")
    if where not in (None, root.digest):
        raise ConfigError([f"--at: {repo} is hosted here, so push the image under that tag first, then freeze it"])
    return root


def _is_hosted(loaded: settings.Config, repo: Repo) -> bool:
    return settings.routing_table(loaded).hosts_registry(repo.registry)


def _at_time(repo: Repo, tag: str, seen: tuple[Sighting, ...], when: float) -> Sighting:
    sighting = pointed_to(seen, when)
    if sighting is None:
        begins = f"its history begins at {format_moment(seen[0].first_seen)}" if seen else "it has no history"
        raise MirrorError(f"{repo}:{tag}: its digest at {format_moment(when)} is not known: {begins}")
    return sighting


async def _ask(loaded: settings.Config, repo: Repo, reference: Reference) -> Descriptor:
    """The descriptor that upstream answers, by HEAD. Raises `MirrorError`."""
    from mirror.app.building import build

    async with build(loaded) as app:
        try:
            descriptor = await app.router.repository(repo).resolve(reference)
        except NotFound as error:
            kind = "manifest" if isinstance(reference, Digest) else "tag"
            raise MirrorError(f"{repo} has no {kind} {reference}, neither here nor upstream") from error
    return Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)


async def _unfreeze(loaded: settings.Config, repo: Repo, tag: str) -> bool:
    from mirror.app.storage import open_storage

    async with open_storage(loaded) as storage:
        return await asyncio.to_thread(storage.freezes.drop, repo, tag)


# ------------------------------------------------------------------------------------------------------- output


def _content(state: TagState) -> str:
    if state.closure.complete:
        return "complete"
    return f"{len(state.closure.missing)} missing" if state.here else "not here"


def _describe(state: TagState) -> Iterable[str]:
    if state.answers:
        yield "frozen" if state.frozen else "answers"
    if state.held_back:
        yield "held back by minimum_age"


def _summary(view: TagView) -> str:
    name = f"{view.repo}:{view.tag}"
    if view.freeze:
        since = format_moment(view.freeze.since)
        reason = f" ({view.freeze.reason})" if view.freeze.reason else ""
        return f"{name} is frozen at {view.freeze.digest} since {since}{reason}"
    if view.dropped:
        return f"{name} is not here now: it was deleted, or upstream did not have it when it was last asked"
    if view.choice and view.choice.held_back:
        what = f"answers {view.answers}" if view.answers else "is refused"
        return f"{name} {what}: the newest digest is too new (minimum_age) and will be served from {_from(view)} on"
    return f"{name} answers {view.answers}"


def _from(view: TagView) -> str:
    return format_moment(view.choice.newest_from) if view.choice else ""


def _freeze_json(freeze: Freeze) -> dict[str, Any]:
    return {"digest": str(freeze.digest), "since": format_moment(freeze.since), "reason": freeze.reason}


def _history_json(view: TagView) -> dict[str, Any]:
    return {
        "image": f"{view.repo}:{view.tag}",
        "answers": None if view.answers is None else str(view.answers),
        "frozen": _freeze_json(view.freeze) if view.freeze else None,
        "newest_served_from": _from(view) if view.choice and view.choice.held_back else None,
        "sightings": [
            {
                "digest": str(state.sighting.digest),
                "media_type": state.sighting.media_type,
                "size": state.sighting.size,
                "first_seen": format_moment(state.sighting.first_seen),
                "last_seen": format_moment(state.sighting.last_seen),
                "here": state.here,
                "complete": state.closure.complete,
                "answers": state.answers,
                "frozen": state.frozen,
                "held_back": state.held_back,
            }
            for state in view.states
        ],
    }
