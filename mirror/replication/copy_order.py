"""What a copy is asked for: `mirror copy`, and `POST /admin/v1/copies`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from mirror.errors import BodyInvalid, RequestError
from mirror.oci.reference import Reference, Repo
from mirror.policy.image_names import Image, has_reference, name_of, parse_image
from mirror.policy.routing import RoutingTable
from mirror.values.json_types import about
from mirror.values.platforms import Platform, parse_platforms

_FLAGS: Final = {"all_tags": False, "referrers": True, "dry_run": False}
_FIELDS: Final = ("source", "destination", "platforms", *_FLAGS)
#: Characters of a name, and of a list of platforms; the most such lists. Mistakes are quoted in answers and in the log.
_LONGEST: Final = 1000
_MOST_PLATFORMS: Final = 100


class CopyBody(TypedDict):
    """What to copy, and where to."""

    source: Annotated[str, about("An image, hosted or cached here; with `all_tags`, a repository.")]
    destination: Annotated[
        str,
        about("A hosted repository, or one of an upstream with `push`; with a tag, if it is to be another one."),
    ]
    all_tags: Annotated[NotRequired[bool], about("All tags of the source. Default: false.")]
    referrers: Annotated[NotRequired[bool], about("Signatures, SBOMs and other referrers too. Default: true.")]
    platforms: Annotated[
        NotRequired[list[str]], Field(max_length=_MOST_PLATFORMS), about("As in `linux/amd64`; none: all.")
    ]
    dry_run: Annotated[NotRequired[bool], about("Change nothing; tell what would be copied.")]


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """A copy of one image, or of all tags of a repository (`reference` is None). The destination gets `tag`, or the
    manifest alone if that is None. `caller` is whom records name.
    """

    source: Repo
    reference: Reference | None
    destination: Repo
    tag: str | None
    platforms: tuple[Platform, ...] = ()
    referrers: bool = True
    dry_run: bool = False
    caller: str = ""

    @property
    def source_name(self) -> str:
        """The source as people write it."""
        return str(self.source) if self.reference is None else name_of(self.source, self.reference)

    @property
    def destination_name(self) -> str:
        """The destination as people write it."""
        return str(self.destination) if self.tag is None else name_of(self.destination, self.tag)


def read_order(body: object, table: RoutingTable, parse: Callable[[str], Image], caller: str) -> CopyOrder:
    """The order in a request's body. `parse` reads the image that is copied, as the admin API reads names. Raises
    `BodyInvalid` with the mistakes.
    """
    if not isinstance(body, dict):
        raise BodyInvalid('not an object such as {"source": "corp/dev/app:1.0", "destination": "corp/prod/app"}')
    mistakes = [f"{name[:40]!r}: no such field" for name in body if name not in _FIELDS]
    mistakes += [f"{name}: not a string" for name in ("source", "destination") if not isinstance(body.get(name), str)]
    mistakes += [
        f"{name}: longer than {_LONGEST} characters"
        for name in ("source", "destination")
        if isinstance(body.get(name), str) and len(body[name]) > _LONGEST
    ]
    mistakes += [f"{name}: not true or false" for name in _FLAGS if not isinstance(body.get(name, True), bool)]
    platforms = body.get("platforms", [])
    if not isinstance(platforms, list) or not all(isinstance(text, str) for text in platforms):
        mistakes.append("platforms: not a list of strings")
    elif len(platforms) > _MOST_PLATFORMS or any(len(text) > _LONGEST for text in platforms):
        mistakes.append(f"platforms: more than {_MOST_PLATFORMS}, or one with more than {_LONGEST} characters")
    if mistakes:
        raise BodyInvalid("; ".join(mistakes[:20]))
    try:
        return _read({**_FLAGS, **body}, table, parse, caller)
    except (RequestError, ValueError) as error:
        raise BodyInvalid(str(error)) from error


def _read(body: Mapping[str, Any], table: RoutingTable, parse: Callable[[str], Image], caller: str) -> CopyOrder:
    source, destination = str(body["source"]), str(body["destination"])
    all_tags = bool(body["all_tags"])
    if all_tags and has_reference(source):
        raise RequestError(f"{source}: with all tags, name a repository, without tag and digest")
    if not all_tags and not has_reference(source):
        raise RequestError(f"{source}: name a tag or a digest, or ask for all tags")
    if "@" in destination or (all_tags and has_reference(destination)):
        raise RequestError(f"{destination}: a copy has the digest of its source; name a repository, or one with a tag")
    image, target = parse(source), parse_image(destination, table)
    tag = target.tag if has_reference(destination) else image.tag
    order = CopyOrder(
        image.repo,
        None if all_tags else image.reference,
        target.repo,
        None if all_tags else tag,
        parse_platforms(body.get("platforms", [])),
        bool(body["referrers"]),
        bool(body["dry_run"]),
        caller,
    )
    if order.source == order.destination and order.tag in (None, order.reference):
        raise RequestError(f"{source}: source and destination are the same; name another repository or tag")
    return order
