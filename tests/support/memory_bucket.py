"""A bucket in a dict, with faults on demand.

One `MemoryBucket` stands for a prefix of an object store that any number of threads, and in a test "another process",
use. The version of an object is made of its content, as the entity tags of S3 are: two writes of the same bytes give
the same version.

The next calls of a verb fail as the test says:

    bucket.fail("write", 2)                   the next two writes do nothing and raise `BucketUnavailable`
    bucket.fail("write", done=True)           the next write is made, and its answer is lost
    bucket.fail("read", error=BucketDenied(…))
    bucket.down = True                        every call fails until it is False again
    bucket.break_bodies(after=1000)           the next body breaks off after 1,000 bytes
    bucket.damage(key, b"…")                  the object has other bytes, of the same version
    bucket.freeze_listings()                  listings show what is there now, whatever happens, until thaw_listings()
    bucket.before("write", act)               `act` is called before the next write, as if by another process

A call made by a thread whose event loop runs would stop everything else there for as long as the bucket takes: it is
noted in `CALLS_ON_LOOPS`, and fails its test (tests/conftest.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urlsplit

from mirror.errors import (
    BlobDamaged,
    BucketUnavailable,
    RecordChanged,
    StoreError,
    UpstreamInvalid,
    UpstreamUnavailable,
)
from mirror.ports import ABSENT, Aborted, BucketHealth, Expected, NotChanged, ObjectInfo, StoredObject, Version

#: What `fail` and `before` accept.
VERBS: Final = ("read", "head", "open", "write", "upload", "delete", "abort_uploads", "list", "sign")

#: Where buckets were called by threads whose event loop ran, since somebody looked last.
CALLS_ON_LOOPS: Final[list[str]] = []

_HOST: Final = "bucket.invalid"
#: Marks the code of coroutines and asynchronous generators.
_RUNS_ON_LOOPS: Final = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_TESTS: Final = f"{Path(__file__).parent.parent}/"


@dataclass(frozen=True, slots=True)
class _Object:
    content: bytes
    version: Version
    changed_at: float

    def info(self, key: str) -> ObjectInfo:
        return ObjectInfo(key, len(self.content), self.changed_at, self.version)


@dataclass(frozen=True, slots=True)
class _Fault:
    error: Exception
    done: bool


class _ObjectBody:
    """See `mirror.ports.Body`."""

    def __init__(self, content: bytes, start: int, stop: int | None, breaks_at: int | None) -> None:
        self._content = content if stop is None else content[:stop]
        self._position = start
        self._breaks_at = breaks_at
        self._aborted = False
        self.start = start
        self.size: int | None = len(content)

    def readinto(self, buffer: memoryview) -> int:
        if self._aborted:
            raise UpstreamUnavailable("the body was aborted", upstream="bucket")
        end = len(self._content)
        if self._breaks_at is not None:
            end = min(end, self._breaks_at)
            if self._position >= end < len(self._content):
                raise UpstreamUnavailable("the body broke off", upstream="bucket")
        piece = self._content[self._position : min(end, self._position + len(buffer))]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def abort(self) -> None:
        self._aborted = True


class MemoryBucket:
    """See `mirror.ports.Bucket`. May be used from any thread."""

    def __init__(self, *, now: Callable[[], float] = time.time, signs: bool = True, lists_uploads: bool = True) -> None:
        """`signs` and `lists_uploads`: whether this store can."""
        #: How often each verb was called.
        self.calls: Counter[str] = Counter()
        #: Each call: its verb and its keys, in order.
        self.log: list[tuple[str, tuple[str, ...]]] = []
        #: While True, every call raises `BucketUnavailable`.
        self.down = False
        self.closed = False
        self._now = now
        self._signs = signs
        self._lists_uploads = lists_uploads
        self._lock = threading.RLock()
        self._objects: dict[str, _Object] = {}
        self._uploads: list[tuple[str, float]] = []
        self._faults: dict[str, deque[_Fault]] = defaultdict(deque)
        self._acts: dict[str, deque[Callable[[], None]]] = defaultdict(deque)
        self._breaks: deque[int] = deque()
        self._listed: dict[str, _Object] | None = None

    # ------------------------------------------------------------------------------------------------ the port

    def read(self, key: str, limit: int, *, unless: Version | None = None) -> StoredObject | NotChanged | None:
        fault = self._begin("read", key)
        with self._lock:
            found = self._objects.get(key)
        self._end(fault)
        if found is None:
            return None
        if found.version == unless:
            return NotChanged(found.version)
        if len(found.content) > limit:
            raise BlobDamaged(f"{key} has {len(found.content)} bytes, more than the {limit} expected")
        return StoredObject(found.content, found.version)

    def head(self, key: str) -> ObjectInfo | None:
        fault = self._begin("head", key)
        with self._lock:
            found = self._objects.get(key)
        self._end(fault)
        return found.info(key) if found else None

    def open(self, key: str, start: int = 0, stop: int | None = None) -> _ObjectBody | None:
        fault = self._begin("open", key)
        with self._lock:
            found = self._objects.get(key)
            breaks_after = self._breaks.popleft() if found and self._breaks else None
        self._end(fault)
        if found is None:
            return None
        if start > len(found.content):
            raise UpstreamInvalid(f"{key} ends before byte {start}", upstream="bucket")
        return _ObjectBody(found.content, start, stop, None if breaks_after is None else start + breaks_after)

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        fault = self._begin("write", key)
        with self._lock:
            found = self._objects.get(key)
            if expect is ABSENT and found is not None:
                raise RecordChanged(f"{key} exists")
            if isinstance(expect, str) and (found is None or found.version != expect):
                raise RecordChanged(f"{key} has changed")
            version = self._put(key, content)
        self._end(fault)
        return version

    def upload(self, key: str, file: Path, size: int) -> None:
        fault = self._begin("upload", key)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise StoreError(f"reading {file.name}: {error.strerror}") from error
        if len(content) != size:
            raise StoreError(f"{file.name} has {len(content)} bytes, not {size}")
        with self._lock:
            self._put(key, content)
        self._end(fault)

    def delete(self, keys: Sequence[str]) -> None:
        fault = self._begin("delete", *keys)
        with self._lock:
            for key in keys:
                self._objects.pop(key, None)
        self._end(fault)

    def abort_uploads(self, prefix: str, before: float) -> Aborted | None:
        fault = self._begin("abort_uploads", prefix)
        if not self._lists_uploads:
            return None
        with self._lock:
            stay = [one for one in self._uploads if not one[0].startswith(prefix) or one[1] >= before]
            aborted = len(self._uploads) - len(stay)
            self._uploads = stay
        self._end(fault)
        return Aborted(aborted)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        assert not prefix or prefix.endswith("/"), prefix
        fault = self._begin("list", prefix)
        with self._lock:
            there = self._objects if self._listed is None else self._listed
            infos = [one.info(key) for key, one in there.items() if key.startswith(prefix)]
        for info in sorted(infos, key=lambda info: info.key.encode()):
            if info.key.encode() > after.encode():
                yield info
        self._end(fault)

    def sign(self, key: str, life: float) -> str | None:
        fault = self._begin("sign", key)
        self._end(fault)
        return f"https://{_HOST}/{quote(key)}?signature=secret&life={life:g}" if self._signs else None

    def health(self) -> BucketHealth:
        return BucketHealth(self._now(), reason="the bucket is down") if self.down else BucketHealth()

    def close(self) -> None:
        self.closed = True

    # ----------------------------------------------------------------------------------------- what tests do to it

    def fail(self, verb: str, times: int = 1, *, done: bool = False, error: Exception | None = None) -> None:
        """Let the next calls of a verb fail. `done`: what they do is done, and the answer is lost."""
        assert verb in VERBS, verb
        with self._lock:
            failure = error or BucketUnavailable("the bucket does not answer", retry_after=1.0)
            self._faults[verb].extend([_Fault(failure, done)] * times)

    def before(self, verb: str, act: Callable[[], None]) -> None:
        """Do this before the next call of that verb, in its thread. A second `act` comes before the call after."""
        assert verb in VERBS, verb
        with self._lock:
            self._acts[verb].append(act)

    def break_bodies(self, after: int, times: int = 1) -> None:
        """Let the next bodies break off after so many bytes."""
        with self._lock:
            self._breaks.extend([after] * times)

    def damage(self, key: str, content: bytes) -> None:
        """Give an object other bytes, as a bad disk of the store would; its version stays. `KeyError` if absent."""
        with self._lock:
            found = self._objects[key]
            self._objects[key] = _Object(content, found.version, found.changed_at)

    def lose(self, key: str) -> None:
        """Delete an object behind everybody's back. `KeyError` if absent."""
        with self._lock:
            del self._objects[key]

    def date(self, key: str, changed_at: float) -> None:
        """Say when an object was written, in epoch seconds. `KeyError` if absent."""
        with self._lock:
            found = self._objects[key]
            self._objects[key] = _Object(found.content, found.version, changed_at)

    def begin_upload(self, key: str, at: float) -> None:
        """Leave an unfinished upload behind, begun at `at` (epoch seconds)."""
        with self._lock:
            self._uploads.append((key, at))

    def freeze_listings(self) -> None:
        """Let listings show what is there now, until `thaw_listings`."""
        with self._lock:
            self._listed = dict(self._objects)

    def thaw_listings(self) -> None:
        """Let listings show what is there."""
        with self._lock:
            self._listed = None

    @property
    def pending(self) -> Sequence[str]:
        """Verbs with faults and acts that have not happened yet."""
        with self._lock:
            return sorted(verb for waiting in (self._faults, self._acts) for verb, some in waiting.items() if some)

    @property
    def unfinished(self) -> Sequence[str]:
        """The keys of unfinished uploads."""
        with self._lock:
            return [key for key, _ in self._uploads]

    def content(self) -> dict[str, bytes]:
        """Every object, without any fault and uncounted."""
        with self._lock:
            return {key: one.content for key, one in sorted(self._objects.items())}

    def fetch(self, url: str) -> bytes:
        """What a client gets that follows a signed URL. `KeyError` if there is no such object."""
        parts = urlsplit(url)
        assert parts.netloc == _HOST, url
        with self._lock:
            return self._objects[unquote(parts.path).removeprefix("/")].content

    # ------------------------------------------------------------------------------------------------ within

    def _put(self, key: str, content: bytes) -> Version:
        version = Version(f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"')
        self._objects[key] = _Object(bytes(content), version, self._now())
        return version

    def _begin(self, verb: str, *keys: str) -> _Fault | None:
        """Count a call. Raises the fault that comes before its work, returns the one that comes after it."""
        _note_loop(verb)
        with self._lock:
            self.calls[verb] += 1
            self.log.append((verb, keys))
            acts, faults = self._acts[verb], self._faults[verb]
            act = acts.popleft() if acts else None
        if act is not None:
            act()
        with self._lock:
            if self.down:
                raise BucketUnavailable("the bucket is down", retry_after=1.0)
            fault = faults.popleft() if faults else None
        if fault is not None and not fault.done:
            raise fault.error
        return fault

    @staticmethod
    def _end(fault: _Fault | None) -> None:
        if fault is not None:
            raise fault.error


def _note_loop(verb: str) -> None:
    """Note a call that blocks the event loop of its thread. A test that calls blocking code itself may do so."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    frame = sys._getframe(2)
    while frame.f_back is not None and not frame.f_code.co_flags & _RUNS_ON_LOOPS:
        frame = frame.f_back
    if not frame.f_code.co_filename.startswith(_TESTS):
        CALLS_ON_LOOPS.append(f"{verb} was called on an event loop:\n{''.join(traceback.format_stack(limit=16)[:-2])}")
