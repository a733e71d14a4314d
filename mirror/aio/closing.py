"""Several things are closed, one after the other, whatever happens to one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable


async def close_all(*steps: Callable[[], Awaitable[object] | None]) -> None:
    """Does all steps, in this order: also those after one that fails or is cancelled. Raises the first error at the
    end, or the first cancellation if there was one: whoever cancelled is to see that it was heard.
    """
    first: BaseException | None = None
    for step in steps:
        try:
            if (waiting := step()) is not None:
                await waiting
        except BaseException as error:
            if first is None or (isinstance(first, Exception) and not isinstance(error, Exception)):
                first = error
    if first is not None:
        raise first
