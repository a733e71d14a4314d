"""Regular expressions that take time in proportion to the text, however they and the text are chosen (RE2).

Whoever pushes chooses the tags. Python's own engine can take years over `(a|a)*b`, and lets no other thread run
meanwhile.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

#: Characters that an expression may have.
LONGEST: Final = 200


class LinearPattern:
    """An expression that the whole text must match, in RE2's syntax: without back-references, and without looking ahead
    or behind. Raises `ValueError` that says what is wrong with it.
    """

    def __init__(self, expression: str) -> None:
        if len(expression) > LONGEST:
            raise ValueError(f"a regular expression of more than {LONGEST} characters")
        self._expression = expression
        self._compiled = _compiled(expression)

    def __repr__(self) -> str:
        return f"<LinearPattern {self._expression}>"

    def matches(self, text: str) -> bool:
        """Whether the whole text matches."""
        return self._compiled.fullmatch(text) is not None


@cache
def _compiled(expression: str) -> Any:
    # imported here: every command reads the configuration, and few configurations have such rules
    import re2

    options = re2.Options()
    # otherwise the library writes mistakes to standard error itself
    options.log_errors = False
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        [reason] = error.args
        words = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        raise ValueError(f"not a regular expression: {expression!r}: {words}") from error
