"""What a replication rule does with one tag. Pure decisions by what is here, what is there, and what was there last.

    here      there     last        the tag
    X         X         any         is the same
    X         absent    none, not X is put
    X         absent    X           was deleted there by somebody: it stays deleted until it moves here
    X         L         L           has moved here: it is moved there
    X         other     none        is somebody else's: a conflict, or moved if the rule overwrites
    X         other     not X       moved on both sides: the same
    X         other     X           has moved there, and not here: a conflict
    absent    L, put    L           was deleted here, if a record of that very deletion says so: deleted there
    absent    any       any         stays as it is there

`last` is what the rule has put there, or found there, at its last look. A tag that was moved by a caller who replicates
to this mirror is not sent on: two sites that replicate to each other would send it round for ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from mirror.errors import NameInvalid
from mirror.oci.attachments import is_attached
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, check_name
from mirror.policy.access_rules import with_stars
from mirror.policy.hosted.retention import RETENTION
from mirror.policy.routing import compile_pattern

#: A run deletes at most so many tags of a repository, or this share of those that were put there if that is more.
_MOST_DELETED: Final = 50
_SHARE_DELETED: Final = 0.2


class Deletes(Enum):
    """Which deletions a rule repeats in the other registry."""

    NEVER = "never"
    #: Those by callers and operators.
    CALLERS = "callers"
    #: Those by retention as well.
    ALL = "all"


class Step(Enum):
    """What is done with a tag in the other registry."""

    SAME = "same"
    PUT = "put"
    MOVE = "move"
    DELETE = "delete"
    #: Nothing: it was deleted there.
    DELETED_THERE = "deleted there"
    #: Nothing: it points to something that this rule has not put there.
    CONFLICT = "conflict"
    #: Nothing: it was moved here by replication from elsewhere.
    FROM_ELSEWHERE = "from elsewhere"
    #: Nothing: it is not here.
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class LastSeen:
    """What a tag pointed to in the other registry when a rule last looked, and whether the rule had put it there.

    `content` names all that belonged to the image then, referrers included; empty: not known.
    """

    digest: Digest
    put: bool
    content: str = ""


@dataclass(frozen=True, slots=True)
class HereTag:
    """A tag that is here, and who moved it last."""

    digest: Digest
    by: str = ""


@dataclass(frozen=True, slots=True)
class Deletion:
    """The record of a deletion: what the tag pointed to, and who deleted it."""

    digest: Digest
    by: str = ""


@dataclass(frozen=True, slots=True)
class TagRules:
    """What a rule says about tags. `tags` are patterns; tags made from digests go with their images, whatever the
    patterns. `not_moved_by` are callers as in access rules, with `*`.
    """

    tags: tuple[str, ...] = ("*",)
    overwrite: bool = False
    deletes: Deletes = Deletes.NEVER
    not_moved_by: tuple[str, ...] = ()
    _tags: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)
    _callers: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tags", tuple(compile_pattern(pattern) for pattern in self.tags))
        object.__setattr__(self, "_callers", tuple(map(with_stars, self.not_moved_by)))

    def covers(self, tag: str) -> bool:
        """Whether the rule is about this tag by itself."""
        return not is_attached(tag) and any(pattern.fullmatch(tag) for pattern in self._tags)

    def is_replicator(self, caller: str) -> bool:
        """Whether this caller replicates to this mirror."""
        return any(pattern.fullmatch(caller) for pattern in self._callers)

    def may_move(self, here: Digest, there: Digest, last: LastSeen | None) -> bool:
        """Whether a tag that points elsewhere there may be moved to what it points to here."""
        if last is not None and there == last.digest:
            return True
        return self.overwrite and (last is None or last.digest != here)


def decide(
    rules: TagRules, here: HereTag | None, there: Digest | None, last: LastSeen | None, deletion: Deletion | None = None
) -> Step:
    """What to do with a tag. `deletion` is the record of its deletion, if it is not here."""
    if here is None:
        return Step.DELETE if _is_deleted(rules, there, last, deletion) else Step.LEAVE
    if here.digest == there:
        return Step.SAME
    if rules.is_replicator(here.by):
        return Step.FROM_ELSEWHERE
    if there is None:
        return Step.DELETED_THERE if last is not None and last.digest == here.digest else Step.PUT
    return Step.MOVE if rules.may_move(here.digest, there, last) else Step.CONFLICT


def _is_deleted(rules: TagRules, there: Digest | None, last: LastSeen | None, deletion: Deletion | None) -> bool:
    """Whether a deletion here is to be repeated: on positive evidence alone, and only of what the rule has put."""
    if rules.deletes is Deletes.NEVER or last is None or not last.put or there != last.digest:
        return False
    if deletion is None or deletion.digest != last.digest or rules.is_replicator(deletion.by):
        return False
    return deletion.by != RETENTION or rules.deletes is Deletes.ALL


def may_delete(count: int, known: int) -> bool:
    """Whether a run may delete `count` tags of a repository in which `known` tags were put. One that would delete more
    deletes none, and asks: something may be wrong here.
    """
    return count <= max(_MOST_DELETED, int(known * _SHARE_DELETED))


def target_name(repo: Repo, rename: Mapping[str, str]) -> str:
    """The repository's name in the other registry: the longest beginning that `rename` has is replaced. Raises
    `NameInvalid`.
    """
    begins = max((begin for begin in rename if repo.name.startswith(begin)), key=len, default=None)
    name = repo.name if begins is None else rename[begins] + repo.name.removeprefix(begins)
    try:
        return check_name(name)
    except NameInvalid as error:
        raise NameInvalid(f"{repo} would be called {name!r} there: {error}") from error
