"""Sends requests to a bucket: repeats those that fail and may succeed, counts them, and names what is wrong."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NoReturn, TypeVar

from mirror import telemetry
from mirror.errors import BucketAbsent, BucketThrottled, BucketUnavailable, MirrorError
from mirror.ports import BucketHealth
from mirror.store.cloud.clouds import CloudStores, CloudTraits
from mirror.store.cloud.obstore_errors import ANSWERS, PASSING, Failure, Kind, denied, failure_of
from mirror.store.cloud.request_gate import RequestGate

T = TypeVar("T")

#: Seconds before the first repetition, and the longest pause before one.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0

#: What the caller makes of an answer that is no success: of this failure, and those before it in the same call.
Settle = Callable[[Failure, Sequence[Failure]], T]


class _Calls:
    """Limits how many threads are in a call at the same time. A call within a call is a part of it."""

    def __init__(self, most: int) -> None:
        self._free = threading.BoundedSemaphore(most)
        self._here = threading.local()

    def enter(self, longest: float) -> bool:
        """Wait for at most `longest` seconds; False if there was no room by then."""
        depth = getattr(self._here, "depth", 0)
        if not depth and not self._free.acquire(timeout=longest):
            return False
        self._here.depth = depth + 1
        return True

    def leave(self) -> None:
        self._here.depth -= 1
        if not self._here.depth:
            self._free.release()


@dataclass(slots=True)
class RequestSender:
    """Sends the requests of one bucket; `name` is the bucket's. May be used from any thread.

    `at_once`: how many threads may be in calls at the same time, uploads aside. Others wait for a while, and are then
    refused: a slow bucket must not take all threads from those who need it not. `quiet`: see `RequestGate`.
    """

    name: str
    traits: CloudTraits
    stores: CloudStores
    gate: RequestGate
    now: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep
    at_once: int = 32
    quiet: bool = False
    _calls: _Calls = field(init=False, repr=False)
    _refused: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        self._calls = _Calls(self.at_once)

    def send(
        self,
        operation: str,
        work: Callable[[], T],
        settle: Settle[T] | None = None,
        *,
        cost: int = 1,
        endless: bool = False,
    ) -> T:
        """The result of `work`, which is repeated while that may help, or what `settle` makes of the answer.

        Without `settle`, each answer that is no success is an error. `cost`: how many requests `work` sends.
        `endless`: `work` moves so much content that only its own time limits count. Raises `BucketUnavailable`,
        `BucketDenied`, and whatever `settle` raises.
        """
        deadline = self.now() + self.stores.times.call
        if endless:
            return self._send(operation, work, settle, cost, deadline, endless=True)
        self._enter()
        try:
            return self._send(operation, work, settle, cost, deadline, endless=False)
        finally:
            self._calls.leave()

    def attempt(self, operation: str, work: Callable[[], T | None]) -> T | None:
        """The result of one request. None proves nothing about the store, and is not counted: the caller uses `send`.

        Raises `BucketUnavailable` if the store is down, or too many wait for it.
        """
        self._enter()
        try:
            ticket = self.gate.enter(self.now() + self.stores.times.call)
            began = self.now()
            try:
                found = work()
            except BaseException:
                self.gate.withdraw(ticket)
                raise
            if found is None:
                self.gate.withdraw(ticket)
                return None
            self.gate.succeeded(ticket)
            self._accepted(operation)
            telemetry.BUCKET_REQUESTS.labels(operation, "ok").inc()
            telemetry.BUCKET_SECONDS.labels(operation).observe(self.now() - began)
            return found
        finally:
            self._calls.leave()

    def _send(
        self,
        operation: str,
        work: Callable[[], T],
        settle: Settle[T] | None,
        cost: int,
        deadline: float,
        *,
        endless: bool,
    ) -> T:
        earlier: list[Failure] = []
        renewed = False
        while True:
            result, failure = self._once(operation, work, deadline, cost)
            if failure is None:
                if renewed:
                    self.stores.accepted()
                return result  # type: ignore[return-value]
            if failure.kind is Kind.DENIED and not renewed and self.stores.renew():
                renewed = True
                continue
            if failure.kind not in PASSING:
                if settle is None or failure.kind in (Kind.DENIED, Kind.NO_BUCKET, Kind.INVALID):
                    self.fail(operation, failure)
                return settle(failure, earlier)
            earlier.append(failure)
            retries = self.stores.retries
            if endless:
                # of an upload, the library has repeated each part already, and that has taken its time
                retries = 0 if failure.kind is Kind.TIMEOUT else min(1, retries)
            late = not endless and self.now() >= deadline
            if late or len(earlier) > retries:
                if failure.kind is Kind.CONFLICT and settle is not None:
                    return settle(failure, earlier)
                self.fail(operation, failure)
            if failure.kind is not Kind.THROTTLED:  # then the gate waits
                pause = min(_FIRST_PAUSE * 2 ** (len(earlier) - 1), _LONGEST_PAUSE)
                self.wait(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret

    def _enter(self) -> None:
        """Take part in the calls that wait, or raise `BucketUnavailable`."""
        if not self._calls.enter(self.stores.times.request):
            reason = f"{self.name} is slow: {self.at_once} requests wait for it already"
            raise BucketUnavailable(reason, retry_after=1.0)

    def _once(
        self, operation: str, work: Callable[[], T], deadline: float, cost: int
    ) -> tuple[T, None] | tuple[None, Failure]:
        ticket = self.gate.enter(deadline, cost)
        began = self.now()
        result = "ok"
        try:
            found = work()
        except MirrorError:
            self.gate.withdraw(ticket)
            raise
        except Exception as error:
            failure = failure_of(error)
            result = failure.kind.value
            self._note(ticket, failure)
            return None, failure
        except BaseException:
            self.gate.withdraw(ticket)
            result = "given up"
            raise
        else:
            self.gate.succeeded(ticket)
            self._accepted(operation)
            return found, None
        finally:
            telemetry.BUCKET_REQUESTS.labels(operation, result).inc()
            telemetry.BUCKET_SECONDS.labels(operation).observe(self.now() - began)

    def _note(self, ticket: int, failure: Failure) -> None:
        if failure.kind is Kind.THROTTLED:
            self.gate.throttled(ticket)
        elif failure.kind is Kind.NO_BUCKET:
            self.gate.failed(ticket, _no_bucket(failure), misses=True)
        elif failure.kind is Kind.ABSENT and self.gate.misses_bucket and not failure.names_object:
            # the answer to a HEAD does not say whether the object or the bucket is absent
            self.gate.failed(ticket, _no_bucket(failure), misses=True)
        elif failure.kind in ANSWERS:
            self.gate.succeeded(ticket)
        else:
            self.gate.failed(ticket, failure.reason)

    def fail(self, operation: str, failure: Failure) -> NoReturn:
        """Raise the error for a failure that ends a call."""
        if failure.kind is Kind.DENIED:
            permission = self.traits.permissions.get(operation, "")
            error = denied(f"{self.name} refuses to {operation}", failure.reason, permission)
            with self._lock:
                begins = operation not in self._refused
                self._refused[operation] = str(error)
            if begins and not self.quiet:
                telemetry.log.error("bucket refuses", bucket=self.name, operation=operation, reason=str(error))
            raise error
        if failure.kind is Kind.NO_BUCKET:
            raise BucketAbsent(f"{self.name}: {_no_bucket(failure)}")
        if failure.kind is Kind.THROTTLED:
            raise BucketThrottled(f"{self.name} throttles the mirror ({failure.reason})")
        raise BucketUnavailable(f"{self.name} failed to {operation}: {failure.reason}")

    def health(self) -> BucketHealth:
        """See `Bucket.health`."""
        health = self.gate.health()
        with self._lock:
            refused = dict(self._refused)
        return replace(health, refuses=tuple(sorted(refused)), reason=health.reason or next(iter(refused.values()), ""))

    def _accepted(self, operation: str) -> None:
        if operation in self._refused:
            with self._lock:
                ends = operation in self._refused
                self._refused.pop(operation, None)
            if ends and not self.quiet:
                telemetry.log.info("bucket no longer refuses", bucket=self.name, operation=operation)


def _no_bucket(failure: Failure) -> str:
    return f"the bucket does not exist ({failure.reason}): create it, or correct store.bucket"
