"""Changes TOML so that comments, order and spelling stay, and proves that nothing else has changed.

`tomlkit` edits the text. After each change `tomllib`, another parser, reads the result, which must be the old data with
the wanted change and no other.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AoT, Comment, Item, Key, Table

from mirror.nodes.plan import BOM, NodeRefused


def parse(text: str, where: str) -> dict[str, Any]:
    """The parsed text. Raises `NodeRefused` with the position of a syntax error."""
    try:
        return tomllib.loads(text.removeprefix(BOM))
    except tomllib.TOMLDecodeError as error:
        raise NodeRefused(f"{where}: not TOML: {error}; repair it first") from error


def table_of(data: Mapping[str, Any], path: Sequence[str]) -> Mapping[str, Any]:
    """The table at a path of keys; empty if there is none."""
    for key in path:
        inner = data.get(key)
        if not isinstance(inner, dict):
            return {}
        data = inner
    return data


def literal(value: object) -> str:
    """A string, boolean or list of strings in TOML."""
    return str(tomlkit.item(value).as_string())


def set_keys(text: str, where: str, table: Sequence[str], values: Mapping[str, object]) -> str:
    """The text with these keys of a table set. If the text cannot be changed safely, raises `NodeRefused` with the
    lines to add by hand.
    """
    before = parse(text, where)
    present = table_of(before, table)
    todo = {key: value for key, value in values.items() if present.get(key) != value}
    if not todo:
        return text
    lines = [f"  {key} = {literal(value)}" for key, value in todo.items()]
    refusal = NodeRefused(
        "\n".join([f"{where}: cannot be changed safely; these lines are needed:", _header(table), *lines])
    )
    expected = copy.deepcopy(before)
    inner = expected
    for key in table:
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise refusal
    inner.update(todo)

    def change(lf_text: str) -> str:
        document = tomlkit.parse(lf_text)
        found: Any = document
        for key in table:
            found = found.get(key) if isinstance(found, Mapping) else None
        if not isinstance(found, Table) or found.is_super_table():
            gap = "" if not lf_text else "\n" if lf_text.endswith("\n") else "\n\n"
            return lf_text + gap + "\n".join([_header(table), *lines, ""])
        for key, value in todo.items():
            if key in found:
                found[key] = value
            else:
                _add_below_header(found, key, value)
        return document.as_string()

    return _proven(text, change, expected, refusal)


def insert_before_tables(text: str, where: str, block: str, added: Mapping[str, Any]) -> str:
    """The text with `block`, which holds whole tables, inserted before the first table and the comments above it.

    `added` is the parsed block. Its first-level tables are merged with existing ones of the same name. Raises
    `NodeRefused`.
    """
    expected = copy.deepcopy(parse(text, where))
    for key, value in added.items():
        expected[key] = {**value, **expected.get(key, {})}

    def change(lf_text: str) -> str:
        body = tomlkit.parse(lf_text).body
        at = next((number for number, (key, item) in enumerate(body) if _is_table(key, item)), len(body))
        while at and at < len(body) and isinstance(body[at - 1][1], Comment):
            at -= 1
        above = tomlkit.document()
        above.body.extend(body[:at])
        head = above.as_string()
        tail = lf_text.removeprefix(head)
        gap = "\n" if head and not head.endswith("\n") else ""
        return head + gap + block + ("\n" if tail else "") + tail

    refusal = NodeRefused(f"{where}: cannot be changed safely; add this by hand:\n{block}")
    return _proven(text, change, expected, refusal)


def drop_table(text: str, where: str, table: Sequence[str]) -> str:
    """The text without a table and the tables below it. The comments after it stay: they are about what follows. Raises
    `NodeRefused`.
    """
    expected: Any = copy.deepcopy(parse(text, where))
    inner = expected
    for key in table[:-1]:
        inner = inner[key]
    del inner[table[-1]]

    def change(lf_text: str) -> str:
        document = tomlkit.parse(lf_text)
        above: Any = document
        for key in table[:-1]:
            above = above[key]
        siblings = list(above.value.body)
        number = next(number for number, (key, _) in enumerate(siblings) if key is not None and key.key == table[-1])
        if number:
            _last_items(siblings[number - 1][1]).extend(_trailing_comments(siblings[number][1]))
        above.remove(table[-1])
        return document.as_string()

    refusal = NodeRefused(f"{where}: cannot be changed safely; remove {_header(table)} first")
    return _proven(text, change, expected, refusal)


def _proven(text: str, change: Callable[[str], str], expected: object, refusal: NodeRefused) -> str:
    """The changed text, if it parses to what is `expected`. `change` sees neither a byte order mark nor CRLF."""
    marked, plain = text.startswith(BOM), text.removeprefix(BOM)
    crlf = "\r\n" in plain and "\n" not in plain.replace("\r\n", "")
    try:
        changed = change(plain.replace("\r\n", "\n") if crlf else plain)
        changed = changed.replace("\n", "\r\n") if crlf else changed
        if tomllib.loads(changed) == expected:
            return (BOM if marked else "") + changed
    except (TOMLKitError, tomllib.TOMLDecodeError, AttributeError, LookupError, TypeError) as error:
        raise refusal from error
    raise refusal


def _add_below_header(table: Table, key: str, value: object) -> None:
    """As part of the header's line end: tomlkit itself appends, which is below comments about the next table."""
    first = next((item for name, item in table.value.body if name is not None and not _is_table(name, item)), None)
    indent = table.trivia.indent + "  " if first is None else first.trivia.indent
    table.trivia.trail = f"\n{indent}{key} = {literal(value)}{table.trivia.trail}"


def _is_table(key: Key | None, item: Item) -> bool:
    """True if the item begins with a header; a dotted key (`a.b = 1`) is a table without one."""
    return isinstance(item, AoT) or (isinstance(item, Table) and key is not None and not key.is_dotted())


def _last_items(table: Any) -> list[Any]:
    """The items of a table, or of the table below it that comes last in the text."""
    items: list[Any] = table.value.body
    return _last_items(items[-1][1]) if items and isinstance(items[-1][1], Table) else items


def _trailing_comments(table: Table) -> list[Any]:
    items = _last_items(table)
    end = next((number for number in range(len(items), 0, -1) if items[number - 1][0] is not None), 0)
    return items[end:]


def _header(table: Sequence[str]) -> str:
    return f"[{'.'.join(tomlkit.key(key).as_string() for key in table)}]"
