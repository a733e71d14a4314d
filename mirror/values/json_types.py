"""Types of fields in the JSON that users see. The admin API's document describes each field from its type."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

#: A number of things.
Count = Annotated[int, Field(ge=0)]
#: A size in bytes.
Bytes = Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]
#: A duration in seconds.
Seconds = Annotated[float, Field(ge=0)]
#: ISO 8601 in UTC, as `moment` writes it.
Timestamp = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


def about(text: str) -> object:
    """The description of a field, for use in `Annotated`."""
    return Field(description=text)
