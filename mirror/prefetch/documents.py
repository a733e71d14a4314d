"""YAML and JSON documents that are not trusted, with the line number of each string.

YAML is read as events only: no Python objects are constructed from tags, an alias refers to the same value however
often it is used, and the depth and the number of values are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

#: How many levels and how many values (YAML events) one file may have.
_DEEPEST: Final = 100
_MOST_VALUES: Final = 1_000_000

_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULLS: Final = ("", "~", "null", "Null", "NULL")


class ListMalformed(ValueError):
    """A text that does not have the expected format. `line` counts from 1; 0 if the error is not about one line."""

    def __init__(self, name: str, line: int, reason: str) -> None:
        super().__init__(f"{name}:{line}: {reason}" if line else f"{name}: {reason}")
        self.line = line


class _Text(str):
    """A string of a YAML file, with its line number."""

    __slots__ = ("line",)
    line: int


def line_of(text: str) -> int:
    """The line on which a string of a YAML document begins; 0 if it is not known."""
    return text.line if isinstance(text, _Text) else 0


def get(mapping: Mapping[str, Any], key: str) -> Any:
    """The value of a key in a mapping or in what `<<` merges into it; the mapping's own value takes precedence."""
    waiting: list[Any] = [mapping]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, list):
            waiting = [*value, *waiting]
        elif isinstance(value, dict):
            if key in value:
                return value[key]
            waiting.insert(0, value.get("<<"))
    return None


def documents(text: str, name: str) -> Iterator[Any]:
    """Every document of a text, made of mappings, lists, strings and None. Raises `ListMalformed`."""
    if name.lower().endswith(".json"):
        yield _read_json(text, name)
        return
    if text.lstrip().startswith("{"):
        # output of kubectl as JSON may be large, and the JSON parser is faster
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            yield value
            return
    try:
        yield from _read_yaml(text, name)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # newer parsers have a nesting limit of their own, which may be reached first
        deep = "nesting depth" in (error.problem or "")
        problem = f"more than {_DEEPEST} levels" if deep else f"not YAML: {error.problem}"
        raise ListMalformed(name, mark.line + 1 if mark else 0, problem) from error
    except yaml.YAMLError as error:
        raise ListMalformed(name, 0, f"not YAML: {' '.join(str(error).split())[:200]}") from error


def _read_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ListMalformed(name, error.lineno, f"not JSON: {error.msg}") from error
    except RecursionError as error:
        raise ListMalformed(name, 0, "too deep") from error


def _read_yaml(text: str, name: str) -> Iterator[Any]:
    """Build the documents from YAML events. A second key of the same name replaces the first; keys that are not strings
    are dropped.
    """
    builder = _Builder(name)
    for number, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if number > _MOST_VALUES:
            raise ListMalformed(name, line, f"more than {_MOST_VALUES} values")
        if isinstance(event, yaml.DocumentStartEvent):
            builder = _Builder(name)
        elif isinstance(event, yaml.DocumentEndEvent):
            yield builder.root
        elif isinstance(event, yaml.AliasEvent):
            builder.alias(event.anchor or "", line)
        elif isinstance(event, yaml.ScalarEvent):
            builder.add(_scalar(event, line), event.anchor)
        elif isinstance(event, yaml.MappingStartEvent):
            builder.open({}, event.anchor, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            builder.open([], event.anchor, line)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            builder.close()


def _scalar(event: yaml.ScalarEvent, line: int) -> _Text | None:
    if not event.style and event.value in _NULLS:
        return None
    text = _Text(event.value)
    text.line = line
    return text


class _Builder:
    """One document under construction."""

    def __init__(self, name: str) -> None:
        self.root: Any = None
        self._name = name
        self._open: list[dict[str, Any] | list[Any]] = []
        #: For each open mapping: a list with the key that waits for its value; empty if a key is next.
        self._keys: list[list[Any]] = []
        self._anchors: dict[str, Any] = {}

    def open(self, value: dict[str, Any] | list[Any], anchor: str | None, line: int) -> None:
        self.add(value, anchor)
        self._open.append(value)
        self._keys.append([])
        if len(self._open) > _DEEPEST:
            raise ListMalformed(self._name, line, f"more than {_DEEPEST} levels")

    def close(self) -> None:
        self._open.pop()
        self._keys.pop()

    def alias(self, anchor: str, line: int) -> None:
        if anchor not in self._anchors:
            raise ListMalformed(self._name, line, f"the alias *{anchor[:40]} stands for nothing")
        self.add(self._anchors[anchor], None)

    def add(self, value: Any, anchor: str | None) -> None:
        if anchor:
            self._anchors[anchor] = value
        if not self._open:
            self.root = value
        elif isinstance(parent := self._open[-1], list):
            parent.append(value)
        elif not self._keys[-1]:
            self._keys[-1].append(value)
        else:
            key = self._keys[-1].pop()
            if isinstance(key, str):
                parent[str(key)] = value
