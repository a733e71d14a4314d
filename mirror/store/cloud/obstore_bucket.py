"""A bucket of S3, Google Cloud Storage or Azure, through the blocking calls of obstore.

The asynchronous calls are not used: a process that has used them is aborted in up to half of the cases when the
interpreter ends.

A write that expects a version carries a mark that nobody else has. If its answer is lost, the write is repeated; if
that is refused, the mark shows whether the first one was taken: then it has succeeded.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import obstore

from mirror import telemetry
from mirror.errors import BlobDamaged, BucketUnavailable, RecordChanged, StoreError, UpstreamInvalid, reason_of
from mirror.ports import (
    ABSENT,
    PROBES,
    Aborted,
    Body,
    BucketHealth,
    Expected,
    NotChanged,
    ObjectInfo,
    StoredObject,
    Version,
)
from mirror.store.cloud.clouds import PART, PARTS
from mirror.store.cloud.obstore_body import ObstoreBody
from mirror.store.cloud.obstore_errors import Failure, Kind
from mirror.store.cloud.plain_body import PlainBody, PlainReader
from mirror.store.cloud.raw_s3 import RawS3
from mirror.store.cloud.request_sender import RequestSender

if TYPE_CHECKING:
    from obstore import Attributes, GetOptions, GetResult, ObjectMeta, PutMode

T = TypeVar("T")

#: The name of the attribute with the mark of a write.
_MARK: Final = "mark"
#: For so many seconds after an object was seen, the bucket is known to exist, and what is not found is absent.
_KNOWN: Final = 10.0
#: Objects of one page of a listing.
_PAGE: Final = 1000
#: Uploads in parts at the same time: each takes up to 70 MiB of memory.
_UPLOADS: Final = 4
#: Seconds for which another upload in parts waits for its turn; whoever waits takes a thread.
_LONGEST_TURN: Final = 120.0
#: Keys of which URLs are signed.
_SIGNABLE: Final = re.compile(r"[A-Za-z0-9/._~-]+")
#: Nothing is below it.
_NOTHING: Final = f"{PROBES}nothing/"


class ObstoreBucket:
    """See `mirror.ports.Bucket`."""

    def __init__(
        self,
        sender: RequestSender,
        *,
        raw: RawS3 | None = None,
        plain: PlainReader | None = None,
        storage_class: str | None = None,
        unsigned: bool = False,
        longest_signature: float | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`raw` sends what obstore cannot; None if it is not possible with these credentials. `plain` reads large
        objects; None: obstore does. `unsigned`: uploads need
        not be signed, if the store checks their checksums. `longest_signature`: seconds for which the credentials can
        sign; None if they cannot.
        """
        self._sender = sender
        self._stores = sender.stores
        self._traits = sender.traits
        self._raw = raw
        self._plain = plain
        self._storage_class = storage_class
        self._unsigned: bool | None = None if unsigned and raw is not None else False
        self._longest_signature = longest_signature
        self._now = now
        self._seen_at = float("-inf")
        #: Ceph up to 16 compares entity tags with their quotes missing.
        self._bare_tags = False
        self._uploads = threading.BoundedSemaphore(_UPLOADS)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<ObstoreBucket {self._sender.name} {self._sender.gate!r}>"

    # ------------------------------------------------------------------------------------------------- reading

    def read(self, key: str, limit: int, *, unless: Version | None = None) -> StoredObject | NotChanged | None:
        options: GetOptions = {"if_none_match": self._e_tag(unless)} if unless else {}

        def work() -> StoredObject | NotChanged:
            result = self._stores.quick.get(self._traits.path(key), options=options)
            version = self._version(result.meta)
            if version == unless:
                return NotChanged(version)
            if result.meta["size"] > limit:
                raise BlobDamaged(f"{key} has {result.meta['size']} bytes, more than the {limit} expected")
            content = bytes(result.bytes())
            telemetry.BUCKET_BYTES.labels("read").inc(len(content))
            return StoredObject(content, version)

        def settle(failure: Failure, earlier: Sequence[Failure]) -> NotChanged | None:
            if failure.kind is Kind.NOT_CHANGED and unless is not None:
                return NotChanged(unless)
            self._absent("read", failure)
            return None

        return self._seen(self._sender.send("read", work, settle))

    def head(self, key: str) -> ObjectInfo | None:
        def work() -> ObjectInfo:
            return self._info(self._stores.quick.head(self._traits.path(key)))

        return self._seen(self._sender.send("read", work, lambda failure, earlier: self._absent("read", failure)))

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Body | None:
        if self._plain is None or self._sender.gate.is_down:
            return self._open(key, start, stop)
        plain = self._plain
        answer = self._sender.attempt("read", lambda: plain.get(key, start, stop))
        if answer is None:
            return self._open(key, start, stop)
        self._seen_at = self._now()
        version, size = self._traits.version(answer.e_tag, None), answer.size
        return PlainBody(self._sender.name, key, answer, start, lambda at: self._open(key, at, stop, version, size))

    def _open(
        self, key: str, start: int, stop: int | None = None, expect: Version | None = None, size: int = 0
    ) -> ObstoreBody | None:
        """See `open`; with `expect`, None if the object is not in that version, or has not that size."""
        beyond: list[bool] = []

        def settle(failure: Failure, earlier: Sequence[Failure]) -> None:
            if failure.kind is Kind.BEYOND:
                beyond.append(True)
                return None
            return self._absent("read", failure)

        result = self._seen(self._sender.send("read", lambda: self._get(key, start, stop), settle))
        if result is not None:
            if expect and (self._version(result.meta) != expect or result.meta["size"] != size):
                return None
            whole = result.meta["size"]
            return ObstoreBody(
                self._sender.name, key, result, start, whole, lambda at: self._again(key, at, stop), stop=stop
            )
        if not beyond:
            return None
        # an offset at the end is beyond it as well, for the store
        info = self.head(key)
        if info is None:
            return None
        if start != info.size:
            raise UpstreamInvalid(f"{key} ends at byte {info.size}, before {start}", upstream=self._sender.name)
        return ObstoreBody(self._sender.name, key, None, start, start, lambda at: None)

    def _get(self, key: str, start: int, stop: int | None = None) -> GetResult:
        options: GetOptions = {} if stop is None else {"range": (start, stop)}
        if start and stop is None:
            options = {"range": {"offset": start}}
        return self._stores.long.get(self._traits.path(key), options=options)

    def _again(self, key: str, start: int, stop: int | None) -> GetResult | None:
        """An object from a byte on, up to `stop` (None: to its end); None if it is gone."""
        return self._sender.send("read", lambda: self._get(key, start, stop), lambda failure, earlier: None)

    def _info(self, meta: ObjectMeta) -> ObjectInfo:
        return ObjectInfo(
            self._traits.key(meta["path"]), meta["size"], meta["last_modified"].timestamp(), self._version(meta)
        )

    def _version(self, meta: ObjectMeta) -> Version:
        return self._traits.version(meta["e_tag"], meta["version"])

    def _e_tag(self, version: Version) -> str:
        return self._traits.e_tag(version, bare=self._bare_tags)

    # ------------------------------------------------------------------------------------- absent, or no bucket at all

    def _seen(self, found: T) -> T:
        if found is not None:
            self._seen_at = self._now()
        return found

    def _absent(self, operation: str, failure: Failure) -> None:
        """Make sure that what is not found is absent, and that it is not the bucket which is not there: not every
        answer tells the two apart. Raises `BucketUnavailable`, also for any other answer.
        """
        if failure.kind is not Kind.ABSENT:
            self._sender.fail(operation, failure)
        if self._now() - self._seen_at > _KNOWN or self._sender.gate.misses_bucket:
            self._sender.send("list", lambda: next(iter(self._stores.quick.list(_NOTHING)), None), self._no_listing)
            self._seen_at = self._now()

    def _no_listing(self, failure: Failure, earlier: Sequence[Failure]) -> None:
        if failure.kind is Kind.ABSENT:
            failure = Failure(Kind.NO_BUCKET, failure.reason)
        self._sender.fail("list", failure)

    # ------------------------------------------------------------------------------------------------- writing

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        try:
            version = self._write(key, content, expect, bare=self._bare_tags)
        except RecordChanged:
            if not isinstance(expect, str) or self._bare_tags or self._traits.has_generations:
                raise
            info = self.head(key)
            if info is None or info.version != expect:
                raise
            version = self._write(key, content, expect, bare=True)
            self._bare_tags = True
        telemetry.BUCKET_BYTES.labels("written").inc(len(content))
        return version

    def _write(self, key: str, content: bytes, expect: Expected, *, bare: bool) -> Version:
        mark = secrets.token_hex(8)
        attributes: Attributes = {} if expect is None else {_MARK: mark}
        mode: PutMode = "overwrite"
        if expect is ABSENT:
            mode = "create"
        elif isinstance(expect, str):
            mode = self._traits.expected(expect, bare=bare)

        def work() -> Version:
            result = self._stores.quick.put(
                self._traits.path(key), content, attributes=attributes, mode=mode, use_multipart=False
            )
            return self._traits.version(result["e_tag"], result["version"])

        def settle(failure: Failure, earlier: Sequence[Failure]) -> Version:
            if expect is None or failure.kind not in (Kind.CHANGED, Kind.CONFLICT, Kind.ABSENT):
                self._sender.fail("write", failure)
            if any(each.sent for each in earlier) and (version := self._marked(key, mark)) is not None:
                return version
            if failure.kind is Kind.CONFLICT and any(each.sent and each.kind is not Kind.CONFLICT for each in earlier):
                # the other write may be our own, which nobody has answered yet: it may still be made
                self._sender.fail("write", failure)
            raise RecordChanged(f"{key} is not in the expected version")

        version = self._seen(self._sender.send("write", work, settle))
        if version:
            return version
        # a store that does not say what it has written; whoever has written since has another mark
        return (self._marked(key, mark) if attributes else None) or Version(f'"unknown {mark}"')

    def _marked(self, key: str, mark: str) -> Version | None:
        """The version of the object, if its last write has this mark."""

        def work() -> Version | None:
            result = self._stores.quick.get(self._traits.path(key), options={"head": True})
            return self._version(result.meta) if result.attributes.get(_MARK) == mark else None

        return self._sender.send("read", work, lambda failure, earlier: self._absent("read", failure))

    def upload(self, key: str, file: Path, size: int) -> None:
        try:
            found = os.stat(file).st_size
            os.close(os.open(file, os.O_RDONLY))
        except OSError as error:
            raise StoreError(f"reading {file.name}: {reason_of(error)}") from error
        if found != size:
            raise StoreError(f"{file.name} has {found} bytes, not {size}")
        if self._sender.gate.is_down:
            # an outage ends with a small request, not with the first part of a large one
            self.head(key)
        in_parts = size > PART
        if not in_parts:
            self._upload(key, file, in_parts, cost=1)
        else:
            self._wait_to_upload()
            try:
                self._upload(key, file, in_parts, cost=size // PART + 3)
            finally:
                self._uploads.release()
        written = self.head(key)
        if written is None or written.size != size:
            there = "nothing is" if written is None else f"{written.size} bytes are"
            raise StoreError(f"{key} was uploaded with {size} bytes, and {there} there")
        telemetry.BUCKET_BYTES.labels("written").inc(size)

    def _wait_to_upload(self) -> None:
        """Wait for the turn of an upload in parts. Raises `BucketUnavailable` if it does not come for long."""
        give_up_at = self._now() + _LONGEST_TURN
        while not self._uploads.acquire(timeout=1.0):
            if self._sender.gate.is_down:
                raise BucketUnavailable(f"{self._sender.name} does not answer")
            if self._now() >= give_up_at:
                reason = f"{self._sender.name} is slow: {_UPLOADS} large uploads have been under way for long"
                raise BucketUnavailable(reason, retry_after=10.0)

    def _upload(self, key: str, file: Path, in_parts: bool, cost: int) -> None:
        mark = secrets.token_hex(8)
        attributes: Attributes = {_MARK: mark}
        if self._storage_class is not None:
            attributes["Storage-Class"] = self._storage_class
        store = self._stores.unsigned_upload if self._need_not_sign() else self._stores.upload

        def work() -> None:
            store.put(
                self._traits.path(key),
                file,
                attributes=attributes,
                mode="overwrite",
                use_multipart=in_parts,
                chunk_size=PART,
                max_concurrency=PARTS,
            )

        def settle(failure: Failure, earlier: Sequence[Failure]) -> None:
            # the upload is gone if its last answer was lost, and the repetition finds it complete
            if failure.kind is not Kind.ABSENT or self._marked(key, mark) is None:
                self._sender.fail("upload", failure)

        try:
            self._sender.send("upload", work, settle, cost=cost, endless=True)
        except BucketUnavailable:
            if in_parts:
                self._abort_own(key)
            raise

    def _abort_own(self, key: str) -> None:
        """Abort what a failed upload has left, if the store can be asked."""
        with suppress(BucketUnavailable):
            for each in (self._raw and self._raw.unfinished(key)) or ():
                if self._raw is not None and each.key == key:
                    self._raw.abort(each)

    def _need_not_sign(self) -> bool:
        """Whether uploads may go unsigned. Tried once: some stores do not look at checksums."""
        if self._unsigned is None:
            with self._lock:
                try:
                    self._unsigned = self.refuses_wrong_checksum()
                except BucketUnavailable:
                    return False
            if not self._unsigned:
                telemetry.log.warning(
                    "bucket ignores checksums",
                    bucket=self._sender.name,
                    reason="uploads stay signed, whatever bucket.sign_payload says",
                )
        return bool(self._unsigned)

    def refuses_wrong_checksum(self) -> bool | None:
        """See `mirror.store.objects.bucket_check.UploadSafety`."""
        if self._raw is None:
            return None
        key = f"{PROBES}{secrets.token_hex(16)}"
        try:
            return self._raw.refuses_wrong_checksum(key)
        finally:
            self.delete([key])

    def tries_abort(self, key: str) -> bool:
        """See `mirror.store.objects.bucket_check.UploadSafety`."""
        if self._raw is None or self._traits.forgets_uploads:
            return False
        self._raw.abort(self._raw.begin(key))
        return True

    def aborts_uploads(self) -> bool | None:
        """See `mirror.store.objects.bucket_check.UploadSafety`."""
        if self._traits.forgets_uploads:
            return True
        return None if self._raw is None else self._raw.has_rule_for_uploads()

    # --------------------------------------------------------------------------------------- deleting and listing

    def delete(self, keys: Sequence[str]) -> None:
        step = self._traits.delete_at_once
        for begin in range(0, len(keys), step):
            self._delete(list(keys[begin : begin + step]))

    def _delete(self, keys: list[str]) -> None:
        absent: list[bool] = []

        def settle(failure: Failure, earlier: Sequence[Failure]) -> None:
            if failure.kind is not Kind.ABSENT:
                self._sender.fail("delete", failure)
            absent.append(True)

        paths = [self._traits.path(key) for key in keys]
        cost = len(keys) if self._traits.deletes_singly else 1
        self._sender.send("delete", lambda: self._stores.pages.delete(paths), settle, cost=cost)
        if absent and len(keys) > 1:
            # one of them is absent, which this store counts as an error: nobody knows what became of the others
            for key in keys:
                self._delete([key])
        elif absent:
            self._absent("delete", Failure(Kind.ABSENT, "404"))

    def abort_uploads(self, prefix: str, before: float) -> Aborted | None:
        if self._traits.forgets_uploads:
            return Aborted()
        found = self._raw.unfinished(prefix) if self._raw is not None else None
        if found is None or self._raw is None:
            return None
        aborted = 0
        for each in found:
            if each.begun_at < before and each.key.startswith(prefix):
                self._sender.gate.enter(self._now() + self._stores.times.call)
                self._raw.abort(each)
                aborted += 1
        return Aborted(aborted)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        position = begin = after
        pages: Iterator[Sequence[ObjectMeta]] | None = None

        def work() -> Sequence[ObjectMeta] | None:
            nonlocal pages, begin
            try:
                if pages is None:
                    begin = position
                    offset = begin if begin and self._traits.lists_after else None
                    pages = iter(
                        self._stores.pages.list(self._traits.path(prefix) or None, offset=offset, chunk_size=_PAGE)
                    )
                return next(pages, None)
            except BaseException:
                pages = None  # the next attempt begins after the last object that was given
                raise

        while (page := self._sender.send("list", work, self._no_listing)) is not None:
            self._seen_at = self._now()
            for meta in page:
                info = self._info(meta)
                # a store that begins a listing where it is asked to may have an order of its own
                if self._traits.lists_after or meta["path"].encode() > self._traits.path(begin).encode():
                    yield info
                    position = info.key

    # ------------------------------------------------------------------------------------------------- the rest

    def sign(self, key: str, life: float) -> str | None:
        # the library escapes other signs differently in what it signs and in what it writes, at Azure and at Google
        path = self._traits.path(key)
        if self._longest_signature is None or not _SIGNABLE.fullmatch(path):
            return None
        try:
            seconds = min(life, self._longest_signature)
            return str(obstore.sign(self._stores.quick, "GET", path, timedelta(seconds=seconds)))
        except Exception as error:
            # credentials that can do everything but sign, such as an access signature; the text may have the URL in it
            telemetry.log.debug("bucket cannot sign", bucket=self._sender.name, reason=type(error).__name__)
            return None

    def health(self) -> BucketHealth:
        return self._sender.health()

    def close(self) -> None:
        self._stores.close()
