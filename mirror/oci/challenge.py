"""How a registry says what it wants to see first: `WWW-Authenticate` and scopes.

Sources: RFC 9110, 11.6.1 (challenges), the distribution project's token specification (`Bearer` with `realm`,
`service` and `scope`), RFC 6750, 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Challenge", "Scope", "parse_challenges"]

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN68: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*(?=[ \t]*(?:,|$))")
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
#: Not the grammar's: some registries leave a URL unquoted.
_BARE: Final = re.compile(r"[^\s,\"]+")
_GAP: Final = re.compile(r"[ \t,]*")
_EQUALS: Final = re.compile(r"[ \t]*=[ \t]*")
#: A header line longer than this is not read to its end: nobody has that much to ask.
_LONGEST: Final = 16 * 1024


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to be let in. `scheme` and the names of `parameters` are lower case, values are as sent, unquoted."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def parse_challenges(lines: Iterable[str]) -> list[Challenge]:
    """All challenges of all `WWW-Authenticate` lines, in order; several may share one line.

    Of a repeated parameter the first counts. Where a line stops making sense the rest of it is left unread: what was
    read before stays, and nothing is raised, because the answer is an error already.
    """
    return [challenge for line in lines for challenge in _parse_line(line[:_LONGEST])]


def _parse_line(line: str) -> list[Challenge]:
    found: list[tuple[str, dict[str, str]]] = []
    at = _skip(_GAP, line, 0)
    while at < len(line) and (name := _TOKEN.match(line, at)):
        equals = _EQUALS.match(line, name.end())
        if equals and found:
            value, at = _value(line, equals.end())
            if value is None:
                break
            found[-1][1].setdefault(name[0].lower(), value)
        elif equals:
            break
        else:
            found.append((name[0].lower(), {}))
            at = _skip_token68(line, name.end())
        at = _skip(_GAP, line, at)
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def _value(line: str, at: int) -> tuple[str | None, int]:
    """A quoted string, or what stands there bare; None where it is neither."""
    if quoted := _QUOTED.match(line, at):
        return _ESCAPED.sub(r"\1", quoted[1]), quoted.end()
    if bare := _BARE.match(line, at):
        return bare[0], bare.end()
    return None, at


def _skip_token68(line: str, at: int) -> int:
    """`Negotiate abc==`: one blob in place of parameters, which only the scheme itself could read."""
    after = _skip(_GAP, line, at)
    if after > at and "," not in line[at:after] and (blob := _TOKEN68.match(line, after)):
        return blob.end()
    return at


def _skip(pattern: re.Pattern[str], line: str, at: int) -> int:
    found = pattern.match(line, at)
    return found.end() if found else at


@dataclass(frozen=True, slots=True)
class Scope:
    """What a token is to allow: entries such as `repository:library/redis:pull`, sorted, each resource once.

    Entries of another form (`aws` is one registry's whole scope) are kept as they are.
    """

    entries: tuple[str, ...] = ()

    @classmethod
    def pull(cls, name: str) -> Scope:
        """To pull from the repository of this name."""
        return cls((f"repository:{name}:pull",))

    @classmethod
    def parse(cls, text: str) -> Scope:
        """A challenge's `scope`: entries separated by blanks."""
        return cls().union(cls(tuple(text.split())))

    def union(self, other: Scope) -> Scope:
        """Both, with the actions of one resource joined in one entry."""
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
