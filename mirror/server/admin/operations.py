"""All operations of the admin API in one table, and the OpenAPI document made from it.

Requests are looked up in the same table, so a path that is not in the document does not exist. The schemas of replies
are generated from the types that the replies have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from urllib.parse import unquote

from pydantic import Field, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from mirror.collection.collection_replies import CollectionJson, RoundJson
from mirror.events.event_replies import EventsJson, ResentJson
from mirror.inspect.as_json import ImageDetailJson, PinJson, PinsJson, PurgedJson, VictimsJson
from mirror.prefetch.job_record import JobJson
from mirror.replication.copy_order import CopyBody
from mirror.replication.copy_run import CopiedJson
from mirror.retention.retention_replies import RetentionJson, RetentionPlanJson, RetentionRoundJson
from mirror.server.admin.hosted_admin import DamagedBlobsJson, DeletedJson, DeletionsJson, UndeletedJson
from mirror.server.admin.image_admin import ImagesJson, UnpinnedJson
from mirror.server.admin.mirror_status import CachesJson, FlightsJson, StatusJson, UpstreamsJson
from mirror.server.admin.replies import (
    ClientsJson,
    ErrorsJson,
    JobsJson,
    PinBody,
    PrefetchBody,
    ReplicationJson,
    SyncRulesJson,
)
from mirror.server.admin.repository_list import RepositoriesJson
from mirror.server.admin.traffic_log import HistoryJson

PREFIX: Final = "/admin/v1"

Schema = Mapping[str, Any]

_TEXT: Final = {"type": "string"}

_Config = Annotated[dict[str, Any], Field(json_schema_extra={"required": ["server", "store", "upstream"]})]
_OpenApi = Annotated[dict[str, Any], Field(json_schema_extra={"required": ["openapi", "paths"]})]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `replies` are types by status; `query` are the query parameters; those in
    `query_required` must be given. `body` is the type of the request's body; `errors` are further statuses.
    `by_rights`: a caller who has logged in needs rights for the repositories that the request names, and none to
    administer.

    `path` is relative to the prefix. The value of a `{…}` in it may contain slashes, escaped or not, except for a
    job's.
    """

    name: str
    method: str
    path: str
    summary: str
    replies: Mapping[int, Any]
    query: Mapping[str, Schema] = field(default_factory=dict)
    query_required: tuple[str, ...] = ()
    body: Any = None
    body_required: bool = True
    errors: tuple[int, ...] = ()
    by_rights: bool = False

    @property
    def changes(self) -> bool:
        """True if the operation changes something."""
        return self.method != "GET"


OPERATIONS: Final = (
    Operation(
        "status",
        "GET",
        "/status",
        "Version, workers, how full the store is, and traffic since the start",
        {200: StatusJson},
    ),
    Operation("history", "GET", "/history", "Traffic of the last day, one point per minute", {200: HistoryJson}),
    Operation("flights", "GET", "/flights", "Downloads in progress, over all workers", {200: FlightsJson}),
    Operation("upstreams", "GET", "/upstreams", "The state of each upstream that is in use", {200: UpstreamsJson}),
    Operation("caches", "GET", "/caches", "How full the caches in memory are, in one worker", {200: CachesJson}),
    Operation(
        "images",
        "GET",
        "/images",
        "A page of the cached images",
        {200: ImagesJson},
        query={
            "search": {**_TEXT, "description": "A part of the name, or a pattern with `*` and `**`."},
            "after": {**_TEXT, "description": "The `next` of the previous page."},
            "limit": {"type": "integer", "minimum": 1, "maximum": 500, "default": 50},
        },
        errors=(400,),
    ),
    Operation("image", "GET", "/images/{image}", "All details of an image", {200: ImageDetailJson}, errors=(400, 404)),
    Operation(
        "purge",
        "DELETE",
        "/images/{image}",
        "Remove an image, with the blobs that no other image needs",
        {200: PurgedJson},
        errors=(400, 404, 409),
    ),
    Operation(
        "repositories",
        "GET",
        "/hosted",
        "A page of the hosted repositories, with their sizes",
        {200: RepositoriesJson},
        query={
            "search": {**_TEXT, "description": "A part of the name, or a pattern with `*` and `**`."},
            "after": {**_TEXT, "description": "The `next` of the previous page."},
            "limit": {"type": "integer", "minimum": 1, "maximum": 500, "default": 50},
        },
        errors=(400,),
    ),
    Operation(
        "delete",
        "DELETE",
        "/hosted/{image}",
        "Delete a hosted tag, image or repository",
        {200: DeletedJson},
        query={
            "repository": {
                "type": "boolean",
                "default": False,
                "description": "Delete everything in the repository that `image` then names, without tag and digest.",
            },
            "now": {
                "type": "boolean",
                "default": False,
                "description": "Delete the bytes at once; nothing can be undeleted then. Of a tag: the image that it"
                " points to, with all its tags.",
            },
            "force": {
                "type": "boolean",
                "default": False,
                "description": "Delete even what immutable tags need.",
            },
            "dry_run": {
                "type": "boolean",
                "default": False,
                "description": "Change nothing; tell what would be deleted.",
            },
        },
        errors=(400, 404),
    ),
    Operation(
        "deleted",
        "GET",
        "/deleted",
        "The hosted tags and images that were deleted and can be undeleted, the last deletion first",
        {200: DeletionsJson},
        query={
            "search": {**_TEXT, "description": "A part of the repository's name, or a pattern with `*` and `**`."},
            "limit": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 200},
        },
        errors=(400,),
    ),
    Operation(
        "damaged",
        "GET",
        "/damaged",
        "The damaged hosted blobs, with the repositories that lack them: a push of the same content repairs them",
        {200: DamagedBlobsJson},
        query={"limit": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 200}},
        errors=(400,),
    ),
    Operation(
        "undelete",
        "POST",
        "/deleted/{image}",
        "Undelete a hosted tag, image or repository",
        {200: UndeletedJson},
        query={"repository": {"type": "boolean", "default": False, "description": "Everything in the repository."}},
        errors=(400, 404),
    ),
    Operation(
        "pins",
        "GET",
        "/pins",
        "Images that are not evicted, because of a pin or a rule",
        {200: PinsJson},
        query={
            "state": {
                "type": "boolean",
                "default": False,
                "description": "Include `state`, `missing_digests` and `summary`; all manifests are read for them.",
            }
        },
        errors=(400,),
    ),
    Operation(
        "pin",
        "PUT",
        "/pins/{image}",
        "Pin an image",
        {200: PinJson},
        body=PinBody,
        body_required=False,
        errors=(400, 404, 409, 413),
    ),
    Operation(
        "unpin",
        "DELETE",
        "/pins/{image}",
        "Remove a pin that was set by hand",
        {200: UnpinnedJson},
        errors=(400, 404),
    ),
    Operation(
        "plan",
        "GET",
        "/eviction",
        "What the next eviction would remove",
        {200: VictimsJson},
        query={
            "bytes": {
                "type": "integer",
                "minimum": 1,
                "description": "How many bytes to free. Default: down to the low water mark.",
            },
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": 200,
                "description": "Number of images to list, the first to go. The search may stop early, and then counts"
                " only what it examined.",
            },
        },
        errors=(400,),
    ),
    Operation("evict", "POST", "/eviction", "Evict down to the low water mark", {200: VictimsJson}),
    Operation(
        "collection", "GET", "/collection", "The last round of collection of hosted content", {200: CollectionJson}
    ),
    Operation("collect", "POST", "/collection", "Do a round of collection now", {200: RoundJson}, errors=(409,)),
    Operation(
        "retention",
        "GET",
        "/retention",
        "The last round of retention of hosted images, and when the next one is due",
        {200: RetentionJson},
    ),
    Operation(
        "retain",
        "POST",
        "/retention",
        "Do a round of retention now",
        {200: RetentionRoundJson},
        query={"search": {**_TEXT, "description": "Only repositories like this: `corp/team/*`."}},
        errors=(400, 409),
    ),
    Operation(
        "retention_plan",
        "GET",
        "/retention/plan",
        "What a round of retention would do with one repository now, and why",
        {200: RetentionPlanJson},
        query={"repository": {**_TEXT, "description": "The repository: `corp/team/app`."}},
        query_required=("repository",),
        errors=(400,),
    ),
    Operation(
        "events",
        "GET",
        "/events",
        "The events that endpoints have not taken yet, the oldest first, and how many there are for each endpoint",
        {200: EventsJson},
        query={
            "endpoint": {**_TEXT, "description": "Only those for this endpoint."},
            "dead": {"type": "boolean", "description": "True: only dead ones; false: only those that wait."},
            "limit": {"type": "integer", "minimum": 1, "maximum": 10000, "default": 100},
        },
        errors=(400,),
    ),
    Operation(
        "resend",
        "POST",
        "/events/resend",
        "Send dead events again",
        {200: ResentJson},
        query={
            "id": {**_TEXT, "description": "Only the event of this id."},
            "endpoint": {**_TEXT, "description": "Only those for this endpoint."},
        },
        errors=(400,),
    ),
    Operation(
        "prefetch", "POST", "/prefetch", "Fetch images", {202: JobJson}, body=PrefetchBody, errors=(400, 413, 429)
    ),
    Operation(
        "copy",
        "POST",
        "/copies",
        "Copy an image, or all tags of a repository, into a hosted repository or to another registry",
        {200: CopiedJson},
        body=CopyBody,
        errors=(400, 404, 409, 413),
        by_rights=True,
    ),
    Operation("jobs", "GET", "/jobs", "All jobs, newest first", {200: JobsJson}),
    Operation("job", "GET", "/jobs/{job}", "A job, with its progress and result", {200: JobJson}, errors=(404,)),
    Operation(
        "cancel",
        "DELETE",
        "/jobs/{job}",
        "Cancel a job: 202 while it is ending, 200 once it has ended",
        {200: JobJson, 202: JobJson},
        errors=(404,),
    ),
    Operation("sync", "GET", "/sync", "The sync rules, with last result and next run", {200: SyncRulesJson}),
    Operation("run", "POST", "/sync/{rule}/run", "Run a sync rule now", {202: JobJson}, errors=(404, 409, 429)),
    Operation(
        "replication",
        "GET",
        "/replication",
        "The replication rules, with last result and next comparison",
        {200: ReplicationJson},
    ),
    Operation(
        "replicate",
        "POST",
        "/replication/{rule}/run",
        "Compare everything by a replication rule now",
        {202: JobJson},
        errors=(404, 409, 429),
    ),
    Operation(
        "clients",
        "GET",
        "/clients",
        "The configuration of each container client, for the registries that are configured here",
        {200: ClientsJson},
        query={
            "mirror": {
                **_TEXT,
                "description": "The URL at which clients reach the mirror. Default: the host of this request, with the"
                " port for pulls.",
            }
        },
        errors=(400,),
    ),
    Operation("config", "GET", "/config", "The effective value of every setting, without secrets", {200: _Config}),
    Operation("openapi", "GET", "/openapi.json", "This document", {200: _OpenApi}),
)


def _pattern(path: str) -> re.Pattern[str]:
    inner = re.sub(r"\\\{(\w+)\\\}", lambda name: "([^/]+)" if name[1] == "job" else "(.+)", re.escape(path))
    return re.compile(inner)


_PATTERNS: Final = tuple((_pattern(operation.path), operation) for operation in OPERATIONS)


def find(path: str) -> tuple[dict[str, Operation], str]:
    """The operations on a path (without its query) by method, and the unescaped value of the `{…}` in that path."""
    if not path.startswith(f"{PREFIX}/"):
        return {}, ""
    below = path.removeprefix(PREFIX)
    # the first match gives the value of the `{…}`
    matches = [(match, operation) for pattern, operation in _PATTERNS if (match := pattern.fullmatch(below))]
    value = next((unquote(match[1]) for match, _ in matches if match.groups()), "")
    return {operation.method: operation for _, operation in matches}, value


_STATUSES: Final = {
    400: "The body or a parameter is invalid; the message names every mistake",
    401: "Over TCP, if rules say who may administer the mirror: credentials are missing or wrong",
    403: "The caller may not do this, or the request comes from a page of another site",
    404: "There is no such image, pin, job or rule",
    409: "Not now: it is already running, the image is pinned or frozen, or it is hosted here",
    413: "The body is larger than 1 MiB",
    429: "A hundred jobs are waiting, or too many wrong passwords were tried",
    503: "The disk does not answer",
}


class _Schemas(GenerateJsonSchema):
    """Schemas without titles, that allow no other fields, named like their types without `Json`."""

    def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
        made = {**super().typed_dict_schema(schema), "additionalProperties": False}
        del made["title"]
        return made

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def normalize_name(self, name: str) -> str:
        return super().normalize_name(name).removesuffix("Json")


def openapi(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the whole API. Takes some tenths of a second."""
    types = {str(kind): kind for operation in OPERATIONS for kind in (*operation.replies.values(), operation.body)}
    types |= {str(ErrorsJson): ErrorsJson}
    made, defined = TypeAdapter.json_schemas(
        [(name, "serialization", TypeAdapter(kind)) for name, kind in types.items() if kind is not None],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Schemas,
    )
    schemas = {name: schema for (name, _), schema in made.items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        described = _described(operation, schemas)
        paths.setdefault(f"{PREFIX}{operation.path}", {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mirror, admin API",
            "version": version,
            "description": "Served on a listener of its own. Sizes are in bytes. Over TCP, a request that changes"
            " something needs the header `Mirror-Admin` with any value, which pages of other sites cannot send.",
        },
        "paths": paths,
        "components": {
            "schemas": defined["$defs"],
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{}, {"basic": []}, {"bearer": []}],
    }


def _described(operation: Operation, schemas: Mapping[str, Schema]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    parameters += [
        {"name": name, "in": "query", "required": name in operation.query_required, "schema": schema}
        for name, schema in operation.query.items()
    ]
    responses: dict[str, Any] = {
        str(status): {"description": operation.summary, "content": _json(schemas[str(kind)])}
        for status, kind in operation.replies.items()
    }
    for status in sorted({*operation.errors, 401, 403, 429, 503}):
        responses[str(status)] = {"description": _STATUSES[status], "content": _json(schemas[str(ErrorsJson)])}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": responses,
    }
    if operation.body is not None:
        body = _json(schemas[str(operation.body)])
        described["requestBody"] = {"required": operation.body_required, "content": body}
    return described


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
