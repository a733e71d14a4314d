"""What an examination finds, and the verdicts that need no looking: plain values in, findings out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from mirror.nodes.plan import Asked, MirrorUrl
from mirror.values.sizes import Capacity, format_size

__all__ = [
    "Finding",
    "Level",
    "judge_budget",
    "judge_certificate_age",
    "judge_client",
    "judge_clock",
    "judge_files",
    "judge_inodes",
    "judge_owners",
    "judge_room",
    "worst",
]

_DAY: Final = 86400.0
#: Certificates are renewed a month ahead where that is automated, and a fortnight leaves time where it is not.
_EXPIRES_SOON: Final = 14 * _DAY
#: Seconds. A tag's age and a token's life are compared across machines.
_CLOCK_WARNS, _CLOCK_FAILS = 5.0, 60.0
#: A pull of many layers takes a few dozen, each client some more.
_FEW_FILES: Final = 4096
#: Part of the pulls that a registry allows: with less, the mirror begins to believe tags longer.
_FEW_PULLS: Final = 0.25
#: Part of the disk's inodes that should be free.
_FEW_INODES: Final = 0.05


class Level(Enum):
    """How bad it is. A warning may become a problem, or is one for some."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` was looked at, how it is in one line, and what to do where that is not good."""

    what: str
    level: Level
    text: str
    advice: str = ""


def worst(findings: Iterable[Finding]) -> Level:
    """The worst of them."""
    return max((one.level for one in findings), key=list(Level).index, default=Level.OK)


def judge_certificate_age(names: str, begins: float, ends: float, now: float) -> Finding:
    """All three in seconds since the epoch; `names` are those that it is for."""
    left = ends - now
    if now < begins:
        return Finding("certificate", Level.PROBLEM, f"for {names}: not valid yet", "check this machine's clock")
    if left <= 0:
        text = f"for {names}: expired {_span(-left)} ago"
        return Finding("certificate", Level.PROBLEM, text, "renew it, and reload the mirror (SIGHUP)")
    text = f"for {names}: valid for another {_span(left)}"
    if left < _EXPIRES_SOON:
        return Finding("certificate", Level.WARNING, text, "renew it soon, and reload the mirror (SIGHUP)")
    return Finding("certificate", Level.OK, text)


def judge_clock(skew: float, whose: str = "the mirror's", what: str = "clock") -> Finding:
    """`skew` in seconds: how far this machine is ahead of another's, as far as a header of whole seconds tells."""
    text = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {whose}" if abs(skew) >= 2 else f"as {whose}"
    level = Level.PROBLEM if abs(skew) >= _CLOCK_FAILS else Level.WARNING if abs(skew) >= _CLOCK_WARNS else Level.OK
    advice = "" if level is Level.OK else "see to time synchronisation on both: certificates and tokens depend on it"
    return Finding(what, level, text, advice)


def judge_client(client: str, asked: Asked, registry: str, mirror: MirrorUrl, *, demanded: bool) -> Finding:
    """Whether a client asks this mirror first. `demanded`: the caller named the client."""
    what = f"client {client}"
    ours = [number for number, one in enumerate(asked.endpoints) if mirror.is_at(one)]
    advice = f"mirror configure {client} {mirror} --apply"
    if not ours:
        others = f"asks {asked.endpoints[0]} instead" if asked.endpoints else "goes to the registry itself"
        level = Level.PROBLEM if demanded or asked.endpoints else Level.WARNING
        return Finding(what, level, f"{registry}: goes around this mirror: {others} ({asked.where})", advice)
    if asked.trouble:
        return Finding(what, Level.PROBLEM, "; ".join(asked.trouble), advice)
    if asked.doubts:
        return Finding(what, Level.WARNING, "; ".join(asked.doubts), advice)
    if ours[0] > 0:
        text = f"{registry}: asks {asked.endpoints[0]} before this mirror ({asked.where})"
        return Finding(what, Level.WARNING, text, "put this mirror first there")
    return Finding(what, Level.OK, f"{registry}: asks this mirror first ({asked.where})")


def judge_room(total: int, free: int, held: int, capacity: Capacity) -> Finding:
    """Of the store's disk, in bytes; `held` is what is in the store already."""
    wanted = capacity.of(total)
    text = f"{format_size(free)} of {format_size(total)} free, capacity {format_size(wanted)}"
    if free < 64 * 1024 * 1024:
        return Finding("disk", Level.PROBLEM, text, "free space: pulls go through uncached until there is some")
    if wanted > free + held:
        text += ": more than the disk has left"
        return Finding("disk", Level.WARNING, text, "lower store.capacity, or move away what else is on this disk")
    return Finding("disk", Level.OK, text)


def judge_inodes(total: int, free: int) -> Finding:
    """Of the store's disk; file systems without a fixed number say 0."""
    if total == 0:
        return Finding("inodes", Level.OK, "as many as there is room for")
    text = f"{free} of {total} free"
    if free == 0:
        return Finding("inodes", Level.PROBLEM, text, "remove small files from this disk: nothing can be stored")
    if free < total * _FEW_INODES:
        return Finding("inodes", Level.WARNING, text, "remove small files from this disk")
    return Finding("inodes", Level.OK, text)


def judge_owners(root: Path, owner: int, users: Mapping[str, int]) -> Finding | None:
    """`users` own what lies in a store whose marker is `owner`'s. Files are readable for their owner alone: what root
    has left there, by a command or by a start that was none of its business, the mirror can neither read nor replace.
    """
    strangers = sorted(path for path, user in users.items() if user != owner)
    if not strangers:
        return None
    more = f" (and {len(strangers) - 1} more)" if strangers[1:] else ""
    text = f"{strangers[0]}{more} belongs to user {users[strangers[0]]}, the store to user {owner}"
    return Finding("store", Level.PROBLEM, text, f"stop the mirror, then chown -R {owner} {root}")


def judge_budget(registry: str, limit: int, remaining: int, window: float) -> Finding:
    """`remaining` of `limit` pulls within `window` seconds, as the registry counts them."""
    what, text = f"budget {registry}", f"{remaining} of {limit} pulls left within {window / 3600:.0f} hours"
    if not remaining:
        return Finding(what, Level.PROBLEM, text, "what is cached is served; for more, wait, or give it an account")
    if remaining < limit * _FEW_PULLS:
        return Finding(what, Level.WARNING, text, "give the mirror an account there, or one that may pull more")
    return Finding(what, Level.OK, text)


def judge_files(hard: int) -> Finding:
    """The hard limit of open files, to which workers raise their own."""
    if hard < _FEW_FILES:
        advice = "raise it (LimitNOFILE=65536 in a unit): each client and each download takes some"
        return Finding("open files", Level.WARNING, f"at most {hard}", advice)
    return Finding("open files", Level.OK, f"at most {hard}")


def _span(seconds: float) -> str:
    return f"{seconds / _DAY:.0f} days" if seconds >= 2 * _DAY else f"{seconds / 3600:.0f} hours"
