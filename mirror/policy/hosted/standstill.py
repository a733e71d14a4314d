"""When a request that changes hosted content comes too late.

A replica, a worker or a machine may be frozen for a while, and a request in it. Its client gives up, repeats it
elsewhere, and goes on: pushes another image, deletes what it had pushed. A request that went on afterwards as if
nothing had happened would undo that, and no version of a record shows it, because it reads the records anew.

    the client's last byte ──> a step ──> a step ──> … ──> a change
                            └───────── each of them less than `LONGEST` after the one before ─────────┘

Clients and proxies that give up do so after 60 seconds or later, most of them. Whoever gives up before closes the
connection, which is seen as well.
"""

from __future__ import annotations

from typing import Final

#: Seconds for which a request may stand still, by a clock that goes on while a process or machine does not.
LONGEST: Final = 60.0


def has_stood_still(last: float, now: float) -> bool:
    """True if a request whose last step was at `last` changes nothing any more. Seconds of one steady clock."""
    return now - last >= LONGEST
