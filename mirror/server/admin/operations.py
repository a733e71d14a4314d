"""All operations of the admin API in one table, and the OpenAPI document made from it.

Requests are looked up in the same table, so a path that is not in the document does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

PREFIX: Final = "/admin/v1"

Schema = Mapping[str, Any]

_TEXT: Final = {"type": "string"}
_MAYBE_TEXT: Final = {"type": ["string", "null"]}
_TIME: Final = {"type": ["string", "null"], "format": "date-time"}
_COUNT: Final = {"type": "integer", "minimum": 0}
_BYTES: Final = {"type": "integer", "minimum": 0, "description": "bytes"}
_MAYBE_BYTES: Final = {"type": ["integer", "null"], "description": "bytes; null: not known yet"}
_SECONDS: Final = {"type": "number", "minimum": 0, "description": "seconds"}
_BOOL: Final = {"type": "boolean"}
_ANY: Final = {"type": "object"}


def _object(optional: tuple[str, ...] = (), /, **properties: Schema) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _nullable(schema: Schema) -> Schema:
    return {"oneOf": [schema, {"type": "null"}]}


_TRAFFIC: Final[dict[str, Schema]] = {
    "requests": {**_COUNT, "description": "for manifests and blobs, that were answered"},
    "hits": {**_COUNT, "description": "of them without a download of their own"},
    "hit_ratio": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "sent": {**_BYTES, "description": "bytes to clients"},
    "received": {**_BYTES, "description": "bytes of blobs from upstreams"},
    "saved": {**_BYTES, "description": "bytes that upstreams did not have to send"},
}
_IMAGE: Final[dict[str, Schema]] = {
    "image": _TEXT,
    "repository": _TEXT,
    "tag": _MAYBE_TEXT,
    "digest": _TEXT,
    "mediaType": _TEXT,
    "complete": {**_BOOL, "description": "can be pulled without an upstream"},
    "emptied": {**_BOOL, "description": "manifests alone are here; their blobs were evicted, or never pulled"},
    "platforms": _list(_TEXT),
    "size": {**_BYTES, "description": "bytes that are here"},
    "missing": {**_COUNT, "description": "blobs that are not"},
    "lastPull": _TIME,
    "pinned": _BOOL,
    "frozen": {**_BOOL, "description": "a tag that does not move answers it, so that it stays"},
}

#: A dict, because `as` is a Python keyword.
_WHY: Final[dict[str, Schema]] = {"as": _TEXT, "reason": _TEXT, "rule": _MAYBE_TEXT, "until": _TIME}

#: A dict, because `from` is a Python keyword.
_RULE: Final[dict[str, Schema]] = {
    "name": _TEXT,
    "from": {**_TEXT, "description": "the repository"},
    "tags": {**_TEXT, "description": "which of them"},
    "when": _TEXT,
    "platforms": _list(_TEXT),
    "referrers": _BOOL,
    "every_replica": _BOOL,
    "state": _TEXT,
    "progress": _nullable(_ANY),
    "started": _TIME,
    "ended": _TIME,
    "by": {**_MAYBE_TEXT, "description": "the schedule, a job, or a hand"},
    "result": {
        **_nullable(_ANY),
        "description": "of the last run; `error`, or `failures` and `stale`, where it failed",
    },
    "failed_in_a_row": _COUNT,
    "succeeded": _TIME,
    "next": _TIME,
}

_SCHEMAS: Final[Mapping[str, Schema]] = {
    "Errors": _object(
        errors=_list(
            _object(code=_TEXT, message=_TEXT, detail=_object(request=_TEXT, error=_TEXT)),
        )
    ),
    "Status": _object(
        version=_TEXT,
        worker={**_COUNT, "description": "process id of the one that answers"},
        uptime=_SECONDS,
        workers=_list(_object(worker=_COUNT, uptime=_SECONDS, flights=_COUNT)),
        store=_object(
            root=_TEXT,
            bytes=_MAYBE_BYTES,
            limit=_MAYBE_BYTES,
            quarantine={**_BYTES, "description": "of damaged blobs that were set aside, besides"},
            failing={**_COUNT, "description": "workers whose store did not take what it was last given"},
        ),
        index=_object(trouble={**_MAYBE_TEXT, "description": "why the index is of no use; null: it is"}),
        flights={**_COUNT, "description": "downloads under way, of all workers"},
        traffic=_object(**_TRAFFIC),
        offline={**_BOOL, "description": "sealed mirror contacts no upstream"},
    ),
    "History": _object(every=_SECONDS, points=_list(_object(at={"type": "number"}, **_TRAFFIC))),
    "Flights": _object(
        flights=_list(
            _object(
                digest=_TEXT,
                repository=_MAYBE_TEXT,
                upstream=_TEXT,
                received=_BYTES,
                size=_MAYBE_BYTES,
                followers={**_COUNT, "description": "clients that follow it"},
                filling={**_BOOL, "description": "a worker of this mirror downloads it"},
                workers=_list(_COUNT),
            )
        )
    ),
    "Upstreams": _object(
        upstreams=_list(
            _object(
                name=_TEXT,
                state={"enum": ["ok", "failing", "throttled", "down"]},
                endpoints=_list(
                    _object(
                        url=_TEXT,
                        state={"enum": ["ok", "failing", "throttled", "down"]},
                        failures={**_COUNT, "description": "calls in a row without an answer"},
                        retry_in=_SECONDS,
                        credentials={
                            **_nullable(_object(provider=_TEXT, reason=_TEXT, since=_TIME)),
                            "description": "why there are none, or they are refused; null: nothing is known against"
                            " them",
                        },
                    )
                ),
                budget=_nullable(
                    _object(limit=_COUNT, remaining=_COUNT, window=_SECONDS, seen=_TIME, resets_in=_SECONDS)
                ),
            )
        )
    ),
    "Images": _object(images=_list(_ref("Image")), next={**_MAYBE_TEXT, "description": "`after` of the next page"}),
    "Image": _object(**_IMAGE),
    "ImageDetail": _object(
        **{
            **_IMAGE,
            "missing": _list(_TEXT),
            "shared": {**_BYTES, "description": "bytes that other images need, too"},
            "fetched": _TIME,
            "tagLookedUp": _TIME,
            "pinned": _list(_object(**_WHY)),
            "frozen": _TIME,
            "otherTags": _list(_TEXT),
            "subject": _MAYBE_TEXT,
            "referrers": _list(_ANY),
            "platforms": _list(
                _object(
                    platform=_MAYBE_TEXT,
                    digest=_TEXT,
                    size=_BYTES,
                    pulled=_BOOL,
                    complete=_BOOL,
                    missing=_list(_TEXT),
                )
            ),
        }
    ),
    "Purged": _object(image=_TEXT, tags=_list(_TEXT), manifests=_list(_TEXT), blobs=_COUNT, bytes=_BYTES),
    "Pin": _object(
        ("state", "missing", "summary"),
        image=_TEXT,
        digest=_MAYBE_TEXT,
        reason=_TEXT,
        since=_TIME,
        until=_TIME,
        rule={**_MAYBE_TEXT, "description": "the `match` of the configuration that says it; null: by hand"},
        state={"enum": ["absent", "incomplete", "complete"], "description": "how much is here"},
        missing={**_list(_TEXT), "description": "digests that are not"},
        summary={**_TEXT, "description": "the state in words"},
    ),
    "Pins": _object(
        pins=_list(_ref("Pin")),
        over={**_list(_ref("Pin")), "description": "whose `until` has passed; they hold nothing"},
        unreadable=_list(
            _object(
                kind={"enum": ["pins", "freezes"]},
                image={**_MAYBE_TEXT, "description": "what it is for; null: not known, so that nothing is evicted"},
                file=_TEXT,
                reason=_TEXT,
                message={**_TEXT, "description": "in words, with what to do"},
            )
        ),
    ),
    "Unpinned": _object(image=_TEXT, pinned={**_BOOL, "description": "still, by a rule"}),
    "Victims": _object(
        dry_run=_BOOL,
        blobs=_COUNT,
        bytes=_BYTES,
        more={**_COUNT, "description": "images that are not listed"},
        images=_list(
            _object(
                digest=_MAYBE_TEXT,
                names=_list(_TEXT),
                last_used={"type": "number", "description": "epoch seconds"},
                bytes=_BYTES,
                blobs=_list(
                    _object(digest=_TEXT, size=_BYTES, last_used={"type": "number"}, images=_list(_TEXT), reason=_TEXT)
                ),
            )
        ),
    ),
    "Job": {
        "type": "object",
        "properties": {
            "id": _TEXT,
            "kind": _TEXT,
            "arguments": _ANY,
            "state": {"enum": ["queued", "running", "done", "failed", "cancelled", "interrupted"]},
            "created": _TIME,
            "started": _TIME,
            "ended": _TIME,
            "cancelling": _BOOL,
            "progress": _ANY,
            "result": _ANY,
        },
        "required": ["id", "kind", "state", "created"],
    },
    "Jobs": _object(jobs=_list(_ref("Job"))),
    "SyncRules": _object(rules=_list(_object(**_RULE))),
    "Clients": _object(
        mirror={**_TEXT, "description": "the URL that stands in the files"},
        clients=_list(
            _object(
                client=_TEXT,
                command={**_TEXT, "description": "does the same on the client's machine, beside what is there"},
                files=_list(_object(path=_TEXT, content=_TEXT)),
                needs={**_list(_TEXT), "description": "what makes the client see it"},
                notes=_list(_TEXT),
            )
        ),
    ),
    "Config": {"type": "object", "required": ["server", "store", "upstream"]},
    "OpenApi": {"type": "object", "required": ["openapi", "paths"]},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `answers` are schemas by status; `query` are the query parameters; `errors` are further
    statuses.

    `path` is relative to the prefix. The value of a `{…}` in it may contain slashes, escaped or not, except for a
    job's.
    """

    name: str
    method: str
    path: str
    summary: str
    answers: Mapping[int, str]
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Schema | None = None
    body_required: bool = True
    errors: tuple[int, ...] = ()

    @property
    def changes(self) -> bool:
        """True if the operation changes something."""
        return self.method != "GET"


_PREFETCH: Final = _object(
    ("platforms", "referrers"),
    images={**_list(_TEXT), "minItems": 1, "maxItems": 2000},
    platforms={**_list(_TEXT), "description": "linux/amd64 and the like; none: all"},
    referrers=_BOOL,
)
_PIN: Final = _object(
    ("reason", "until"),
    reason=_TEXT,
    until={**_MAYBE_TEXT, "description": "2026-03-01, a time, or 30d; not given: for good"},
)

OPERATIONS: Final = (
    Operation(
        "status", "GET", "/status", "Version, workers, how full, how much was saved since the start", {200: "Status"}
    ),
    Operation("history", "GET", "/history", "The same over the last day, a point each minute", {200: "History"}),
    Operation("flights", "GET", "/flights", "Downloads under way, of all workers", {200: "Flights"}),
    Operation("upstreams", "GET", "/upstreams", "How upstreams are doing, as the workers know", {200: "Upstreams"}),
    Operation(
        "images",
        "GET",
        "/images",
        "Images that are here, a page at a time",
        {200: "Images"},
        query={
            "search": {**_TEXT, "description": "a part of the name, or a pattern with * and **"},
            "after": {**_TEXT, "description": "`next` of the page before"},
            "limit": {"type": "integer", "minimum": 1, "maximum": 500, "default": 50},
        },
        errors=(400,),
    ),
    Operation("image", "GET", "/images/{image}", "All about one image", {200: "ImageDetail"}, errors=(400, 404)),
    Operation(
        "purge",
        "DELETE",
        "/images/{image}",
        "Drop an image, with the blobs that nothing else names",
        {200: "Purged"},
        errors=(400, 404, 409),
    ),
    Operation(
        "pins",
        "GET",
        "/pins",
        "Images that are never evicted, by hand and by rules",
        {200: "Pins"},
        query={
            "state": {
                "type": "boolean",
                "default": False,
                "description": "tell `state`, `missing` and `summary` of each, for which all their manifests are read",
            }
        },
        errors=(400,),
    ),
    Operation(
        "pin",
        "PUT",
        "/pins/{image}",
        "Pin an image",
        {200: "Pin"},
        body=_PIN,
        body_required=False,
        errors=(400, 404, 413),
    ),
    Operation(
        "unpin", "DELETE", "/pins/{image}", "Unpin what was pinned by hand", {200: "Unpinned"}, errors=(400, 404)
    ),
    Operation(
        "plan",
        "GET",
        "/eviction",
        "What would be evicted next",
        {200: "Victims"},
        query={
            "bytes": {"type": "integer", "minimum": 1, "description": "to free so many; not given: down to low water"},
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": 200,
                "description": "so many images alone, the first to go; what is not looked at is not counted either",
            },
        },
        errors=(400,),
    ),
    Operation("evict", "POST", "/eviction", "Evict down to the low water", {200: "Victims"}),
    Operation("prefetch", "POST", "/prefetch", "Bring images in", {202: "Job"}, body=_PREFETCH, errors=(400, 413, 429)),
    Operation("jobs", "GET", "/jobs", "All jobs, the newest first", {200: "Jobs"}),
    Operation("job", "GET", "/jobs/{job}", "One, with its progress and result", {200: "Job"}, errors=(404,)),
    Operation(
        "cancel",
        "DELETE",
        "/jobs/{job}",
        "End it: 202 while it is being ended",
        {200: "Job", 202: "Job"},
        errors=(404,),
    ),
    Operation("sync", "GET", "/sync", "The sync rules, with last result and next run", {200: "SyncRules"}),
    Operation("run", "POST", "/sync/{rule}/run", "Run one now", {202: "Job"}, errors=(404, 409, 429)),
    Operation(
        "clients",
        "GET",
        "/clients",
        "The configuration of each container client, for the registries that are configured here",
        {200: "Clients"},
        query={
            "mirror": {
                **_TEXT,
                "description": "the URL under which clients reach the mirror; not given: as this request came, at the "
                "port for pulls",
            }
        },
        errors=(400,),
    ),
    Operation("config", "GET", "/config", "Every setting as it counts, without secrets", {200: "Config"}),
    Operation("openapi", "GET", "/openapi.json", "This document", {200: "OpenApi"}),
)


def _pattern(path: str) -> re.Pattern[str]:
    inner = re.sub(r"\\\{(\w+)\\\}", lambda found: "([^/]+)" if found[1] == "job" else "(.+)", re.escape(path))
    return re.compile(inner)


_PATTERNS: Final = tuple((_pattern(operation.path), operation) for operation in OPERATIONS)


def find(path: str) -> tuple[dict[str, Operation], str]:
    """The operations on a path (without its query) by method, and the unescaped value of the `{…}` in that path."""
    if not path.startswith(f"{PREFIX}/"):
        return {}, ""
    below = path.removeprefix(PREFIX)
    # the first match gives the value of the `{…}`
    found = [(matched, operation) for pattern, operation in _PATTERNS if (matched := pattern.fullmatch(below))]
    given = next((unquote(matched[1]) for matched, _ in found if matched.groups()), "")
    return {operation.method: operation for _, operation in found}, given


_STATUSES: Final = {
    400: "It cannot be used; every mistake is named",
    401: "Over TCP, where rules say who may administer: log in",
    403: "Not for this caller, or for pages of other sites",
    404: "There is none",
    409: "Not now: it is being done already, or the image is kept",
    413: "More than 1 MiB",
    429: "A hundred jobs wait, or too many wrong passwords were tried",
    503: "The disk does not answer",
}


def openapi(version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the whole API."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(f"{PREFIX}{operation.path}", {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mirror, admin API",
            "version": version,
            "description": "On a listener of its own. Sizes are bytes. Over TCP, what changes something needs the"
            " header `Mirror-Admin` with any value, which pages of other sites cannot send.",
        },
        "paths": paths,
        "components": {
            "schemas": dict(_SCHEMAS),
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{}, {"basic": []}, {"bearer": []}],
    }


def _described(operation: Operation) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": _TEXT}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in operation.query.items()]
    answers: dict[str, Any] = {
        str(status): {"description": operation.summary, "content": _json(_ref(schema))}
        for status, schema in operation.answers.items()
    }
    for status in sorted({*operation.errors, 401, 403, 429, 503}):
        answers[str(status)] = {"description": _STATUSES[status], "content": _json(_ref("Errors"))}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": answers,
    }
    if operation.body is not None:
        described["requestBody"] = {"required": operation.body_required, "content": _json(operation.body)}
    return described


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
