"""A bucket in the memory of the test, for processes that the test starts, over a unix socket.

    with SharedBucket(bucket, path) as shared:
        held = shared.hold("write", "states/")    the next such call of a process waits, before it is made
        …                                         start the process: FarBucket(path) is a `Bucket`
        held.arrived()                            it has sent the call, and waits for the answer
        held.let()                                the call is made now, however late, and answered

`clock` is a clock that the processes read, and the test moves.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mirror.ports import Aborted, BucketHealth, Expected, NotChanged, ObjectInfo, StoredObject, Version
from tests.support.memory_bucket import MemoryBucket

#: Seconds; far beyond what a busy machine needs.
_PATIENT: Final = 120.0


class Held:
    """A call that waits for the test."""

    def __init__(self, verb: str, text: str) -> None:
        self.verb, self.text = verb, text
        self._arrived, self._let, self._made = threading.Event(), threading.Event(), threading.Event()

    def arrived(self) -> None:
        """Returns once a process has sent such a call."""
        assert self._arrived.wait(_PATIENT), f"no {self.verb} of {self.text}"

    def let(self) -> None:
        """Let it be made, and wait until it was."""
        self._let.set()
        assert self._made.wait(_PATIENT)

    def wait(self) -> None:
        """For the thread of the call."""
        self._arrived.set()
        assert self._let.wait(_PATIENT)

    def made(self) -> None:
        """The call was made."""
        self._made.set()


class SharedBucket:
    """See above."""

    def __init__(self, bucket: MemoryBucket, path: Path) -> None:
        self.bucket = bucket
        #: Seconds that all processes read.
        self.clock = 1000.0
        self._listener = Listener(str(path), "AF_UNIX")
        self._held: list[Held] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._listener.close()

    def hold(self, verb: str, text: str) -> Held:
        """Hold the next call of this verb that has the text among its arguments."""
        held = Held(verb, text)
        with self._lock:
            self._held.append(held)
        return held

    def _accept(self) -> None:
        while True:
            try:
                connection = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        while True:
            try:
                verb, arguments, more = connection.recv()
            except (EOFError, OSError):
                return
            held = self._next_held(verb, arguments)
            if held is not None:
                held.wait()
            try:
                answer: Any = True, self._call(verb, arguments, more)
            except Exception as error:
                answer = False, error
            finally:
                if held is not None:
                    held.made()
            try:
                connection.send(answer)
            except OSError:
                return

    def _next_held(self, verb: str, arguments: Any) -> Held | None:
        with self._lock:
            for held in self._held:
                if held.verb == verb and held.text in repr(arguments):
                    self._held.remove(held)
                    return held
        return None

    def _call(self, verb: str, arguments: Any, more: Any) -> Any:
        if verb == "clock":
            return self.clock
        answer = getattr(self.bucket, verb)(*arguments, **more)
        return list(answer) if verb == "list" else answer


class FarBucket:
    """See `mirror.ports.Bucket`: the bucket of the test, as another process sees it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()

    def clock(self) -> float:
        """The clock that the test moves."""
        return float(self._ask("clock"))

    def read(self, key: str, limit: int, *, unless: Version | None = None) -> StoredObject | NotChanged | None:
        answer: StoredObject | NotChanged | None = self._ask("read", key, limit, unless=unless)
        return answer

    def head(self, key: str) -> ObjectInfo | None:
        answer: ObjectInfo | None = self._ask("head", key)
        return answer

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Any:
        raise NotImplementedError

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        version: Version = self._ask("write", key, content, expect=expect)
        return version

    def upload(self, key: str, file: Path, size: int) -> None:
        self._ask("upload", key, file, size)

    def delete(self, keys: Sequence[str]) -> None:
        self._ask("delete", list(keys))

    def abort_uploads(self, prefix: str, before: float) -> Aborted | None:
        answer: Aborted | None = self._ask("abort_uploads", prefix, before)
        return answer

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        yield from self._ask("list", prefix, after=after)

    def sign(self, key: str, life: float) -> str | None:
        return None

    def health(self) -> BucketHealth:
        return BucketHealth()

    def close(self) -> None:
        """The process ends anyway."""

    def _ask(self, verb: str, *arguments: Any, **more: Any) -> Any:
        if not hasattr(self._local, "connection"):
            self._local.connection = Client(str(self._path), "AF_UNIX")
        connection = self._local.connection
        connection.send((verb, arguments, more))
        done, answer = connection.recv()
        if not done:
            raise answer
        return answer

    def __repr__(self) -> str:
        return f"<FarBucket of {os.getpid()}>"
