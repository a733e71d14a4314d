"""Bodies of requests and replies of the admin API that belong to no other module."""

from __future__ import annotations

from typing import Annotated, Final, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from mirror.prefetch.job_record import JobJson
from mirror.prefetch.sync_rules import SyncRuleJson
from mirror.replication.replication_rules import ReplicationRuleJson
from mirror.values.json_types import about

#: Most images of one prefetch.
MOST_IMAGES: Final = 2000


class ErrorDetailJson(TypedDict):
    """Where to look further."""

    request: Annotated[str, about("The id of the request in the log.")]
    error: Annotated[str, about("The name of the error.")]


class ErrorJson(TypedDict):
    """An error, as the distribution specification defines it."""

    code: str
    message: str
    detail: ErrorDetailJson


class ErrorsJson(TypedDict):
    """Why the request failed."""

    errors: list[ErrorJson]


class PrefetchBody(TypedDict):
    """The images to fetch."""

    images: Annotated[list[str], Field(min_length=1, max_length=MOST_IMAGES)]
    platforms: Annotated[NotRequired[list[str]], about("As in `linux/amd64`; none: all.")]
    referrers: Annotated[NotRequired[bool], about("Fetch signatures, SBOMs and other referrers too.")]


class PinBody(TypedDict):
    """Why, and until when."""

    reason: NotRequired[str]
    until: Annotated[NotRequired[str | None], about("`2026-03-01`, a time, or `30d`; none: for good.")]


class JobsJson(TypedDict):
    """All jobs, newest first, without long lists."""

    jobs: list[JobJson]


class SyncRulesJson(TypedDict):
    """The sync rules, in the order of the configuration."""

    rules: list[SyncRuleJson]


class ReplicationJson(TypedDict):
    """The replication rules, in the order of the configuration."""

    rules: list[ReplicationRuleJson]


class ClientFileJson(TypedDict):
    """A configuration file of a client."""

    path: str
    content: str


class ClientJson(TypedDict):
    """The configuration of one kind of client."""

    client: str
    command: Annotated[str, about("Writes the files on the client's machine and keeps what is in them already.")]
    files: list[ClientFileJson]
    next_steps: Annotated[list[str], about("What makes the client read its files.")]
    notes: list[str]


class ClientsJson(TypedDict):
    """The configuration of every kind of client."""

    mirror: Annotated[str, about("The URL of the mirror in the files.")]
    clients: list[ClientJson]
