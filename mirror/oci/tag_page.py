"""A streaming parser for one page of a tag list (distribution-spec, "Listing Tags").

Registries that ignore `n` may send a million tags in one answer. Parsed at once, such an answer takes ten times its
size in memory. This parser holds only one piece of it at a time.

    {  member  ,  member  ,  "tags": [  string  ,  string  …  ]  ,  member  }
       └── any JSON value of at most 64 KiB ──┘   └── only strings, in batches ──┘
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from mirror.oci.strict_json import finite_number, refuse_constant

_DECODER: Final = json.JSONDecoder(parse_constant=refuse_constant, parse_float=finite_number)
_STRING: Final = r'"(?:[^"\\\x00-\x1f]|\\[^\x00-\x1f])*+"'
#: All complete elements that are followed by a comma. An element that is cut off at the end of a piece is left for the
#: next match.
_ELEMENTS: Final = re.compile(rf"(?:[ \t\r\n]*+{_STRING}[ \t\r\n]*+,)++")
_LAST_ELEMENT: Final = re.compile(rf"[ \t\r\n]*+({_STRING})[ \t\r\n]*+\]")
_BLANK: Final = re.compile(r"[ \t\r\n]*+")
#: The most characters of a value that is not complete yet. Tags, and other values in a page, are shorter.
_LONGEST: Final = 64 * 1024
_PIECE: Final = 64 * 1024


def read_tag_page(read: Callable[[int], str]) -> Iterator[list[str]]:
    """The strings under `tags`, in batches and in order; none if `tags` is null or absent.

    `read` returns at most the given number of further characters, "" at the end. Raises `ValueError`, possibly after
    some batches, if the text is not a JSON object, if `tags` is not a list of strings, or if `tags` occurs twice.
    """
    text = _Text(read)
    text.expect("{")
    seen = False
    if text.peek() == "}":
        text.expect("}")
    else:
        while True:
            name = text.value()
            if not isinstance(name, str):
                raise ValueError("not a JSON object")
            text.expect(":")
            if name != "tags":
                text.value()
            elif seen:
                raise ValueError("the field tags occurs twice")
            elif text.peek() == "[":
                seen = True
                text.expect("[")
                yield from text.elements()
            elif text.value() is None:
                seen = True
            else:
                raise ValueError("the tags are not a list")
            if text.peek() == "}":
                text.expect("}")
                break
            text.expect(",")
    text.end()


class _Text:
    """Text that arrives in pieces. The part that was parsed is discarded."""

    def __init__(self, read: Callable[[int], str]) -> None:
        self._read = read
        self._text = ""
        self._position = 0

    def peek(self) -> str:
        """The next character that is not a blank; it is not consumed. Raises `ValueError` at the end."""
        while True:
            match = _BLANK.match(self._text, self._position)
            self._position = match.end() if match else self._position
            if self._position < len(self._text):
                return self._text[self._position]
            self._more()

    def expect(self, character: str) -> None:
        """Consume the next character. Raises `ValueError` if it is not this one."""
        if self.peek() != character:
            raise ValueError(f"not JSON, or not a page of tags: {character!r} is missing")
        self._position += 1

    def value(self) -> Any:
        """Read any JSON value of at most 64 KiB. Raises `ValueError`."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except RecursionError:
                raise ValueError("nested too deeply") from None
            except json.JSONDecodeError:
                # the value may continue in the next piece
                self._more()
                continue
            if end == len(self._text) or self._text[end] in ".eE":
                # a number may continue in the next piece
                self._more()
                continue
            self._position = end
            return value

    def elements(self) -> Iterator[list[str]]:
        """Read strings, in batches, up to and including the end of the list. Raises `ValueError`."""
        if self.peek() == "]":
            self._position += 1
            return
        while True:
            if self.peek() != '"':
                raise ValueError("the tags are not a list of strings")
            if match := _ELEMENTS.match(self._text, self._position):
                self._position = match.end()
                yield json.loads(f"[{match[0][:-1]}]")
            elif match := _LAST_ELEMENT.match(self._text, self._position):
                self._position = match.end()
                yield [json.loads(match[1])]
                return
            else:
                self._more()

    def end(self) -> None:
        """Read to the end of the text. Raises `ValueError` if anything but blanks follows."""
        while True:
            if self._text[self._position :].strip(" \t\r\n"):
                raise ValueError("something follows the JSON object")
            self._text, self._position = self._read(_PIECE), 0
            if not self._text:
                return

    def _more(self) -> None:
        if len(self._text) - self._position > _LONGEST:
            raise ValueError("not JSON, or a value that is too long")
        piece = self._read(_PIECE)
        if not piece:
            raise ValueError("not JSON: it ends too soon")
        self._text, self._position = self._text[self._position :] + piece, 0
