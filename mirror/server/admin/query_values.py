"""Reads the parameters of a request to the admin API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from mirror.errors import RequestError

D = TypeVar("D")


def number(query: Mapping[str, str], name: str, default: D, least: int, most: int) -> int | D:
    """The integer parameter `name`, or `default` if it is absent. Raises `RequestError` if it is not a number from
    `least` to `most`.
    """
    text = query.get(name)
    if text is None:
        return default
    # no more digits than `most` has: longer text is refused before it is converted
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise RequestError(f"{name}: not a number from {least} to {most}: {text[:40]!r}")
    return int(text)


def boolean(query: Mapping[str, str], name: str) -> bool:
    """The boolean parameter `name`; false if it is absent. Raises `RequestError`."""
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise RequestError(f"{name}: must be true or false, not {text[:40]!r}")
    return text == "true"
