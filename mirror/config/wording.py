"""What is wrong with one setting, in the words of its user: pydantic speaks of inputs, dictionaries and classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, get_origin

from pydantic import BaseModel, ValidationError

from mirror.values.durations import format_duration

#: A name this similar is taken for a slip of the keys: `listn`, `worker`.
_SIMILAR: Final = 0.75
_TRUE_OR_FALSE: Final = "must be true or false"
_WHOLE_NUMBER: Final = "must be a whole number"
_NUMBER: Final = "must be a number"
_TEXT: Final = "must be a text in quotes"
_WORDING: Final[Mapping[str, str]] = {
    "extra_forbidden": "no such setting",
    "missing": "must be set",
    "bool_parsing": _TRUE_OR_FALSE,
    "bool_type": _TRUE_OR_FALSE,
    "int_parsing": _WHOLE_NUMBER,
    "int_parsing_size": _WHOLE_NUMBER,
    "int_type": _WHOLE_NUMBER,
    "int_from_float": _WHOLE_NUMBER,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "finite_number": _NUMBER,
    "string_type": _TEXT,
    "path_type": "must be a path in quotes",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "literal_error": "must be {expected}",
}
#: How a bound is said, and under which name pydantic gives it.
_BOUNDS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than": ("must be more than {}", "gt"),
    "greater_than_equal": ("must be {} or more", "ge"),
    "less_than": ("must be less than {}", "lt"),
    "less_than_equal": ("must be {} or less", "le"),
}
#: A user and a password before a host, in a setting that expects none and so quotes what it was given.
_CREDENTIALS: Final = re.compile(r"""(?<=//)\S*@|(?<=["'])[^\s/"'@]+:[^\s"'@]+@""")


def in_plain_words(error: Mapping[str, Any], where: Sequence[int | str], content: object) -> str:
    """What is wrong with the setting at `where` in `content`. `error` is one of those of a `ValidationError`."""
    kind = error["type"]
    if kind == "list_type":
        # `[upstream]` in the place of `[[upstream]]`
        is_table = isinstance(_value_at(content, where), dict)
        return f"must be a list: write [[{_table(where)}]]" if is_table and _table(where) else "must be a list"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a table: write [{_table(where)}]" if _table(where) else "must be a table"
    if kind in _BOUNDS:
        sentence, name = _BOUNDS[kind]
        bound = error["ctx"][name]
        return sentence.format(format_duration(bound) if _is_duration(_value_at(content, where)) else f"{bound:g}")
    if kind in _WORDING:
        return _WORDING[kind].format(**error.get("ctx", {}))
    return _CREDENTIALS.sub("…@", str(error["msg"]).removeprefix("Value error, "))


def refused_value(error: BaseException | None) -> str | None:
    """What is wrong with one value that was refused by itself; None if the error says nothing of a value."""
    if not isinstance(error, ValidationError):
        return None
    return "; ".join(in_plain_words(each, (), None) for each in error.errors(include_url=False, include_input=False))


def _table(where: Sequence[int | str]) -> str:
    """The header of the table at this place; empty in a list, where a header says nothing about the entry."""
    return "" if any(isinstance(part, int) for part in where) else ".".join(str(part) for part in where)


def _is_duration(value: object) -> bool:
    """True if a number was written with a unit: then its bound has one, too."""
    return isinstance(value, str) and not value.strip()[-1:].isdigit()


def _value_at(content: object, where: Sequence[int | str]) -> object:
    for part in where:
        if isinstance(content, dict):
            content = content.get(str(part))
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            content = content[part]
        else:
            return None
    return content


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
    return f"; there is one in {_header(root, elsewhere[0])}" if len(elsewhere) == 1 else ""


def _header(root: type[BaseModel], name: str) -> str:
    """The header of a table, or of one of several."""
    fields = {field.alias or each: field for each, field in root.model_fields.items()}
    return f"[[{name}]]" if get_origin(fields[name].annotation) is list else f"[{name}]"


def _names(table: type[BaseModel]) -> Mapping[str, type[BaseModel] | None]:
    """The names of a table's settings as they are written, each with the table that it is, if it is one."""
    return {field.alias or name: next(_tables(field.annotation), None) for name, field in table.model_fields.items()}


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables in an annotation, such as `list[UpstreamSettings]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _tables(part)
