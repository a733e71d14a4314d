"""The steps of one request that changes hosted content, by the time since the client was last heard.

its last byte arrives ── a step ── a step ── … ── a change          less than `standstill.LONGEST` between any two
      │                    └── later, or the client has left ──> StaleRequest
      └── by the kernel, which notes it also while this process is frozen
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Final

from aiohttp import web

from mirror.clock import steady_time
from mirror.errors import StaleRequest
from mirror.policy.hosted.standstill import has_stood_still
from mirror.ports import Condition, Expected, InTime

#: Where `tcpi_last_data_recv` is in `struct tcp_info` (linux/tcp.h), in milliseconds.
_LAST_RECEIVED: Final = struct.Struct("=52xI")


class RequestSteps:
    """See `mirror.ports.Steps`. `last` is when the client was last heard, by `clock`; `is_gone` says whether it has
    left, from any thread.
    """

    def __init__(
        self, last: float, is_gone: Callable[[], bool] = lambda: False, *, clock: Callable[[], float] = steady_time
    ) -> None:
        self._last = last
        self._is_gone = is_gone
        self._clock = clock

    def __repr__(self) -> str:
        return f"<RequestSteps, the last one {self._clock() - self._last:.1f} s ago>"

    @classmethod
    def of(cls, request: web.BaseRequest) -> RequestSteps:
        """Those of a request whose body is here. To be called on the event loop."""
        return cls(steady_time() - _silence(request), lambda: _is_gone(request))

    def go_on(self, *, after_long_work: bool = False) -> None:
        """See `Steps`."""
        now = self._clock()
        if not after_long_work and has_stood_still(self._last, now):
            raise StaleRequest(
                f"this request stood still for {now - self._last:.0f} s, so it changes nothing: repeat it"
            )
        if self._is_gone():
            raise StaleRequest("the client has left, so this request changes nothing")
        self._last = now

    def expect(self, expected: Expected) -> Condition:
        """See `Steps`."""
        return InTime(expected, self.go_on)


def _silence(request: web.BaseRequest) -> float:
    """Seconds since the kernel has received the last byte of the connection; 0 if it cannot say that."""
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport is not None else None
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return 0.0
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_RECEIVED.size)
        (milliseconds,) = _LAST_RECEIVED.unpack(info)
    except (OSError, struct.error):
        return 0.0
    return float(milliseconds) / 1000


def _is_gone(request: web.BaseRequest) -> bool:
    transport = request.transport
    return transport is None or transport.is_closing()
