"""What an upstream lets each account do: how many pulls are left, and until when it is to be left alone.

Registries count by account. So what a caller with credentials of their own has used up is theirs alone, and neither the
mirror's own account nor another caller goes without for it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from mirror.policy.budget import Budget

__all__ = ["Account", "Accounts"]

#: Callers that are kept in mind, least recent ones leave.
_MOST: Final = 1000


@dataclass(slots=True)
class Account:
    """`held_until` is in seconds of the clock that tells waits, `looked_at` in epoch seconds: when a call last went out
    to see whether there are pulls left again.
    """

    budget: Budget | None = None
    looked_at: float = 0.0
    held_until: float = 0.0
    strikes: int = 0


class Accounts:
    """Of one upstream."""

    def __init__(self) -> None:
        self.own = Account()
        self._callers: OrderedDict[str, Account] = OrderedDict()

    def of(self, whose: str) -> Account:
        """That of the caller who is told apart by this; "": our own."""
        if not whose:
            return self.own
        account = self._callers.setdefault(whose, Account())
        self._callers.move_to_end(whose)
        if len(self._callers) > _MOST:
            self._callers.popitem(last=False)
        return account
