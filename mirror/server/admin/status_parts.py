"""Parts of a status, each of which may fail without the others."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, TypeVar

from typing_extensions import TypedDict

from mirror.errors import IndexUnavailable, StoreError
from mirror.values.json_types import about

T = TypeVar("T")


class UnreadPartJson(TypedDict):
    """A part of the status that could not be read."""

    part: Annotated[str, about("The field, which is null or empty.")]
    reason: str


class StatusParts:
    """Reads parts, and notes which of them could not be read."""

    def __init__(self) -> None:
        self.unread: list[UnreadPartJson] = []

    def __repr__(self) -> str:
        return f"<StatusParts {len(self.unread)} unread>"

    async def read(self, part: str, reading: Awaitable[T], otherwise: T) -> T:
        """What `reading` returns; `otherwise` if the disk, the bucket or the index does not answer."""
        try:
            return await reading
        except (StoreError, IndexUnavailable) as error:
            self.note(part, error)
            return otherwise

    def note(self, part: str, error: Exception) -> None:
        """Note that a part could not be read."""
        self.unread.append({"part": part, "reason": str(error)})
