"""The keys of the records of repositories: paths below the root of a store, which `store/local/layout.py` draws."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from mirror.errors import RequestError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo, check_name, check_registry

#: The folder of all records of repositories.
REPOSITORIES: Final = "repositories"
#: The folders whose records make a repository one that is listed.
LISTED: Final = ("_tags", "_manifests")


def repository(repo: Repo) -> str:
    """The folder of a repository."""
    return f"repositories/{repo.registry}/{repo.name}"


def tags(repo: Repo) -> str:
    return f"repositories/{repo.registry}/{repo.name}/_tags"


def history(repo: Repo) -> str:
    return f"repositories/{repo.registry}/{repo.name}/_history"


def manifests(repo: Repo) -> str:
    return f"repositories/{repo.registry}/{repo.name}/_manifests"


def links(repo: Repo) -> str:
    return f"repositories/{repo.registry}/{repo.name}/_blobs"


def referrers(repo: Repo, subject: Digest) -> str:
    """The folder of the referrers of one subject."""
    return f"repositories/{repo.registry}/{repo.name}/_referrers/{file_name(subject)}"


def deleted_manifests(repo: Repo) -> str:
    return f"repositories/{repo.registry}/{repo.name}/_deleted"


def deleted_tags(repo: Repo) -> str:
    return f"repositories/{repo.registry}/{repo.name}/_deleted_tags"


def file_name(digest: Digest) -> str:
    """The name of a record or file about a digest, where one folder has them all."""
    return f"{digest.algorithm}-{digest.hex}"


def digest_from(name: str) -> Digest | None:
    """The digest of a record called `<algorithm>-<hex>`; None for any other name."""
    try:
        return Digest.parse(name.replace("-", ":", 1))
    except RequestError:
        return None


def repo_from(path: str) -> Repo | None:
    """The repository of a path `<registry>/<name…>`; None if that is none."""
    registry, _, name = path.partition("/")
    with suppress(RequestError):
        return Repo(check_registry(registry), check_name(name))
    return None
