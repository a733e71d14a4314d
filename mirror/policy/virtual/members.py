"""Which members of a virtual registry answer for a name, and in which order.

    a hosted member has the name, in any spelling ──> the hosted members that have it as it was asked, and nobody else
    the name is reserved for hosted members       ──> nobody
    otherwise                                     ──> the upstream members, in order

So a name that a hosted member has is never asked upstream, whatever the caller may do, whatever cannot be read, and
whether the tag exists. The members' order matters within each of the two kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mirror.errors import CredentialsRefused, MirrorError, NotFound, UpstreamDenied, UpstreamNotFound
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action
from mirror.policy.routing import LIBRARY, compile_pattern, full_name


@dataclass(frozen=True, slots=True)
class VirtualMember:
    """A registry that a virtual one stands for.

    `library`: a name of one part means `library/<name>` there. `hides`: a refusal (401, 403) does not say that a
    repository does not exist, because the registry is asked with credentials for which it could.
    """

    registry: str
    hosted: bool = False
    library: bool = False
    hides: bool = False

    def repo(self, name: str) -> Repo:
        """The repository of this member that a name means."""
        return Repo(self.registry, full_name(name, library=self.library))


@dataclass(frozen=True, slots=True)
class Answering:
    """The repositories that answer for a name, in order; none: the name is unknown. `owned`: a hosted member has the
    name, so these are hosted repositories.
    """

    repos: tuple[Repo, ...]
    owned: bool = False


@dataclass(frozen=True, slots=True)
class VirtualRules:
    """One virtual registry. `writable` is the hosted member that takes pushes. `reserved` are patterns of names that
    only hosted members may have.
    """

    name: str
    members: tuple[VirtualMember, ...]
    writable: str | None = None
    reserved: tuple[str, ...] = ()
    _hosted: tuple[VirtualMember, ...] = field(init=False, repr=False, compare=False)
    _upstreams: tuple[VirtualMember, ...] = field(init=False, repr=False, compare=False)
    _has_library: bool = field(init=False, repr=False, compare=False)
    _reserved: tuple[Callable[[str], object], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_hosted", tuple(member for member in self.members if member.hosted))
        object.__setattr__(self, "_upstreams", tuple(member for member in self.members if not member.hosted))
        object.__setattr__(self, "_has_library", any(member.library for member in self.members))
        object.__setattr__(self, "_reserved", tuple(compile_pattern(one).fullmatch for one in self.reserved))

    def member(self, registry: str) -> VirtualMember:
        """The member of this name. Raises `KeyError`."""
        for member in self.members:
            if member.registry == registry:
                return member
        raise KeyError(registry)

    def spellings(self, name: str) -> tuple[str, ...]:
        """The names that mean the same repository at one of the members, the given one first."""
        if self._has_library and "/" not in name:
            return name, f"{LIBRARY}{name}"
        if self._has_library and name.startswith(LIBRARY) and name.count("/") == 1:
            return name, name.removeprefix(LIBRARY)
        return (name,)

    def answering(self, name: str, has: Callable[[Repo], bool]) -> Answering:
        """Who answers for a name. `has` tells whether a hosted repository exists, or has ever existed; what it raises
        is raised: nobody answers then.
        """
        spellings = self.spellings(name)
        exact: list[Repo] = []
        owned = False
        for member in self._hosted:
            for spelling in spellings:
                if has(repo := Repo(member.registry, spelling)):
                    owned = True
                    if spelling == name:
                        exact.append(repo)
        if owned:
            return Answering(tuple(exact), owned=True)
        if any(is_reserved(spelling) for is_reserved in self._reserved for spelling in spellings):
            return Answering(())
        return Answering(tuple([member.repo(name) for member in self._upstreams]))

    def candidates(self, name: str, action: Action) -> tuple[Repo, ...]:
        """The repositories of which one may be meant: rules about them decide what a caller may do with the name. Only
        the writable member can be written to.
        """
        if action is Action.PULL:
            return tuple(member.repo(name) for member in self.members)
        repo = self.writable_repo(name)
        return () if repo is None else (repo,)

    def hosted_repos(self, name: str) -> tuple[Repo, ...]:
        """The repositories of the hosted members that a name means, whether they exist or not."""
        return tuple(member.repo(name) for member in self._hosted)

    def writable_repo(self, name: str) -> Repo | None:
        """The repository that takes pushes under a name; None if there is none."""
        return None if self.writable is None else Repo(self.writable, name)

    def meant(self, name: str, has: Callable[[Repo], bool]) -> Repo | None:
        """The repository that operators mean by a name: the first that answers for it and that `has` anything here.
        None if there is none.
        """
        return next((repo for repo in self.answering(name, has).repos if has(repo)), None)

    def in_the_way(self, name: str, has: Callable[[Repo], bool]) -> Repo | None:
        """The repository of a hosted member before the writable one that has the name: a push would be written where
        nobody reads it. None if there is none.
        """
        for member in self.members:
            if member.registry == self.writable:
                return None
            if member.hosted and has(Repo(member.registry, name)):
                return Repo(member.registry, name)
        return None

    def is_absent(self, registry: str, error: MirrorError) -> bool:
        """Whether this answer of a member says that it does not have what was asked, so that the next member may be
        asked. Any other error may hide that it has it.

        Public registries refuse anonymous callers (401, 403) for names that do not exist. To a caller with credentials
        they answer like this also once these credentials no longer suffice.
        """
        if isinstance(error, UpstreamDenied):
            return not isinstance(error, CredentialsRefused) and not self.member(registry).hides
        return isinstance(error, NotFound | UpstreamNotFound)
