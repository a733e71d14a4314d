"""`why`: the last answer and its reason, what of the image is here, and what the next pull will do."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final

import typer

from mirror import config as settings
from mirror.cli.base import ConfigFile, JsonOption, application, load, parse_images, say, say_json
from mirror.errors import ConfigError, RequestError
from mirror.eviction.pinned_images import PinnedImage, pinned_images
from mirror.inspect.explain import Explainer, WhyBlob, WhyImage
from mirror.inspect.images import CachedImage, Overview
from mirror.oci.digest import Digest
from mirror.policy.image_names import Image, name_of
from mirror.policy.last_answer import LastAnswer, explain
from mirror.policy.rules import RouteRule
from mirror.values.durations import format_duration
from mirror.values.sizes import format_size
from mirror.values.timestamps import format_moment, moment

Found = WhyImage | WhyBlob

#: The number of failed parts of an image that are listed one by one.
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
    now = time.time()
    found = asyncio.run(_look(loaded, _parse(image, loaded), now))
    if as_json:
        say_json([_to_json(one, loaded) for one in found])
        return
    for number, subject in enumerate(found):
        lines = _describe(subject, loaded, now)
        say("\n".join(["", *lines] if number else lines))


def _parse(text: str, loaded: settings.Config) -> Image | Digest:
    """Raises `ConfigError`."""
    if not text.startswith(("sha256:", "sha512:")):
        return parse_images([text], loaded)[0]
    try:
        return Digest.parse(text)
    except RequestError as error:
        raise ConfigError([str(error)]) from error


async def _look(loaded: settings.Config, wanted: Image | Digest, now: float) -> list[Found]:
    from mirror.app.routes import content_lists, route_of
    from mirror.app.storage import open_storage, pin_rules
    from mirror.store.local.answer_files import read_recent

    async with open_storage(loaded) as storage:
        pinned = pinned_images(storage.pins, pin_rules(loaded), storage.catalog, now)
        freezes, unread = storage.freezes.look()
        reasons = Explainer(
            storage.store,
            storage.catalog,
            storage.freezes,
            Overview(storage.store, storage.catalog, storage.index, pinned, freezes, unread=unread),
            await asyncio.to_thread(read_recent, storage.layout),
            lambda repo: route_of(loaded, repo),
            content_lists(loaded),
        )
        if isinstance(wanted, Digest):
            repos = await reasons.repositories(wanted)
            images: list[Found] = [await reasons.image(repo, wanted, now) for repo in repos]
            return images or [await reasons.blob(wanted)]
        reference = wanted.reference
        found = await reasons.image(wanted.repo, reference, now)
        if isinstance(reference, Digest) and found.image is None:
            blob = await reasons.blob(reference, [wanted.repo])
            asked = any(one.kind == "blob" for one in blob.answers)
            if blob.here.size is not None or blob.here.growing is not None or blob.images or asked:
                return [blob]
        return [found]


# -------------------------------------------------------------------------------------------------------- in words


def _describe(found: Found, loaded: settings.Config, now: float) -> list[str]:
    return _describe_image(found, loaded, now) if isinstance(found, WhyImage) else _describe_blob(found, now)


def _describe_image(found: WhyImage, loaded: settings.Config, now: float) -> list[str]:
    return [
        name_of(found.repo, found.reference),
        *_describe_answers(found.answers, now),
        *_describe_parts(found.parts, now),
        "here:",
        *(f"  {line}" for line in _here(found, now)),
        "route:",
        f"  {_route(found.route, found.rule)}",
        f"  upstream {found.repo.registry} at {', '.join(_urls(found, loaded)) or 'no address (sealed)'}",
        "the next pull:",
        *(f"  {line}" for line in found.next),
    ]


def _describe_blob(found: WhyBlob, now: float) -> list[str]:
    here = found.here
    lines = [str(found.digest), *_describe_answers(found.answers, now, of_repo=True), "here:"]
    if here.size is not None:
        used = f", last used {_ago(here.used_at, now)}" if here.used_at else ""
        lines.append(f"  a blob of {format_size(here.size)}{used}")
    elif here.growing is not None:
        lines.append(f"  a download in progress or interrupted: {format_size(here.growing)} so far")
    else:
        lines.append("  nothing")
    lines += [f"  part of {name_of(repo, reference)}" for repo, reference in found.images]
    if found.next:
        lines.append("the next pull:")
    return [*lines, *(f"  of {repo}: {line}" for repo, line in found.next)]


def _describe_answers(answers: Sequence[LastAnswer], now: float, *, of_repo: bool = False) -> Iterable[str]:
    if not answers:
        yield "last answer:"
        yield "  none is recorded (each worker records the last 500 of each kind)"
    for answer in answers:
        yield "last answer:" if answer is answers[0] else "before that:"
        asked = f"{answer.method} {answer.reference or answer.kind}{f' of {answer.repository}' if of_repo else ''}"
        took = f"{answer.seconds:.3f} s, request {answer.request}"
        yield f"  {_ago(answer.at, now)}: {asked}: {answer.status}, {answer.outcome}, {took}"
        yield f"  {explain(answer)}"
        if answer.digest and answer.digest != answer.reference:
            yield f"  answered {answer.digest}"


def _describe_parts(parts: Sequence[LastAnswer], now: float) -> Iterable[str]:
    """The number of answers about the image's parts by outcome, and the first few that failed."""
    if not parts:
        return
    count = Counter(_fate(one) for one in parts)
    yield f"its parts: {', '.join(f'{number} × {fate}' for fate, number in count.most_common())}"
    bad = [one for one in parts if one.status >= 400 or one.error]
    for one in bad[:_MOST_PARTS]:
        yield f"  {_ago(one.at, now)}: {one.method} {one.reference}: {one.status}, request {one.request}"
        yield f"  {explain(one)}"
    if len(bad) > _MOST_PARTS:
        yield f"  and {len(bad) - _MOST_PARTS} more"


def _fate(answer: LastAnswer) -> str:
    if answer.status >= 400:
        return f"status {answer.status}"
    return f"{answer.outcome}, cut off" if answer.error else answer.outcome


def _here(found: WhyImage, now: float) -> Iterable[str]:
    image = found.image
    if image is None:
        yield "nothing"
    else:
        yield f"{image.root.digest}: {_content(image)}, {format_size(image.closure.present_size)}"
        if image.used_at:
            yield f"last used {_ago(image.used_at, now)}"
    if found.fetched_at:
        yield f"manifest fetched {_ago(found.fetched_at, now)}"
    if found.record:
        yield f"tag confirmed by upstream {_ago(found.record.fetched_at, now)}"
    if found.tags:
        yield f"tags that point to it: {', '.join(found.tags)}"
    if found.freeze:
        reason = f" ({found.freeze.reason})" if found.freeze.reason else ""
        yield f"frozen since {format_moment(found.freeze.since)}{reason}"
    for pinned in image.pinned if image else ():
        yield f"pinned {_pin(pinned)}"


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
        facts.append(f"signed_by {len(rule.content.signed_by)} keys")
    if rule.prefetch:
        facts.append("prefetch")
    return ", ".join(facts)


def _urls(found: WhyImage, loaded: settings.Config) -> list[str]:
    from mirror.app.routes import upstream_urls

    return [] if found.rule.offline else upstream_urls(loaded, found.repo.registry)


def _ago(at: float, now: float) -> str:
    return f"{format_moment(at)} ({format_duration(max(0.0, now - at))} ago)"


# --------------------------------------------------------------------------------------------------------- as JSON


def _to_json(found: Found, loaded: settings.Config) -> dict[str, Any]:
    if isinstance(found, WhyBlob):
        return {
            "digest": str(found.digest),
            "answers": [_answer_json(one) for one in found.answers],
            "size": found.here.size,
            "growing": found.here.growing,
            "lastUsed": moment(found.here.used_at),
            "images": [name_of(repo, reference) for repo, reference in found.images],
            "next": [{"repository": str(repo), "what": what} for repo, what in found.next],
        }
    image = found.image
    return {
        "image": name_of(found.repo, found.reference),
        "answers": [_answer_json(one) for one in found.answers],
        "parts": [_answer_json(one) for one in found.parts],
        "digest": str(image.root.digest) if image else None,
        "complete": bool(image and image.complete),
        "missing": [str(node.digest) for node in image.closure.missing] if image else [],
        "size": image.closure.present_size if image else 0,
        "lastUsed": moment(image.used_at) if image else None,
        "fetched": moment(found.fetched_at),
        "tagConfirmed": moment(found.record.fetched_at if found.record else None),
        "freshUntil": _fresh_until(found),
        "tags": list(found.tags),
        "frozen": str(found.freeze.digest) if found.freeze else None,
        "pinned": [_pin(one) for one in image.pinned] if image else [],
        "route": {
            "match": found.route,
            "registry": found.repo.registry,
            "urls": _urls(found, loaded),
            "tagTtl": found.rule.freshness.tag_ttl,
            "staleWhileDown": found.rule.freshness.stale_while_down,
            "minimumAge": found.rule.age.minimum,
            "offline": found.rule.offline,
            "requireDigest": found.rule.content.require_digest,
            "maxSize": found.rule.content.largest,
            "signedBy": len(found.rule.content.signed_by),
        },
        "next": list(found.next),
    }


def _fresh_until(found: WhyImage) -> str | None:
    return moment(found.record.fetched_at + found.rule.freshness.tag_ttl) if found.record else None


def _answer_json(answer: LastAnswer) -> dict[str, Any]:
    return {**answer.to_json(), "at": format_moment(answer.at), "why": explain(answer)}
