"""Regular expressions that take time in proportion to the text, however they and the text are chosen.

Python's own engine tries one way through an expression after the other, which can take years: `(a|a)*b`. Whoever pushes
chooses the tags, and no other thread runs meanwhile. Here all ways are followed at once: for each part of the
expression, the places in the text are computed where the part can end, from all places where it can begin. What cannot
be answered in this way is refused: back-references, and looking ahead or behind.
"""

from __future__ import annotations

import re
from re import _constants as codes  # type: ignore[attr-defined]  # not documented: see docs/development.md
from re import _parser  # type: ignore[attr-defined]  # not documented: see docs/development.md
from typing import Any, Final

#: Characters that an expression may have.
LONGEST: Final = 200
#: Repetitions within repetitions, and the largest number of times that can be asked for.
_DEEPEST: Final = 3
_MOST_TIMES: Final = 256

_Places = frozenset[int]


class LinearPattern:
    """An expression that the whole text must match. Raises `ValueError` that says what is wrong with it."""

    def __init__(self, expression: str) -> None:
        if len(expression) > LONGEST:
            raise ValueError(f"a regular expression of more than {LONGEST} characters")
        try:
            re.compile(expression)
            parsed = _parser.parse(expression)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression: {expression!r}: {error}") from error
        if parsed.state.flags & ~re.UNICODE:
            raise ValueError(f"flags are not supported here: {expression!r}")
        self._expression = expression
        self._parts = list(parsed)
        _check(self._parts, 0, expression)

    def __repr__(self) -> str:
        return f"<LinearPattern {self._expression}>"

    def matches(self, text: str) -> bool:
        """Whether the whole text matches."""
        return len(text) in self._sequence(self._parts, text, frozenset((0,)))

    def _sequence(self, parts: Any, text: str, starts: _Places) -> _Places:
        for code, argument in parts:
            if not starts:
                break
            starts = self._part(code, argument, text, starts)
        return starts

    def _part(self, code: Any, argument: Any, text: str, starts: _Places) -> _Places:
        if code is codes.SUBPATTERN:
            return self._sequence(argument[3], text, starts)
        if code is codes.BRANCH:
            return frozenset().union(*(self._sequence(branch, text, starts) for branch in argument[1]))
        if code in _REPEATS:
            return self._repeated(argument, text, starts)
        if code is codes.AT:
            return starts & {0 if argument in _BEGINNINGS else len(text)}
        return frozenset(at + 1 for at in starts if at < len(text) and _fits(code, argument, text[at]))

    def _repeated(self, argument: Any, text: str, starts: _Places) -> _Places:
        least, most, parts = argument
        for _ in range(least):
            before, starts = starts, self._sequence(parts, text, starts)
            if starts == before:
                break
        reached = front = starts
        for _ in range(most - least if most is not codes.MAXREPEAT else len(text)):
            front = self._sequence(parts, text, front) - reached
            if not front:
                break
            reached |= front
        return reached


_REPEATS: Final = (codes.MAX_REPEAT, codes.MIN_REPEAT)
_BEGINNINGS: Final = (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING)
_ENDS: Final = (codes.AT_END, codes.AT_END_STRING)
_SINGLE: Final = (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN)
_CATEGORIES: Final = {
    codes.CATEGORY_DIGIT: re.compile(r"\d"),
    codes.CATEGORY_NOT_DIGIT: re.compile(r"\D"),
    codes.CATEGORY_WORD: re.compile(r"\w"),
    codes.CATEGORY_NOT_WORD: re.compile(r"\W"),
    codes.CATEGORY_SPACE: re.compile(r"\s"),
    codes.CATEGORY_NOT_SPACE: re.compile(r"\S"),
}


def _fits(code: Any, argument: Any, character: str) -> bool:
    if code is codes.ANY:
        return character != "\n"
    if code is codes.IN:
        negated = argument[0][0] is codes.NEGATE
        return negated != any(_fits(one, what, character) for one, what in argument if one is not codes.NEGATE)
    if code is codes.RANGE:
        return bool(argument[0] <= ord(character) <= argument[1])
    if code is codes.CATEGORY:
        return _CATEGORIES[argument].fullmatch(character) is not None
    return bool((code is codes.LITERAL) == (ord(character) == argument))


def _check(parts: Any, depth: int, expression: str) -> None:
    """Raises `ValueError` if a part cannot be followed in all ways at once."""
    for code, argument in parts:
        if code is codes.SUBPATTERN:
            if argument[1] or argument[2]:
                raise ValueError(f"flags are not supported here: {expression!r}")
            _check(argument[3], depth, expression)
        elif code is codes.BRANCH:
            for branch in argument[1]:
                _check(branch, depth, expression)
        elif code in _REPEATS:
            least, most, inner = argument
            if depth == _DEEPEST:
                raise ValueError(f"too many repetitions within repetitions: {expression!r}")
            if least > _MOST_TIMES or (most is not codes.MAXREPEAT and most > _MOST_TIMES):
                raise ValueError(f"a repetition of more than {_MOST_TIMES} times: {expression!r}")
            _check(inner, depth + 1, expression)
        elif code is codes.AT and argument not in (*_BEGINNINGS, *_ENDS):
            raise ValueError(f"\\b and \\B are not supported here: {expression!r}")
        elif code not in (*_SINGLE, codes.AT):
            raise ValueError(
                f"looking ahead, looking behind and back-references are not supported here: {expression!r}"
            )
