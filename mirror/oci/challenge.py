"""Authentication challenges of a registry: `WWW-Authenticate` and scopes.

Sources: RFC 9110, 11.6.1 (challenges), the distribution project's token specification (`Bearer` with `realm`,
`service` and `scope`), RFC 6750, 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
#: More than the grammar allows: some registries do not quote URLs.
_BARE: Final = re.compile(r"[^\s,\"]+")
_GAP: Final = re.compile(r"[ \t,]*")
_EQUALS: Final = re.compile(r"[ \t]*=[ \t]*")
#: Only this many characters of a header line are read. No real challenge is longer.
_LONGEST: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge. `scheme` and the names of `parameters` are lower case; values are as sent, but unquoted."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(lines: Iterable[str]) -> list[Challenge]:
    """All challenges of all `WWW-Authenticate` lines, in order; one line may have several.

    The first of a repeated parameter counts. If a line is malformed, everything before the error is returned and the
    rest of that line is ignored. Nothing is raised, because the answer is an error already.
    """
    return [challenge for line in lines for challenge in _parse_line(line[:_LONGEST])]


def _parse_line(line: str) -> list[Challenge]:
    challenges: list[tuple[str, dict[str, str]]] = []
    position = _skip(_GAP, line, 0)
    while position < len(line) and (name := _TOKEN.match(line, position)):
        equals = _EQUALS.match(line, name.end())
        if equals and challenges:
            value, position = _value(line, equals.end())
            if value is None:
                break
            challenges[-1][1].setdefault(name[0].lower(), value)
        elif equals:
            break
        else:
            challenges.append((name[0].lower(), {}))
            position = _skip_token68(line, name.end())
        position = _skip(_GAP, line, position)
    return [Challenge(scheme, parameters) for scheme, parameters in challenges]


def _value(line: str, position: int) -> tuple[str | None, int]:
    """A parameter's value, quoted or bare, and the position after it. The value is None if there is none."""
    if quoted := _QUOTED.match(line, position):
        return _ESCAPED.sub(r"\1", quoted[1]), quoted.end()
    if bare := _BARE.match(line, position):
        return bare[0], bare.end()
    return None, position


def _skip_token68(line: str, position: int) -> int:
    """The position after a token68, if one follows the scheme instead of parameters (`Negotiate abc==`).

    Its meaning depends on the scheme, so it is skipped.
    """
    after = _skip(_GAP, line, position)
    if after > position and "," not in line[position:after] and (blob := _TOKEN68.match(line, after)):
        return blob.end()
    return position


def _skip(pattern: re.Pattern[str], line: str, position: int) -> int:
    match = pattern.match(line, position)
    return match.end() if match else position


@dataclass(frozen=True, slots=True)
class Scope:
    """The permissions to request with a token: entries such as `repository:library/redis:pull`.

    Entries are sorted, and each resource occurs once. Entries of another form are kept as they are: the whole scope of
    one registry is `aws`.
    """

    entries: tuple[str, ...] = ()

    @classmethod
    def pull(cls, name: str) -> Scope:
        """The scope for pulling from this repository."""
        return cls((f"repository:{name}:pull",))

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Parse a challenge's `scope`: entries separated by blanks."""
        return cls().union(cls(tuple(text.split())))

    def union(self, other: Scope) -> Scope:
        """Both scopes, with the actions for the same resource joined in one entry."""
        actions: dict[str, set[str]] = {}
        opaque: set[str] = set()
        for entry in (*self.entries, *other.entries):
            resource, _, wanted = entry.rpartition(":")
            if ":" in resource:
                actions.setdefault(resource, set()).update(filter(None, wanted.split(",")))
            else:
                opaque.add(entry)
        joined = (f"{resource}:{','.join(sorted(wanted))}" for resource, wanted in actions.items())
        return Scope(tuple(sorted((*opaque, *joined))))

    def __str__(self) -> str:
        return " ".join(self.entries)
