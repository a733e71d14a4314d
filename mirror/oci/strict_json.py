"""JSON as RFC 8259 defines it, for text from outside.

Python's reader also accepts `NaN`, `Infinity`, numbers that overflow to infinity, and UTF-16. Clients and registries
written in Go refuse all of these, and none of them can be written as JSON again.
"""

from __future__ import annotations

import json
import math
from typing import Any, Never


class FieldTwice(ValueError):
    """An object has two fields of the same name. Some readers take the first, others the last (RFC 8259, section 4)."""


def read_json(content: bytes | bytearray | str, *, fields_once: bool = False) -> Any:
    """The value of a JSON text in UTF-8.

    Raises `ValueError` if the text is invalid (RFC 8259, sections 3, 6 and 8.1) or nested too deeply. With
    `fields_once`, raises `FieldTwice` if an object has two fields of the same name.
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
    value = dict(fields)
    if len(value) != len(fields):
        raise FieldTwice("an object has two fields of the same name")
    return value


def refuse_constant(name: str) -> Never:
    """Always raises `ValueError`; for the argument `parse_constant` of `json.loads`."""
    raise ValueError(f"{name} is not JSON")


def finite_number(text: str) -> float:
    """Parse a number; for the argument `parse_float` of `json.loads`. Raises `ValueError` if the number overflows."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is larger than any number that can be represented")
    return number
