"""Who may do what with which repository. Pure: identities and rules in, a verdict out.

A request is decided in this order, whatever order the rules stand in:

    1. a rule that denies fits            no
    2. a rule that allows fits            yes
    3. there are rules that allow it      no: to somebody else, or elsewhere
    4. there are none                     pull: whoever was let in; push and administration: nobody

What one may not see does not exist: the caller turns a refusal into the answer for an unknown name, or, for somebody
who has not said who they are, into the question who they are. Both are the same for names that do exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from mirror.oci.authorization import CallerCredentials
from mirror.oci.reference import Repo
from mirror.policy.routing import compile_pattern

__all__ = ["ANONYMOUS", "Action", "AuthMethod", "Identity", "Policy", "Rule", "actions", "check_who"]


class Action(Enum):
    """What a rule is about."""

    PULL = "pull"
    PUSH = "push"
    ADMIN = "admin"


class AuthMethod(Enum):
    """How somebody said who they are."""

    ANONYMOUS = "anonymous"
    PASSWORD = "password"  # noqa: S105  # a kind, not a password
    TOKEN = "token"  # noqa: S105  # likewise
    ISSUER = "issuer"
    CERTIFICATE = "certificate"
    #: With credentials of their own for an upstream, which only that upstream can judge.
    UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class Identity:
    """Somebody who was let in. `name` is unique within its means: an account's name, a token's, a JWT's subject."""

    name: str
    means: AuthMethod
    groups: frozenset[str] = frozenset()
    #: The credentials for an upstream, of those who came with such; never shown.
    own: CallerCredentials | None = field(default=None, repr=False)

    @property
    def is_anonymous(self) -> bool:
        """Whether they have not said who they are."""
        return self.means is AuthMethod.ANONYMOUS

    def __str__(self) -> str:
        return "anonymous" if self.is_anonymous else f"{_KINDS[self.means]}:{self.name}"


ANONYMOUS: Final = Identity("", AuthMethod.ANONYMOUS)

#: What stands before the colon in a rule's `who`.
_KINDS: Final = {
    AuthMethod.PASSWORD: "user",
    AuthMethod.TOKEN: "token",
    AuthMethod.ISSUER: "subject",
    AuthMethod.CERTIFICATE: "certificate",
    AuthMethod.UPSTREAM: "upstream",
}
_WHO: Final = re.compile(r"\*|anonymous|authenticated|(?:user|token|subject|certificate|upstream|group):\S(?:.*\S)?")


def check_who(text: str) -> str:
    """One entry of a rule's `who`. Raises `ValueError`."""
    if not _WHO.fullmatch(text):
        raise ValueError(
            f"{text!r} is none of *, anonymous, authenticated, and user, token, subject, certificate, upstream or group"
            " with a colon and a name"
        )
    return text


@dataclass(frozen=True, slots=True)
class Rule:
    """`who` are entries as `check_who` takes them (`*` within a name stands for anything), `match` are patterns over
    `registry/name` as routes have them; none means every repository.
    """

    allow: bool
    who: tuple[str, ...]
    actions: frozenset[Action]
    match: tuple[str, ...] = ()
    name: str = ""
    _names: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)
    _repositories: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # a name may hold slashes (certificates' subjects, service accounts): `*` goes over them
        names = tuple(
            re.compile(".*".join(re.escape(part) for part in check_who(one).split("*")), re.DOTALL)
            for one in self.who
            if one not in ("*", "anonymous", "authenticated")
        )
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_repositories", tuple(compile_pattern(one) for one in self.match))

    def fits(self, identity: Identity, action: Action, repo: Repo | None) -> bool:
        """Whether this rule is about that. `repo` None: about the mirror as a whole, which only rules without patterns
        are.
        """
        return action in self.actions and self._is_about(identity) and self._covers(repo)

    def _is_about(self, identity: Identity) -> bool:
        if "*" in self.who:
            return True
        if identity.is_anonymous:
            return "anonymous" in self.who
        if "authenticated" in self.who:
            return True
        called = [str(identity), *(f"group:{group}" for group in identity.groups)]
        return any(pattern.fullmatch(one) for pattern in self._names for one in called)

    def _covers(self, repo: Repo | None) -> bool:
        if not self._repositories:
            return True
        return repo is not None and any(pattern.fullmatch(str(repo)) for pattern in self._repositories)


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules. `anonymous` says whether those who have not said who they are are let in at all."""

    rules: tuple[Rule, ...] = ()
    anonymous: bool = True

    def allows(self, identity: Identity, action: Action, repo: Repo | None) -> bool:
        """The verdict."""
        if identity.is_anonymous and not self.anonymous:
            return False
        about = [rule for rule in self.rules if action in rule.actions]
        if any(not rule.allow and rule.fits(identity, action, repo) for rule in about):
            return False
        if any(rule.allow and rule.fits(identity, action, repo) for rule in about):
            return True
        return action is Action.PULL and not any(rule.allow for rule in about)


def actions(names: Iterable[str]) -> frozenset[Action]:
    """Out of a configuration. Raises `ValueError`."""
    return frozenset(Action(name) for name in names)
