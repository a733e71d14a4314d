"""What a setting that does not exist was most likely meant to be: one of a similar name, or one of another table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel

#: A name this similar is taken for a slip of the keys: `listn`, `worker`.
_SIMILAR = 0.75


def meant_setting(root: type[BaseModel], where: Sequence[int | str]) -> str:
    """The end of a message about the setting at `where`, of which there is none in `root`; empty without a guess."""
    *sections, name = [str(part) for part in where if isinstance(part, str)] or [""]
    table: type[BaseModel] | None = root
    for section in sections:
        table = _names(table).get(section) if table is not None else None
    if table is None:
        return ""
    if similar := get_close_matches(name, _names(table), 1, _SIMILAR):
        return f"; did you mean {similar[0]}?"
    elsewhere = [section for section, inner in _names(root).items() if inner is not None and name in _names(inner)]
    return f"; there is one in [{elsewhere[0]}]" if len(elsewhere) == 1 else ""


def _names(table: type[BaseModel]) -> Mapping[str, type[BaseModel] | None]:
    """The names of a table's settings as they are written, each with the table that it is, if it is one."""
    return {field.alias or name: next(_tables(field.annotation), None) for name, field in table.model_fields.items()}


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables in an annotation, such as `list[UpstreamSettings]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _tables(part)
