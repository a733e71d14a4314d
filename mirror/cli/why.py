"""`why`: the last answer and its reason, what of the image is here, and what the next pull will do."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final

import typer

from mirror import config as settings
from mirror.cli.base import ConfigFile, JsonOption, application, counted, load, parse_images, say, say_json
from mirror.cli.store_checks import check_there
from mirror.errors import ConfigError, RequestError
from mirror.eviction.pinned_images import PinnedImage, pinned_images
from mirror.inspect.explain import Explainer, WhyBlob, WhyImage
from mirror.inspect.images import CachedImage, Overview
from mirror.oci.digest import Digest
from mirror.policy.forecast import Unfinished
from mirror.policy.image_names import Image, name_of
from mirror.policy.last_answer import LastAnswer, explain
from mirror.policy.rules import RouteRule
from mirror.values.durations import format_duration
from mirror.values.sizes import format_size
from mirror.values.timestamps import format_moment, moment

Explanation = WhyImage | WhyBlob

#: The number of parts of an image that are listed one by one: of those that failed, and of those that are unfinished.
_MOST_PARTS: Final = 5


@application.command()
def why(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE|DIGEST", help="alpine:3.20, an image by digest, or a digest alone.")
    ],
    config: ConfigFile = None,
    as_json: JsonOption = False,
) -> None:
    """Explain why the last answer was a hit, a miss, stale or an error, and what the next pull will do."""
    loaded = load(config)
    wanted = _parse(image, loaded)
    check_there(loaded)
    now = time.time()
    explanations = asyncio.run(_look(loaded, wanted, now))
    if as_json:
        say_json([_to_json(explanation, loaded) for explanation in explanations])
        return
    for number, explanation in enumerate(explanations):
        lines = _describe(explanation, loaded, now)
        say("\n".join(["", *lines] if number else lines))


def _parse(text: str, loaded: settings.Config) -> Image | Digest:
    """Raises `ConfigError`."""
    if not text.startswith(("sha256:", "sha512:")):
        try:
            return parse_images([text], loaded)[0]
        except ConfigError as error:
            raise ConfigError([*error.mistakes, *_as_pulled(text, loaded)]) from error
    try:
        return Digest.parse(text)
    except RequestError as error:
        raise ConfigError([str(error)]) from error


def _as_pulled(text: str, loaded: settings.Config) -> list[str]:
    """What a client gets that pulls such a name from this mirror, if its registry is not configured."""
    table = settings.routing_table(loaded)
    first, slash, _ = text.partition("/")
    if not slash or table.default is None or ":" in first or not table.is_registry(first) or table.registry(first):
        return []
    meant = f"{table.default}/{text}"
    return [f"a client that asks this mirror for that path is given {meant}: see mirror why {meant}"]


async def _look(loaded: settings.Config, wanted: Image | Digest, now: float) -> list[Explanation]:
    from mirror.app.routes import content_lists, route_of
    from mirror.app.storage import blob_places, open_storage, pin_rules
    from mirror.store.local.answer_files import read_recent

    async with open_storage(loaded) as storage:
        pinned = await asyncio.to_thread(pinned_images, storage.pins, pin_rules(loaded), storage.catalog, now)
        freezes, unread = await asyncio.to_thread(storage.freezes.look)
        places = blob_places(loaded, storage)
        explainer = Explainer(
            storage.evictable,
            storage.catalog,
            storage.freezes,
            Overview(places, storage.catalog, storage.index, pinned, freezes, unread=unread),
            await asyncio.to_thread(read_recent, storage.layout),
            lambda repo: route_of(loaded, repo),
            content_lists(loaded),
            blobs=places,
            cache=storage.store,
            unsure=storage.stored.trouble,
        )
        if isinstance(wanted, Digest):
            repos = await explainer.repositories(wanted)
            images: list[Explanation] = [await explainer.image(repo, wanted, now) for repo in repos]
            return images or [await explainer.blob(wanted)]
        reference = wanted.reference
        explanation = await explainer.image(wanted.repo, reference, now)
        if isinstance(reference, Digest) and explanation.image is None:
            blob = await explainer.blob(reference, [wanted.repo])
            requested = any(answer.kind == "blob" for answer in blob.answers)
            if blob.here.size is not None or blob.here.unfinished or blob.images or requested:
                return [blob]
        return [explanation]


# -------------------------------------------------------------------------------------------------------- in words


def _describe(explanation: Explanation, loaded: settings.Config, now: float) -> list[str]:
    return (
        _describe_image(explanation, loaded, now)
        if isinstance(explanation, WhyImage)
        else _describe_blob(explanation, loaded, now)
    )


def _describe_image(explanation: WhyImage, loaded: settings.Config, now: float) -> list[str]:
    return [
        name_of(explanation.repo, explanation.reference),
        *_describe_answers(explanation.answers, loaded, now),
        *_describe_parts(explanation.parts, loaded, now),
        "here:",
        *(f"  {line}" for line in _here(explanation, now)),
        "route:",
        *(f"  {line}" for line in _way(explanation, loaded)),
        "the next pull:",
        *(f"  {line}" for line in explanation.next),
        *(f"  {line}" for line in _redirects(loaded, hosted=explanation.hosted)),
    ]


def _redirects(loaded: settings.Config, *, hosted: bool) -> list[str]:
    """Who may be sent to the bucket for the blobs of a repository."""
    rule = loaded.bucket
    if loaded.store.bucket is None or not rule.redirect_to or not (hosted or loaded.store.cache_in_bucket):
        return []
    networks = ", ".join(rule.redirect_to)
    return [f"for blobs of {rule.redirect_from} or more, clients in {networks} are sent to the bucket, if it has them"]


def _way(explanation: WhyImage, loaded: settings.Config) -> Iterable[str]:
    if explanation.hosted:
        yield f"{explanation.repo.registry} is hosted here: images come by pushes and imports, and stay until deleted"
        return
    yield _route(explanation.route, explanation.rule)
    if loaded.store.cache_in_bucket:
        from mirror.app.object_storage.bucket_cache import kept_registries

        if kept_registries(loaded)(explanation.repo.registry):
            yield f"what the disk lacks is looked for in the bucket {loaded.store.bucket} first"
    yield f"upstream {explanation.repo.registry} at {', '.join(_urls(explanation, loaded)) or 'no address (sealed)'}"


def _describe_blob(explanation: WhyBlob, loaded: settings.Config, now: float) -> list[str]:
    here = explanation.here
    lines = [str(explanation.digest), *_describe_answers(explanation.answers, loaded, now, of_repo=True), "here:"]
    if here.size is not None:
        used = f", last used {_ago(here.used_at, now)}" if here.used_at else ""
        lines.append(f"  a blob of {format_size(here.size)}{used}")
    elif here.unfinished:
        lines.append(f"  a download in progress or interrupted: {_so_far(here.unfinished)}")
    else:
        lines.append("  nothing")
    lines += [f"  part of {name_of(repo, reference)}" for repo, reference in explanation.images]
    if explanation.next:
        lines.append("the next pull:")
    lines += [f"  of {repo}: {line}" for repo, line in explanation.next]
    hosts = settings.routing_table(loaded).hosts_registry
    hosted = any(hosts(repo.registry) for repo, _ in explanation.next)
    return [*lines, *(f"  {line}" for line in _redirects(loaded, hosted=hosted) if explanation.next)]


def _describe_answers(
    answers: Sequence[LastAnswer], loaded: settings.Config, now: float, *, of_repo: bool = False
) -> Iterable[str]:
    if not answers:
        yield "last answer:"
        yield "  none is recorded (each worker records the last 500 of each kind)"
    for answer in answers:
        yield "last answer:" if answer is answers[0] else "before that:"
        asked = f"{answer.method} {answer.reference or answer.kind}{f' of {answer.repository}' if of_repo else ''}"
        took = f"{answer.seconds:.3f} s, request {answer.request}"
        yield f"  {_ago(answer.at, now)}: {asked}: {answer.status}, {answer.outcome}, {took}"
        yield f"  {_explained(answer, loaded)}"
        if answer.digest and answer.digest != answer.reference:
            yield f"  answered {answer.digest}"


def _describe_parts(parts: Sequence[LastAnswer], loaded: settings.Config, now: float) -> Iterable[str]:
    """The number of answers about the image's parts by outcome, and the first few that failed."""
    if not parts:
        return
    count = Counter(_outcome(part) for part in parts)
    yield f"its parts: {', '.join(f'{number} × {outcome}' for outcome, number in count.most_common())}"
    failed = [part for part in parts if part.status >= 400 or part.error]
    for part in failed[:_MOST_PARTS]:
        yield f"  {_ago(part.at, now)}: {part.method} {part.reference}: {part.status}, request {part.request}"
        yield f"  {_explained(part, loaded)}"
    if len(failed) > _MOST_PARTS:
        yield f"  and {len(failed) - _MOST_PARTS} more"


def _explained(answer: LastAnswer, loaded: settings.Config) -> str:
    registry = answer.repository.partition("/")[0]
    return explain(answer, hosted=settings.routing_table(loaded).hosts_registry(registry))


def _outcome(answer: LastAnswer) -> str:
    if answer.status >= 400:
        return f"status {answer.status}"
    return f"{answer.outcome}, cut off" if answer.error else answer.outcome


def _here(explanation: WhyImage, now: float) -> Iterable[str]:
    image = explanation.image
    if image is None:
        yield "nothing"
    else:
        yield f"{image.root.digest}: {_content(image)}, {format_size(image.closure.present_size)}"
        if image.used_at:
            yield f"last used {_ago(image.used_at, now)}"
        for digest, unfinished in list(explanation.unfinished.items())[:_MOST_PARTS]:
            yield f"of {digest}, which is missing: {_so_far(unfinished)}"
        if len(explanation.unfinished) > _MOST_PARTS:
            yield f"and some of {len(explanation.unfinished) - _MOST_PARTS} more that are missing"
    if explanation.fetched_at:
        yield f"manifest {'pushed' if explanation.hosted else 'fetched'} {_ago(explanation.fetched_at, now)}"
    if explanation.record and explanation.hosted:
        yield f"tag moved here {_ago(explanation.record.fetched_at, now)}"
    elif explanation.record:
        yield f"tag confirmed by upstream {_ago(explanation.record.fetched_at, now)}"
    if explanation.tags:
        yield f"tags that point to it: {', '.join(explanation.tags)}"
    if explanation.freeze:
        reason = f" ({explanation.freeze.reason})" if explanation.freeze.reason else ""
        yield f"frozen since {format_moment(explanation.freeze.since)}{reason}"
    for pinned in image.pinned if image else ():
        yield f"pinned {_pin(pinned)}"


def _so_far(unfinished: Unfinished) -> str:
    """What an unfinished download has, in words."""
    whole = [f"{format_size(unfinished.beginning)} so far"] if unfinished.beginning else []
    parts = [f"{format_size(unfinished.parts)} in unverified parts of it"] if unfinished.parts else []
    return " and ".join([*whole, *parts])


def _content(image: CachedImage) -> str:
    if not any(node.present for node in image.closure.nodes):
        return "its manifest is not here"
    if image.complete:
        return "complete"
    return f"incomplete, {len(image.closure.missing)} missing" if image.closure.missing else "no platform was pulled"


def _pin(pinned: PinnedImage) -> str:
    by = f"by the rule {pinned.rule}" if pinned.rule else f"as {name_of(pinned.repo, pinned.reference)}"
    return f"{by}{f', {pinned.reason}' if pinned.reason else ''}"


def _route(route: str | None, rule: RouteRule) -> str:
    facts = [f'match = "{route}"' if route else "no route matches; the defaults apply"]
    if rule.offline:
        return f"{facts[0]}, offline"
    facts.append(f"tag_ttl {format_duration(rule.freshness.tag_ttl)}")
    facts.append(f"stale_while_down {format_duration(rule.freshness.stale_while_down)}")
    if rule.age.minimum:
        facts.append(f"minimum_age {format_duration(rule.age.minimum)}")
    if rule.content.require_digest:
        facts.append("require_digest")
    if rule.content.largest is not None:
        facts.append(f"max_size {format_size(rule.content.largest)}")
    if rule.content.signed_by:
        facts.append(f"signed_by {counted(len(rule.content.signed_by), 'key')}")
    if rule.prefetch:
        facts.append("prefetch")
    if rule.lazy is not None:
        facts.append("ranges lazy: parts of blobs may be sent before they are verified")
    return ", ".join(facts)


def _urls(explanation: WhyImage, loaded: settings.Config) -> list[str]:
    from mirror.app.routes import upstream_urls

    if explanation.rule.offline or explanation.hosted:
        return []
    return upstream_urls(loaded, explanation.repo.registry)


def _ago(at: float, now: float) -> str:
    return f"{format_moment(at)} ({format_duration(max(0.0, now - at))} ago)"


# --------------------------------------------------------------------------------------------------------- as JSON


def _to_json(explanation: Explanation, loaded: settings.Config) -> dict[str, Any]:
    if isinstance(explanation, WhyBlob):
        return {
            "digest": str(explanation.digest),
            "answers": [_answer_json(answer, loaded) for answer in explanation.answers],
            "size": explanation.here.size,
            **_unfinished_json(explanation.here.unfinished),
            "last_used": moment(explanation.here.used_at),
            "images": [name_of(repo, reference) for repo, reference in explanation.images],
            "next": [{"repository": str(repo), "what": what} for repo, what in explanation.next],
        }
    image = explanation.image
    return {
        "image": name_of(explanation.repo, explanation.reference),
        "answers": [_answer_json(answer, loaded) for answer in explanation.answers],
        "parts": [_answer_json(part, loaded) for part in explanation.parts],
        "digest": str(image.root.digest) if image else None,
        "complete": bool(image and image.complete),
        "missing": [str(node.digest) for node in image.closure.missing] if image else [],
        "unfinished": [
            {"digest": str(digest), **_unfinished_json(unfinished)}
            for digest, unfinished in explanation.unfinished.items()
        ],
        "size": image.closure.present_size if image else 0,
        "last_used": moment(image.used_at) if image else None,
        "fetched": moment(explanation.fetched_at),
        "tag_confirmed": moment(explanation.record.fetched_at if explanation.record else None),
        "fresh_until": _fresh_until(explanation),
        "tags": list(explanation.tags),
        "frozen": str(explanation.freeze.digest) if explanation.freeze else None,
        "pinned": [_pin(pinned) for pinned in image.pinned] if image else [],
        "route": {
            "match": explanation.route,
            "registry": explanation.repo.registry,
            "hosted": explanation.hosted,
            "urls": _urls(explanation, loaded),
            "tag_ttl": explanation.rule.freshness.tag_ttl,
            "stale_while_down": explanation.rule.freshness.stale_while_down,
            "minimum_age": explanation.rule.age.minimum,
            "offline": explanation.rule.offline,
            "ranges": "verified" if explanation.rule.lazy is None else "lazy",
            "require_digest": explanation.rule.content.require_digest,
            "max_size": explanation.rule.content.largest,
            "signed_by": len(explanation.rule.content.signed_by),
        },
        "next": list(explanation.next),
    }


def _unfinished_json(unfinished: Unfinished) -> dict[str, int | None]:
    return {"growing": unfinished.beginning or None, "unverified_parts": unfinished.parts or None}


def _fresh_until(explanation: WhyImage) -> str | None:
    if explanation.record is None or explanation.hosted:
        return None
    return moment(explanation.record.fetched_at + explanation.rule.freshness.tag_ttl)


def _answer_json(answer: LastAnswer, loaded: settings.Config) -> dict[str, Any]:
    return {**answer.to_json(), "at": format_moment(answer.at), "why": _explained(answer, loaded)}
