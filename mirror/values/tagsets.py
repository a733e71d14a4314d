"""Tag sets: the tags selected by a glob, a regular expression or a version range, and the newest of them.

Tags are read as versions leniently, because registries prescribe no grammar for versions:

    1.2.3  v1.2.3      major, minor, patch
    1.2  v1            missing parts are 0
    1.2.3-rc1  3.14b2  older than the release; a variant such as 1.2.3-alpine cannot be told from a prerelease
    1.2.3_amd64        a build of the release (`_` stands for `+`, which a tag may not contain; other tools do so, too)
    1.2.3.4            a version with more parts: it can be ordered, but matches no range

A version range (npm's notation) matches releases only, unless prereleases are asked for or the range itself names one.
Globs and regular expressions match prereleases like any other tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from typing import Any, Final

from semantic_version import NpmSpec, Version

_VERSION: Final = re.compile(
    r"[vV]?(?P<numbers>[0-9]{1,18}(?:\.[0-9]{1,18}){0,7})"
    r"(?:(?P<pre>-[a-zA-Z0-9.-]+)|(?P<glued>(?:a|b|c|rc|alpha|beta|pre|dev)[.]?[0-9]*(?:-[a-zA-Z0-9.-]+)?))?"
    r"(?P<build>_[a-zA-Z0-9._-]*)?"
)
_OPERATOR: Final = re.compile(r"([<>=~^]) ")
_DIGITS: Final = re.compile(r"([0-9]+)")

#: A text split into pieces for comparison, in which numbers compare by value.
_Natural = tuple[tuple[int, int, str], ...]


@dataclass(frozen=True, slots=True)
class TagVersion:
    """A tag read as a version. `numbers` has one to eight parts. `pre` and `build` are empty for a plain release."""

    numbers: tuple[int, ...]
    pre: str = ""
    build: str = ""

    @property
    def release(self) -> tuple[int, int, int] | None:
        """Major, minor and patch; None if there are more numbers."""
        if len(self.numbers) > 3:
            return None
        major, minor, patch = (*self.numbers, 0, 0)[:3]
        return major, minor, patch

    def order(self) -> tuple[tuple[int, ...], bool, _Natural, _Natural]:
        """A sort key: older versions come first; `rc2` before `rc10`, both before the release."""
        numbers = self.numbers
        while len(numbers) > 1 and not numbers[-1]:
            numbers = numbers[:-1]
        return numbers, not self.pre, _natural(self.pre), _natural(self.build)


def read_version(tag: str) -> TagVersion | None:
    """Read a tag as a version; None if it is none, such as `latest`, `bookworm` or a commit."""
    match = _VERSION.fullmatch(tag)
    if match is None:
        return None
    numbers = tuple(map(int, match["numbers"].split(".")))
    return TagVersion(numbers, (match["pre"] or match["glued"] or "").lstrip("-"), (match["build"] or "")[1:])


@dataclass(frozen=True, slots=True)
class TagSet:
    """A set of tags, given by at most one of `glob`, `regex` and `semver`; all tags if none is given.

    `newest` limits the set to that many of the newest. `prereleases` extends the range `semver` to prereleases. Raises
    `ValueError` that says what is wrong.
    """

    glob: str | None = None
    regex: str | None = None
    semver: str | None = None
    prereleases: bool = False
    newest: int | None = None

    def __post_init__(self) -> None:
        if sum(way is not None for way in (self.glob, self.regex, self.semver)) > 1:
            raise ValueError("tags, tags_regex and tags_semver exclude each other")
        if self.prereleases and self.semver is None:
            raise ValueError("prereleases belongs to tags_semver")
        if self.newest is not None and self.newest < 1:
            raise ValueError("newest is at least 1")
        if self.glob is not None and not self.glob:
            raise ValueError("tags is empty; write * for all tags")
        if self.regex is not None:
            _compiled(self.regex)
        if self.semver is not None:
            _range(self.semver)

    def __str__(self) -> str:
        if self.semver is not None:
            text = f"semver {self.semver}"
        elif self.regex is not None:
            text = f"regex {self.regex}"
        else:
            text = self.glob or "*"
        return f"{text}, newest {self.newest}" if self.newest else text


def choose_tags(tags: Iterable[str], wanted: TagSet) -> list[str]:
    """The tags in the set, newest first: first the versions, then all others by name.

    Numbers in names are compared by value (`build-9` before `build-10`). The name that sorts last counts as the newest.
    """
    chosen = sorted({tag for tag in tags if _fits(tag, wanted)}, key=_age, reverse=True)
    return chosen if wanted.newest is None else chosen[: wanted.newest]


def _fits(tag: str, wanted: TagSet) -> bool:
    if wanted.glob is not None:
        return re.fullmatch(translate(wanted.glob), tag) is not None
    if wanted.regex is not None:
        return _compiled(wanted.regex).fullmatch(tag) is not None
    if wanted.semver is not None:
        return _within(tag, wanted.semver, prereleases=wanted.prereleases)
    return True


def _within(tag: str, wanted: str, *, prereleases: bool) -> bool:
    """Whether a tag is within a version range.

    With `prereleases`, a prerelease is within a range if its release is: `>=1.2 <2` includes 1.2.0-rc1 but not
    2.0.0-rc1. Without, it is so only if the range itself names a prerelease of the same version, as `>=1.2.0-rc2` does
    (npm's rule).
    """
    version = read_version(tag)
    if version is None or version.release is None:
        return False
    text = "{}.{}.{}".format(*version.release)
    if version.pre and not prereleases:
        text += f"-{version.pre}"
    try:
        return bool(_range(wanted).match(Version(text)))
    except ValueError:
        # not a valid semver prerelease, such as 1.2.3-a..b
        return False


def _age(tag: str) -> tuple[bool, Any, _Natural]:
    version = read_version(tag)
    return version is not None, version.order() if version else (), _natural(tag)


def _natural(text: str) -> _Natural:
    """The text in pieces that can be compared: numbers before words, as in semver 2.0, section 11."""
    pieces = (piece for piece in _DIGITS.split(text) if piece)
    return tuple((0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in pieces)


@cache
def _compiled(regex: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except re.error as error:
        raise ValueError(f"not a regular expression: {regex!r}: {error}") from error
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"not a regular expression: {regex!r}") from error


@cache
def _range(text: str) -> Any:
    """Parse a range in npm's notation. Raises `ValueError`.

    Commas between the parts and blanks after an operator are allowed, too: `>= 1.2, < 2`.
    """
    written = _OPERATOR.sub(r"\1", " ".join(text.replace(",", " ").split()))
    try:
        if not written:
            raise ValueError(text)
        return NpmSpec(written)
    except ValueError as error:
        raise ValueError(f"not a version range: {text!r} (write for example >=1.2 <2, ^1.4, 1.x || 3)") from error
