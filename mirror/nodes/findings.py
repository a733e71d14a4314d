"""The findings of an examination, and the judgements that need no access to a machine: values in, findings out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from mirror.nodes.plan import Asked, MirrorUrl
from mirror.values.sizes import Capacity, format_size

_DAY: Final = 86400.0
#: Automatic renewal happens a month before the end; a fortnight leaves enough time to renew a certificate by hand.
_EXPIRES_SOON: Final = 14 * _DAY
#: Seconds. The ages of tags and the lifetimes of tokens are compared between machines.
_CLOCK_WARNS, _CLOCK_FAILS = 5.0, 60.0
#: Open files: a pull of many layers takes a few dozen, and each client takes some more.
_FEW_FILES: Final = 4096
#: Part of the pulls that a registry allows: below it, the mirror trusts cached tags for longer.
_FEW_PULLS: Final = 0.25
#: Seconds after which a backup is an old one.
_OLD: Final = 2 * _DAY
#: Part of a quota that should not be used up.
_FULL: Final = 0.9
#: Part of the disk's inodes that should be free at the least.
_FEW_INODES: Final = 0.05


class Level(Enum):
    """How bad a finding is. A warning may become a problem, or is a problem for some clients only."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was examined, the result in one line, and advice if the result is not good."""

    what: str
    level: Level
    text: str
    advice: str = ""


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level of the findings; `OK` if there are none."""
    return max((finding.level for finding in findings), key=list(Level).index, default=Level.OK)


def judge_certificate_age(names: str, begins: float, ends: float, now: float) -> Finding:
    """Whether a certificate is valid, and for how long. The times are seconds since the epoch; `names` is shown."""
    remaining = ends - now
    if now < begins:
        return Finding("certificate", Level.PROBLEM, f"for {names}: not valid yet", "check this machine's clock")
    if remaining <= 0:
        text = f"for {names}: expired {_span(-remaining)} ago"
        return Finding("certificate", Level.PROBLEM, text, "renew it, and reload the mirror (SIGHUP)")
    text = f"for {names}: valid for another {_span(remaining)}"
    if remaining < _EXPIRES_SOON:
        return Finding("certificate", Level.WARNING, text, "renew it soon, and reload the mirror (SIGHUP)")
    return Finding("certificate", Level.OK, text)


def judge_clock(skew: float, whose: str = "the mirror's", what: str = "clock") -> Finding:
    """Whether two clocks agree. `skew` is how far this machine's clock is ahead of the other one, in seconds, to the
    precision of an HTTP date (whole seconds).
    """
    text = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {whose}" if abs(skew) >= 2 else f"same as {whose}"
    level = Level.PROBLEM if abs(skew) >= _CLOCK_FAILS else Level.WARNING if abs(skew) >= _CLOCK_WARNS else Level.OK
    advice = "" if level is Level.OK else "synchronise the clocks of both: certificates and tokens depend on them"
    return Finding(what, level, text, advice)


def judge_client(client: str, asked: Asked, registry: str, mirror: MirrorUrl, *, demanded: bool) -> Finding:
    """Whether a client asks this mirror first. `demanded` means that the caller named the client."""
    what = f"client {client}"
    ours = [number for number, url in enumerate(asked.endpoints) if mirror.is_at(url)]
    advice = f"mirror configure {client} {mirror} --apply"
    if not ours:
        others = f"asks {asked.endpoints[0]} instead" if asked.endpoints else "asks the registry itself"
        level = Level.PROBLEM if demanded or asked.endpoints else Level.WARNING
        return Finding(what, level, f"{registry}: bypasses this mirror: {others} ({asked.where})", advice)
    if asked.trouble:
        return Finding(what, Level.PROBLEM, "; ".join(asked.trouble), advice)
    if asked.doubts:
        return Finding(what, Level.WARNING, "; ".join(asked.doubts), advice)
    if ours[0] > 0:
        text = f"{registry}: asks {asked.endpoints[0]} before this mirror ({asked.where})"
        return Finding(what, Level.WARNING, text, "put this mirror first there")
    return Finding(what, Level.OK, f"{registry}: asks this mirror first ({asked.where})")


def judge_own_name(client: str, asked: Asked, mirror: MirrorUrl) -> Finding:
    """Whether a client can use images that have the mirror's own name."""
    what, address = f"client {client}", mirror.address
    advice = f"mirror configure {client} {mirror} --hosted --apply"
    # podman and CRI-O expect TLS everywhere, the others not on this machine
    if mirror.is_plain and not asked.named and not (mirror.is_loopback and client not in ("podman", "crio")):
        return Finding(
            what, Level.PROBLEM, f"{address}: would be asked by TLS, which it has not ({asked.where})", advice
        )
    if not asked.named and any(mirror.is_at(url) for url in asked.endpoints):
        text = f"{address}: taken for another registry, to be pulled through the mirror ({asked.where})"
        return Finding(what, Level.WARNING, text, advice)
    return Finding(what, Level.OK, f"{address}: asked by its own name")


def judge_room(total: int, free: int, stored: int, capacity: Capacity) -> Finding:
    """Whether the store's disk has room for its capacity. Sizes are in bytes; `stored` is the present size of
    the store.
    """
    wanted = capacity.of(total)
    text = f"{format_size(free)} of {format_size(total)} free, capacity {format_size(wanted)}"
    if free < 64 * 1024 * 1024:
        return Finding(
            "disk", Level.PROBLEM, text, "free some space: until then nothing is cached, and pushes are refused"
        )
    if wanted > free + stored:
        text += ": more than is left on the disk"
        return Finding("disk", Level.WARNING, text, "lower store.capacity, or move other data off this disk")
    return Finding("disk", Level.OK, text)


def judge_inodes(total: int, free: int) -> Finding:
    """Whether the store's disk has enough inodes. `total` is 0 on file systems without a fixed number of inodes."""
    if total == 0:
        return Finding("inodes", Level.OK, "no fixed number")
    text = f"{free} of {total} free"
    if free == 0:
        return Finding("inodes", Level.PROBLEM, text, "remove small files from this disk: nothing can be stored")
    if free < total * _FEW_INODES:
        return Finding("inodes", Level.WARNING, text, "remove small files from this disk")
    return Finding("inodes", Level.OK, text)


def judge_owners(root: Path, owner: int, users: Mapping[str, int]) -> Finding | None:
    """A problem if files in the store belong to a user other than `owner`, who owns the store's marker; else None.
    `users` maps paths to user ids.

    Only the owner of a file may read it. The mirror can neither read nor replace files that root left there, by a
    command or by starting the mirror as root.
    """
    foreign = sorted(path for path, user in users.items() if user != owner)
    if not foreign:
        return None
    more = f" (and {len(foreign) - 1} more)" if foreign[1:] else ""
    text = f"{foreign[0]}{more} belongs to user {users[foreign[0]]}, the store to user {owner}"
    return Finding("store", Level.PROBLEM, text, f"stop the mirror, then chown -R {owner} {root}")


def judge_budget(registry: str, limit: int, remaining: int, window: float) -> Finding:
    """Whether enough pulls are left: `remaining` of `limit` within `window` seconds, as the registry counts them."""
    what, text = f"budget {registry}", f"{remaining} of {limit} pulls left within {window / 3600:.0f} hours"
    if not remaining:
        return Finding(what, Level.PROBLEM, text, "only cached content is served: wait, or give the mirror an account")
    if remaining < limit * _FEW_PULLS:
        return Finding(what, Level.WARNING, text, "give the mirror an account there, or one with a higher limit")
    return Finding(what, Level.OK, text)


def judge_quota(scope: str, used: int | None, quota: int | None) -> Finding:
    """Whether a hosted registry, or a pattern of its repositories, has room for pushes. Sizes are in bytes; `used` is
    None while it is not known, `quota` if there is none.
    """
    what = f"hosted {scope}"
    if used is None:
        advice = "if it stays so, look for `ledger not completed` in the mirror's log"
        return Finding(what, Level.WARNING, "not known yet how full it is", advice)
    text = format_size(used) + (f" of {format_size(quota)}" if quota is not None else "")
    if quota is not None and used >= quota * _FULL:
        level = Level.PROBLEM if used >= quota else Level.WARNING
        return Finding(what, level, text, "delete images, or raise the quota: at the quota pushes are refused")
    return Finding(what, Level.OK, text)


def judge_backup(began_at: float | None, now: float) -> Finding:
    """Whether hosted images were backed up lately. Times are in epoch seconds; `began_at` is that of the last complete
    backup, None if there was none.
    """
    advice = "mirror backup FOLDER, each night; or snapshots of the whole file system, which this does not see"
    if began_at is None:
        return Finding("backup", Level.WARNING, "what is hosted was never backed up", advice)
    text = f"the last complete one began {_span(max(0.0, now - began_at))} ago"
    return (
        Finding("backup", Level.WARNING, text, advice) if now - began_at > _OLD else Finding("backup", Level.OK, text)
    )


def judge_files(hard: int) -> Finding:
    """Whether the hard limit of open files is high enough. Workers raise their soft limit to it."""
    if hard < _FEW_FILES:
        advice = "raise it (LimitNOFILE=65536 in a unit): each client and each download takes some"
        return Finding("open files", Level.WARNING, f"at most {hard}", advice)
    return Finding("open files", Level.OK, f"at most {hard}")


def _span(seconds: float) -> str:
    return f"{seconds / _DAY:.0f} days" if seconds >= 2 * _DAY else f"{seconds / 3600:.0f} hours"
