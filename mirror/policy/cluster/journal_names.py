"""Which journal names the changes of a record. Pure.

    journals/names/<registry>/<name>    all records of a hosted repository, and that of its name; `!` for each `/`
    journals/operators                  pins, freezes and robots
    journals/state/<kind>               the JSON records of any other kind
    journals/lost                       the marks of lost blobs

The states of hosted blobs have no journal: nothing that is remembered of them is relied upon.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mirror.oci.reference import Repo

JOURNALS: Final = "journals/"
#: The folder of the journals of repositories.
OF_NAMES: Final = "journals/names/"
OPERATORS: Final = "journals/operators"
LOST: Final = "journals/lost"
_OF_STATE: Final = "journals/state/"
#: The kinds of records that operators change, and that decide about pulls.
OPERATED: Final = ("freezes", "pins", "robots")
_SLASH: Final = "!"


def of_repo(repo: Repo) -> str:
    """The journal of a repository."""
    return f"{OF_NAMES}{repo.registry}/{repo.name.replace('/', _SLASH)}"


def of_kind(kind: str) -> str:
    """The journal of the JSON records of a kind."""
    return OPERATORS if kind in OPERATED else f"{_OF_STATE}{kind}"


def of_key(key: str) -> str | None:
    """The journal of a record, or of a folder that ends with `/`; None if it has none."""
    first, _, rest = key.partition("/")
    if first == "repositories":
        path, found, _ = rest.partition("/_")
        registry, _, name = path.partition("/")
        return f"{OF_NAMES}{registry}/{name.replace('/', _SLASH)}" if found and name else None
    if first == "names":
        return f"{OF_NAMES}{rest}" if "/" in rest and not rest.endswith("/") else None
    if first == "state":
        return of_kind(rest.partition("/")[0])
    return LOST if key.startswith("states/lost/") else None


def repo_path(name: str) -> str | None:
    """The repository of a journal, as `<registry>/<name…>`; None if it is of none."""
    return name.removeprefix(OF_NAMES).replace(_SLASH, "/") if name.startswith(OF_NAMES) else None


def name_key(name: str) -> str | None:
    """The key of the record of the name of a journal's repository; None if it is of none."""
    return f"names/{name.removeprefix(OF_NAMES)}" if name.startswith(OF_NAMES) else None


def parts(name: str) -> Sequence[str]:
    """The parts of a journal's records, as `folder_in` says them."""
    if name.startswith(OF_NAMES):
        return ("_blobs", "_deleted", "_deleted_tags", "_history", "_manifests", "_referrers", "_tags")
    if name == LOST:
        return ("states/lost",)
    return tuple(f"state/{kind}" for kind in (OPERATED if name == OPERATORS else (name.removeprefix(_OF_STATE),)))


def folder_in(name: str, key: str) -> str:
    """The part of a journal's records in which this one is, such as `_tags`: names are listed for a whole part."""
    if name.startswith(OF_NAMES):
        return "_" + key.partition("/_")[2].partition("/")[0]
    return "/".join(key.split("/")[:2])


def ranges(name: str) -> Sequence[tuple[str, str]]:
    """The records of a journal: those whose keys are between two others. That of a repository's name is not among them:
    `name_key` has it.
    """
    path = repo_path(name)
    if path is not None:
        # "`" is behind "_", and no part of a name begins with either
        return ((f"repositories/{path}/_", f"repositories/{path}/`"),)
    if name == LOST:
        return (("states/lost/", "states/lost0"),)
    kinds = OPERATED if name == OPERATORS else (name.removeprefix(_OF_STATE),)
    return tuple((f"state/{kind}/", f"state/{kind}0") for kind in kinds)
