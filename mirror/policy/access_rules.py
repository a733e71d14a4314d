"""Which identity may do what with which repository. Pure functions of identities and rules.

The order of the rules does not matter. An action is decided by the first of these that applies:

    1. a deny rule fits                         refused
    2. an allow rule fits                       allowed
    3. other allow rules name the action        refused: they are for other identities or other repositories
    4. no allow rule names the action           pull is allowed to every admitted identity; push and admin to none

A refusal must not reveal whether a repository exists. So it is answered like a request for an unknown name, or, if the
client has not authenticated, with an authentication challenge. Both answers are the same for existing and unknown
names.
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


class Action(Enum):
    """What a rule allows or denies."""

    PULL = "pull"
    #: Upload blobs and manifests, and make new tags.
    PUSH = "push"
    #: Move a tag that exists to another manifest.
    OVERWRITE = "overwrite"
    DELETE = "delete"
    ADMIN = "admin"


class AuthMethod(Enum):
    """How an identity was authenticated."""

    ANONYMOUS = "anonymous"
    PASSWORD = "password"  # noqa: S105  # a kind, not a password
    TOKEN = "token"  # noqa: S105  # a kind, not a token
    ISSUER = "issuer"
    CERTIFICATE = "certificate"
    #: By the caller's own credentials for an upstream, which only that upstream can check.
    UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller who was admitted. `name` is unique for its `method`: of an account or token, a JWT's subject."""

    name: str
    method: AuthMethod
    groups: frozenset[str] = frozenset()
    #: The caller's own credentials for an upstream, if `means` is `UPSTREAM`; never shown.
    own: CallerCredentials | None = field(default=None, repr=False)

    @property
    def is_anonymous(self) -> bool:
        """Whether the caller presented no credentials."""
        return self.method is AuthMethod.ANONYMOUS

    def __str__(self) -> str:
        return "anonymous" if self.is_anonymous else f"{_KINDS[self.method]}:{self.name}"


ANONYMOUS: Final = Identity("", AuthMethod.ANONYMOUS)

#: The prefix before the colon in a rule's `callers`.
_KINDS: Final = {
    AuthMethod.PASSWORD: "user",
    AuthMethod.TOKEN: "token",
    AuthMethod.ISSUER: "subject",
    AuthMethod.CERTIFICATE: "certificate",
    AuthMethod.UPSTREAM: "upstream",
}
_CALLER: Final = re.compile(r"\*|anonymous|authenticated|(?:user|token|subject|certificate|upstream|group):\S(?:.*\S)?")


def check_caller(text: str) -> str:
    """Return one entry of a rule's `callers` unchanged. Raises `ValueError` if it is invalid."""
    if not _CALLER.fullmatch(text):
        raise ValueError(
            f"{text!r} is none of *, anonymous, authenticated, and user, token, subject, certificate, upstream or group"
            " with a colon and a name"
        )
    return text


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the access policy.

    `callers` has entries that `check_caller` accepts; `*` within a name stands for any characters. `match` has patterns
    for `registry/name`, as in routes; an empty one means every repository.
    """

    allow: bool
    callers: tuple[str, ...]
    actions: frozenset[Action]
    match: tuple[str, ...] = ()
    name: str = ""
    _names: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)
    _repositories: tuple[re.Pattern[str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # names may contain slashes (certificate subjects, service accounts), and `*` matches slashes too
        names = tuple(
            re.compile(".*".join(re.escape(part) for part in check_caller(caller).split("*")), re.DOTALL)
            for caller in self.callers
            if caller not in ("*", "anonymous", "authenticated")
        )
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_repositories", tuple(compile_pattern(pattern) for pattern in self.match))

    def fits(self, identity: Identity, action: Action, repo: Repo | None) -> bool:
        """Whether this rule applies to the identity, action and repository.

        `repo` None means the mirror as a whole; only rules without patterns apply to that.
        """
        return action in self.actions and self._is_about(identity) and self._covers(repo)

    def _is_about(self, identity: Identity) -> bool:
        if "*" in self.callers:
            return True
        if identity.is_anonymous:
            return "anonymous" in self.callers
        if "authenticated" in self.callers:
            return True
        names = [str(identity), *(f"group:{group}" for group in identity.groups)]
        return any(pattern.fullmatch(name) for pattern in self._names for name in names)

    def _covers(self, repo: Repo | None) -> bool:
        if not self._repositories:
            return True
        return repo is not None and any(pattern.fullmatch(str(repo)) for pattern in self._repositories)


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules. `anonymous` says whether callers without credentials are admitted at all."""

    rules: tuple[Rule, ...] = ()
    anonymous: bool = True

    def allows(self, identity: Identity, action: Action, repo: Repo | None) -> bool:
        """Whether the identity may do this with the repository (None: the mirror as a whole)."""
        if identity.is_anonymous and not self.anonymous:
            return False
        about = [rule for rule in self.rules if action in rule.actions]
        if any(not rule.allow and rule.fits(identity, action, repo) for rule in about):
            return False
        if any(rule.allow and rule.fits(identity, action, repo) for rule in about):
            return True
        return action is Action.PULL and not any(rule.allow for rule in about)


def actions(names: Iterable[str]) -> frozenset[Action]:
    """The actions that a configuration names. Raises `ValueError`."""
    return frozenset(Action(name) for name in names)
