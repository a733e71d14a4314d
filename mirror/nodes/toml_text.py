"""Changes TOML as text, so that comments, order and spelling stay, and proves that nothing else has changed.

A scanner finds where statements begin and end. The scanner is not trusted: after each change `tomllib` parses the text,
and the result must be the old data with the wanted change and no other.
"""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mirror.nodes.plan import BOM, NodeRefused

#: One token: a comment, a string of one of the four kinds, a bracket, or a line end. Everything else is skipped.
_TOKEN: Final = re.compile(
    r'#[^\n]*|"""(?:\\.|[^\\])*?"{3,5}|\'\'\'(?s:.*?)\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|[\[\]{}]|\n', re.DOTALL
)


@dataclass(frozen=True, slots=True)
class _Statement:
    """A table header, or a key with its value. `start` is its first character that is not blank; `end` is the end of
    its last line, without the line end.

    `table` is the path of the table: the one that a header opens, or the one that a key belongs to. `array`: the header
    of that table is `[[…]]`.
    """

    start: int
    end: int
    header: bool
    table: tuple[str, ...]
    array: bool


def parse(text: str, where: str) -> dict[str, Any]:
    """The parsed text. Raises `NodeRefused` with the position of a syntax error."""
    try:
        return tomllib.loads(text.removeprefix(BOM))
    except tomllib.TOMLDecodeError as error:
        raise NodeRefused(f"{where}: not TOML: {error}; mend it first") from error


def table_of(data: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """The table at a path of keys; empty if there is none."""
    for key in path:
        inner = data.get(key)
        if not isinstance(inner, dict):
            return {}
        data = inner
    return data


def literal(value: object) -> str:
    """A string, boolean or list of strings in TOML. JSON writes them in the same way (TOML 1.0, "String")."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def set_keys(text: str, where: str, table: Sequence[str], values: Mapping[str, object]) -> str:
    """The text with these keys of a table set. If the text cannot be changed safely, raises `NodeRefused` with the
    lines to add by hand.
    """
    before = parse(text, where)
    present = table_of(before, table)
    todo = {key: value for key, value in values.items() if present.get(key) != value}
    if not todo:
        return text
    expected = copy.deepcopy(before)
    place = expected
    for key in table:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise _by_hand(where, table, todo)
    place.update(todo)
    changed = text
    for key, value in todo.items():
        changed = _set(changed, tuple(table), key, literal(value))
    return _proven(changed, expected, _by_hand(where, table, todo))


def insert_before_tables(text: str, where: str, block: str, added: Mapping[str, Any]) -> str:
    """The text with `block`, which holds whole tables, inserted before the first table.

    `added` is the parsed block. Its first-level tables are merged with existing ones of the same name. Raises
    `NodeRefused`.
    """
    before = parse(text, where)
    expected = copy.deepcopy(before)
    for key, value in added.items():
        expected[key] = {**value, **expected.get(key, {})}
    newline = _newline(text)
    at = _above_tables(text)
    head, tail = text[:at], text[at:]
    if head.removeprefix(BOM) and not head.endswith("\n"):
        head += newline
    changed = head + block.replace("\n", newline) + (newline if tail else "") + tail
    return _proven(changed, expected, NodeRefused(f"{where}: cannot be changed safely; add this by hand:\n{block}"))


def drop_table(text: str, where: str, table: Sequence[str]) -> str:
    """The text without a table and the tables below it. Comments between them stay. Raises `NodeRefused`."""
    expected = copy.deepcopy(parse(text, where))
    above: Any = expected
    for key in table[:-1]:
        above = above[key]
    del above[table[-1]]
    changed = text
    for one in reversed(list(_statements(text))):
        if one.table[: len(table)] == tuple(table):
            below = text.find("\n", one.end)
            changed = changed[: text.rfind("\n", 0, one.start) + 1] + (changed[below + 1 :] if below >= 0 else "")
    return _proven(
        changed, expected, NodeRefused(f"{where}: cannot be changed safely; remove [{_header(table)}] first")
    )


def _above_tables(text: str) -> int:
    """The position of the first table and the comments directly above it; the end of the text if there is no table."""
    first = next((one.start for one in _statements(text) if one.header), None)
    if first is None:
        return len(text)
    at = text.rfind("\n", 0, first) + 1
    while at and text[(above := text.rfind("\n", 0, at - 1) + 1) : at].lstrip().startswith("#"):
        at = above
    return at or (1 if text.startswith(BOM) else 0)


def _proven(changed: str, expected: object, refusal: NodeRefused) -> str:
    try:
        if tomllib.loads(changed.removeprefix(BOM)) == expected:
            return changed
    except tomllib.TOMLDecodeError:
        pass
    raise refusal


def _by_hand(where: str, table: Sequence[str], values: Mapping[str, object]) -> NodeRefused:
    lines = [f"[{_header(table)}]", *(f"  {key} = {literal(value)}" for key, value in values.items())]
    return NodeRefused(f"{where}: cannot be changed safely; these lines are needed:\n" + "\n".join(lines))


def _header(table: Sequence[str]) -> str:
    return ".".join(key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else literal(key) for key in table)


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _set(text: str, table: tuple[str, ...], key: str, value: str) -> str:
    """The text with a key set. If the key does not exist, it is added below its table's header; if there is no such
    table, a table is added at the end.
    """
    newline = _newline(text)
    statements = list(_statements(text))
    inside = [one for one in statements if one.table == table and not one.array]
    for one in inside:
        if not one.header and (span := _value_of(text[one.start : one.end], key)):
            return text[: one.start + span[0]] + value + text[one.start + span[1] :]
    for one in inside:
        if one.header:
            follower = next((each for each in inside if not each.header), None)
            indent = _indent(text, follower) if follower else _indent(text, one) + "  "
            return f"{text[: one.end]}{newline}{indent}{key} = {value}{text[one.end :]}"
    gap = "" if not text.removeprefix(BOM) else newline if text.endswith("\n") else newline * 2
    return f"{text}{gap}[{_header(table)}]{newline}  {key} = {value}{newline}"


def _indent(text: str, statement: _Statement) -> str:
    return text[text.rfind("\n", 0, statement.start) + 1 : statement.start].lstrip(BOM)


def _value_of(statement: str, key: str) -> tuple[int, int] | None:
    """The start and end of the value in `key = value # comment`; None if the statement does not set that key alone."""
    try:
        meant = tomllib.loads(statement)
    except tomllib.TOMLDecodeError:
        return None
    if list(meant) != [key]:
        return None
    found = re.match(r"""(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*')[ \t]*=[ \t]*""", statement)
    if not found:
        return None
    # "#" may be in a string: the shortest part before a "#" that means the same is key and value without comment
    for sign in (*re.finditer("#", statement), None):
        part = (statement[: sign.start()] if sign else statement).rstrip()
        try:
            if tomllib.loads(part) == meant:
                return found.end(), len(part)
        except tomllib.TOMLDecodeError:
            continue
    return None


def _statements(text: str) -> Iterator[_Statement]:
    table: tuple[str, ...] = ()
    array = False
    start = 1 if text.startswith(BOM) else 0
    for end in (*_ends(text, start), len(text)):
        piece = text[start:end]
        if _depth(piece) > 0 and end != len(text):
            continue
        body = piece.lstrip()
        if body and not body.startswith("#"):
            at = start + len(piece) - len(body)
            header = body.startswith("[")
            if header:
                table, array = _keys(body), body.startswith("[[")
            yield _Statement(at, at + len(body.rstrip("\r")), header, table, array)
        start = end + 1


def _ends(text: str, start: int) -> Iterator[int]:
    """The positions of line ends outside strings."""
    for token in _TOKEN.finditer(text, start):
        if token[0] == "\n":
            yield token.start()


def _depth(piece: str) -> int:
    """The number of brackets that a piece of text leaves open."""
    signs = [found[0] for found in _TOKEN.finditer(piece)]
    return sum(signs.count(one) for one in "[{") - sum(signs.count(one) for one in "]}")


def _keys(header: str) -> tuple[str, ...]:
    """The path of keys in a header such as `[a."b.c"]` or `[[a]]`."""
    try:
        meant: Any = tomllib.loads(header)
    except tomllib.TOMLDecodeError:
        return ("\0",)  # a name that matches no table
    keys = []
    while isinstance(meant, dict) and meant:
        key, meant = next(iter(meant.items()))
        keys.append(key)
        meant = meant[0] if isinstance(meant, list) else meant
    return tuple(keys)
