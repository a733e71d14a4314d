"""The scopes that clients ask the token endpoint for (distribution's token specification, "Scope Documentation").

    scope=repository:corp/team/app:pull,push&scope=repository:docker.io/library/alpine:pull
    scope=repository:corp/team/app:pull,push repository:docker.io/library/alpine:pull

A name is written as in a path of the API. It may contain colons (`localhost:5000/app`), so the actions follow the last
one. What is not known here is asked in vain: the token does not cover it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

from mirror.errors import NotFound, RequestError
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action, Scope

#: More than a push with mounts from many repositories asks for.
MOST: Final = 100
_SCOPE: Final = re.compile(r"(?P<type>[a-z]+)(?:\([a-z0-9]+\))?:(?P<name>[^ ]+):(?P<actions>[a-z,*]*)")
_ALL: Final = (Action.PULL, Action.PUSH, Action.DELETE)
_ACTIONS: Final = {action.value: (action,) for action in _ALL} | {"*": _ALL}


def asked_scope(texts: Iterable[str], repository: Callable[[str], Repo]) -> Scope | None:
    """What is asked for by the values of all `scope` parameters; None if there are none, or only empty ones.

    `repository` returns the repository that a name means. Raises `RequestError` if there are too many scopes.
    """
    scopes = [scope for text in texts for scope in text.split(" ") if scope]
    if len(scopes) > MOST:
        raise RequestError(f"more than {MOST} scopes")
    if not scopes:
        return None
    grants: set[tuple[Repo, Action]] = set()
    for match in filter(None, map(_SCOPE.fullmatch, scopes)):
        if match["type"] == "repository" and (repo := _named(match["name"], repository)) is not None:
            names = match["actions"].split(",")
            grants.update((repo, action) for name in names for action in _ACTIONS.get(name, ()))
    return Scope(frozenset(grants), catalog="registry:catalog:*" in scopes)


def _named(name: str, repository: Callable[[str], Repo]) -> Repo | None:
    try:
        return repository(name)
    except (RequestError, NotFound):
        return None
