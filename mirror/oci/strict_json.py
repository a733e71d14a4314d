"""JSON as RFC 8259 has it, for text that others wrote.

Python's reader also takes `NaN`, `Infinity`, numbers that overflow to infinity, and UTF-16. Go's clients and registries
refuse all of these, and none of them can be written as JSON again.
"""

from __future__ import annotations

import json
import math
from typing import Any, Never

__all__ = ["FieldTwice", "finite_number", "read_json", "refuse_constant"]


class FieldTwice(ValueError):
    """An object with two fields of one name, of which readers take the first or the last (RFC 8259, section 4)."""


def read_json(content: bytes | bytearray | str, *, fields_once: bool = False) -> Any:
    """The value of a JSON text in UTF-8. Raises `ValueError` (RFC 8259, sections 3, 6 and 8.1), also for a text that
    is nested too deeply to be read, and with `fields_once` `FieldTwice`.
    """
    text = content if isinstance(content, str) else content.decode()
    try:
        return json.loads(
            text,
            parse_constant=refuse_constant,
            parse_float=finite_number,
            object_pairs_hook=_object_of if fields_once else None,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _object_of(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(fields)
    if len(found) != len(fields):
        raise FieldTwice("an object has two fields of the same name")
    return found


def refuse_constant(name: str) -> Never:
    """For `parse_constant` of `json`. Raises `ValueError`."""
    raise ValueError(f"{name} is not JSON")


def finite_number(text: str) -> float:
    """For `parse_float` of `json`. Raises `ValueError` for a number that overflows."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is larger than any number that can be represented")
    return number
