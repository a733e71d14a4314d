"""Records as JSON: the form of a dataclass is derived from its fields, by pydantic.

Names of fields are written in camel case. A field `repo` is written as the two fields `registry` and `name`. Unknown
fields are ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Annotated, Any, Final, Generic, TypeVar

from pydantic import ConfigDict, FiniteFloat, PlainSerializer, PlainValidator, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from mirror.errors import RequestError
from mirror.oci.digest import Digest
from mirror.oci.manifest import check_manifest_type
from mirror.oci.reference import Reference, Repo, check_name, check_registry, check_tag, parse_reference

T = TypeVar("T")


def _text(parse: Callable[[str], object]) -> PlainValidator:
    """Accepts a text that `parse` accepts."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError("not a text")  # pydantic reports a `ValueError`
        try:
            return parse(value)
        except RequestError as error:
            raise ValueError(str(error)) from error

    return PlainValidator(validate)


def _repository(value: Mapping[str, Any]) -> Repo:
    try:
        return Repo(check_registry(value["registry"]), check_name(value["name"]))
    except (KeyError, TypeError, RequestError) as error:
        raise ValueError("no repository") from error


#: Seconds, mostly since the epoch; neither infinite nor NaN, which Python's JSON reader accepts.
Moment = FiniteFloat
DigestField = Annotated[Digest, _text(Digest.parse), PlainSerializer(str)]
ReferenceField = Annotated[Reference, _text(parse_reference), PlainSerializer(str)]
RepoField = Annotated[Repo, PlainValidator(_repository), PlainSerializer(asdict)]
TagField = Annotated[str, _text(check_tag)]
ManifestType = Annotated[str, _text(check_manifest_type)]

#: What a dataclass that is written as JSON has as `__pydantic_config__`.
CAMEL_CASE: Final = ConfigDict(alias_generator=to_camel)


class JsonForm(Generic[T]):
    """The JSON of one kind of record."""

    def __init__(self, kind: type[T], *, outside: str = "", sparse: bool = False) -> None:
        """The field `outside` is kept elsewhere, such as in the name of a file. If `sparse`, fields that have their
        default value are not written.
        """
        self._kind = kind
        self._outside = {outside}
        self._sparse = sparse

    @cached_property
    def _adapter(self) -> TypeAdapter[T]:
        # built at the first use, because that takes milliseconds and few commands need it
        return TypeAdapter(self._kind)

    def to_json(self, record: T) -> dict[str, Any]:
        """The record as a JSON object."""
        body = self._adapter.dump_python(
            record, mode="json", by_alias=True, exclude=self._outside, exclude_defaults=self._sparse
        )
        return {**body.pop("repo", {}), **body}

    def from_json(self, body: object, **outside: object) -> T | None:
        """The record; None if the JSON value is not one."""
        if not isinstance(body, Mapping):
            return None
        try:
            return self._adapter.validate_python({**body, "repo": body, **outside})
        except (ValidationError, RecursionError):
            return None

    def parse(self, text: bytes, **outside: object) -> T | None:
        """Like `from_json`, from JSON text."""
        try:
            return self.from_json(json.loads(text), **outside)
        except (ValueError, RecursionError):
            return None
