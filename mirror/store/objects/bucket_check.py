"""Proves each thing that the mirror needs of a bucket by doing it, for `mirror check --online`."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from mirror.errors import BucketAbsent, BucketDenied, BucketUnavailable, BucketUnfit, StoreError, UpstreamError
from mirror.ports import PROBES, Body, Bucket, StoredObject
from mirror.store.objects.bucket_owner import IDENTITY, LAST_USED
from mirror.store.objects.bucket_probe import probe_conditions, probe_key

#: Bytes of the object that is uploaded in parts: more than one part has.
_PARTS: Final = (8 << 20) + 1
#: More bytes than the records have that say whose the bucket is.
_RECORD: Final = 64 << 10
#: Seconds within which a signed URL is used.
_SIGNED_LIFE: Final = 60.0
#: Unfinished uploads of probes that began so many seconds ago are nobody's any more.
_FORGOTTEN: Final = 24 * 3600.0

#: What a client gets from a signed URL. Raises `OSError`.
Fetch = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class BucketCheck:
    """The result for one thing: `detail` describes it, `advice` says what to do, if there is something to do."""

    step: str
    ok: bool
    detail: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class DiskUse:
    """The disk that is to use the bucket: its `id`, empty if it has no store yet, and the id of the bucket that it has
    used, None if there is none. `cluster` is the name of the cluster of which its mirror is a replica, empty if it is
    none.
    """

    id: str
    bucket: str | None
    cluster: str = ""


class UploadSafety(Protocol):
    """What a store does about uploads that go wrong. Blocking; each raises `BucketUnavailable`."""

    def refuses_wrong_checksum(self) -> bool | None:
        """Whether the store refuses bytes that do not match their checksum, where nothing else protects them. None: it
        cannot be tried with this store, or these credentials.
        """

    def tries_abort(self, key: str) -> bool:
        """Begin an upload in parts and abort it; False if that cannot be tried with this store, or these credentials.
        Raises `BucketDenied` if it is refused.
        """

    def aborts_uploads(self) -> bool | None:
        """Whether the store aborts unfinished uploads itself, by a rule of the bucket or always. None: it does not
        say.
        """


class _NotAsWritten(Exception):
    """The store gave something else than it was given."""


class _UsedByOthers(Exception):
    """Another mirror, or another cluster, uses the bucket; `advice` says what to do."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(reason)
        self.advice = advice


class _NotTried(Exception):
    """Something that comes before it failed."""


def check_bucket(
    bucket: Bucket,
    *,
    safety: UploadSafety | None = None,
    fetch: Fetch | None = None,
    disk: DiskUse | None = None,
    now: float | None = None,
) -> list[BucketCheck]:
    """Try everything, in small objects below `probe/` that are deleted at the end, and one of 8 MiB. Blocking.

    `safety`: the same bucket, if it can say more about uploads; `fetch` follows signed URLs, if clients are redirected
    to the bucket; `disk` is the one that is to use the bucket, if that is to be looked at; `now` is the time in epoch
    seconds.
    """
    proof = _Proof(bucket, safety, fetch, disk, time.time() if now is None else now)
    try:
        return [_tried(step, work) for step, work in proof.steps()]
    finally:
        proof.clean_up()


def _tried(step: str, work: Callable[[], str]) -> BucketCheck:
    try:
        detail, _, advice = work().partition("\n")
        return BucketCheck(step, True, detail, advice)
    except _NotTried as error:
        return BucketCheck(step, False, str(error))
    except _UsedByOthers as error:
        return BucketCheck(step, False, str(error), error.advice)
    except _NotAsWritten as error:
        return BucketCheck(step, False, str(error), "is it an object store, or a proxy that changes what passes it?")
    except (StoreError, UpstreamError, OSError) as error:
        return BucketCheck(step, False, str(error), _advice(error))


def _advice(error: Exception) -> str:
    if isinstance(error, BucketUnfit):
        return "hosted content needs a store that keeps the conditions of writes: this one, or this version, does not"
    if isinstance(error, BucketDenied):
        if error.wrong_credentials:
            return "correct the credentials: the keys in [bucket] or in their files, or the identity of the machine"
        return "give these credentials the permission that is named, for all objects below the prefix"
    if isinstance(error, BucketAbsent):
        # the text says what to do
        return ""
    if isinstance(error, BucketUnavailable | UpstreamError):
        return "check bucket.endpoint, region, network, proxy and, with a private certificate authority, ca_file"
    return ""


class _Proof:
    """The steps of one check, and the objects that they write."""

    def __init__(
        self, bucket: Bucket, safety: UploadSafety | None, fetch: Fetch | None, disk: DiskUse | None, now: float
    ) -> None:
        self._bucket = bucket
        self._disk = disk
        self._safety = safety
        self._fetch = fetch
        self._now = now
        self._small = probe_key()
        self._large = probe_key()
        self._content = os.urandom(1000)
        self._written = False

    def steps(self) -> Iterator[tuple[str, Callable[[], str]]]:
        yield "write", self._write
        yield "read", self._read
        yield "read a range", self._read_range
        yield "write on conditions", self._write_on_conditions
        yield "upload in parts", self._upload
        if (safety := self._safety) is not None:
            yield "checksums", lambda: self._checksums(safety)
        yield "list", self._list
        if (fetch := self._fetch) is not None:
            yield "sign", lambda: self._sign(fetch)
        yield "delete", self._delete
        yield "unfinished uploads", self._unfinished
        if (disk := self._disk) is not None:
            yield "use", lambda: self._use(disk)

    def clean_up(self) -> None:
        """What a failure left."""
        with suppress(BucketUnavailable):
            self._bucket.delete([self._small, self._large])

    def _write(self) -> str:
        self._bucket.write(self._small, self._content)
        self._written = True
        return "an object was written"

    def _need_object(self) -> None:
        if not self._written:
            raise _NotTried("not tried, because nothing could be written")

    def _read(self) -> str:
        found = self._bucket.read(self._small, len(self._content))
        if not self._written and found is None:
            return "an object that is absent was found to be so"
        if not isinstance(found, StoredObject) or found.content != self._content:
            raise _NotAsWritten("what was written could not be read back")
        return "it was read back"

    def _read_range(self) -> str:
        self._need_object()
        if _rest(self._bucket.open(self._small, 900)) != self._content[900:]:
            raise _NotAsWritten("the bytes from an offset on are not those that were written there")
        return "the bytes from an offset on are right"

    def _write_on_conditions(self) -> str:
        self._need_object()
        probe_conditions(self._bucket)
        return "of two writers that expect the same version, one succeeds"

    def _upload(self) -> str:
        self._need_object()
        with tempfile.NamedTemporaryFile(prefix="mirror-check-") as file:
            file.write(self._content)
            file.truncate(_PARTS)
            file.flush()
            self._bucket.upload(self._large, Path(file.name), _PARTS)
        found = self._bucket.head(self._large)
        if found is None or found.size != _PARTS:
            raise _NotAsWritten(f"of {_PARTS} bytes, {found.size if found else 0} are there")
        return f"{_PARTS} bytes were written"

    def _list(self) -> str:
        count, seen = 0, False
        for info in self._bucket.list(PROBES):
            count += 1
            seen = seen or info.key == self._small
        if self._written and not seen:
            return "listings work, and lag behind what is written"
        return f"{count} objects of probes"

    def _sign(self, fetch: Fetch) -> str:
        self._need_object()
        url = self._bucket.sign(self._small, _SIGNED_LIFE)
        if url is None:
            raise StoreError("these credentials cannot sign URLs, so that clients cannot be redirected")
        if fetch(url) != self._content:
            raise _NotAsWritten("a signed URL gives something else than the object")
        return "a signed URL gives the object"

    def _delete(self) -> str:
        self._bucket.delete([self._small, self._large])
        if self._written and self._bucket.head(self._small) is not None:
            raise _NotAsWritten("an object that was deleted is still there: is it locked, or does the bucket keep it?")
        return "objects were deleted"

    def _checksums(self, safety: UploadSafety) -> str:
        self._need_object()
        refuses = safety.refuses_wrong_checksum()
        if refuses is None:
            return "uploads are signed; whether the store looks at checksums as well cannot be tried here"
        if refuses:
            return "bytes that were changed on the way are refused"
        return "uploads are protected by their signature only: the store takes bytes that do not match their checksum"

    def _unfinished(self) -> str:
        if self._bucket.abort_uploads(PROBES, self._now - _FORGOTTEN) is not None:
            tried = self._safety is not None and self._safety.tries_abort(probe_key())
            return "one was begun and aborted" if tried else "the store forgets them, or none was begun here to abort"
        aborts = self._safety.aborts_uploads() if self._safety is not None else None
        if aborts:
            return "they cannot be listed, and a rule of the bucket aborts them"
        rule = "there is no rule that aborts them" if aborts is False else "whether a rule aborts them cannot be told"
        return (
            f"they cannot be listed, and {rule}\nadd a lifecycle rule to the bucket that aborts unfinished uploads"
            " after a day or two: what is left of uploads that broke off is stored, and billed, until somebody does"
        )

    def _use(self, disk: DiskUse) -> str:
        """Whose bucket it is. Nothing is changed: a mirror that starts takes the bucket over."""
        identity, last_use = (self._json(key) for key in (IDENTITY, LAST_USED))
        if identity is None:
            if disk.bucket is not None:
                raise BucketUnfit(f"this disk belongs to the bucket with the id {disk.bucket}; this is not it")
            return "no mirror has used it yet"
        if disk.bucket not in (None, identity.get("id")):
            raise BucketUnfit(
                f"this disk belongs to the bucket with the id {disk.bucket}; this one has the id {identity.get('id')}"
            )
        if identity.get("migrating"):
            raise BucketUnfit("a migration to or from this bucket is not finished: run mirror migrate again")
        if last_use is None or not {"cluster", "disk"} & last_use.keys():
            return "no mirror uses it now"
        if "cluster" in last_use:
            return _use_beside_cluster(disk, str(last_use["cluster"]))
        if disk.cluster:
            return _use_by_replica(disk, str(last_use["disk"]))
        if last_use["disk"] == disk.id:
            return "the mirror of this disk uses it"
        if disk.bucket is not None:
            raise StoreError(
                f"the mirror of another disk (its id is {last_use['disk']}) has taken it over: one that runs with this"
                " disk only reads"
            )
        return f"the mirror of the disk {last_use['disk']} uses it\nend that one before a mirror with this disk starts"

    def _json(self, key: str) -> dict[str, Any] | None:
        found = self._bucket.read(key, _RECORD)
        if not isinstance(found, StoredObject):
            return None
        try:
            said = json.loads(found.content)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise BucketUnfit(f"{key} in the bucket is damaged")
        return said


def _use_beside_cluster(disk: DiskUse, cluster: str) -> str:
    """What it means for the mirror of a disk that a cluster uses the bucket. Raises `_UsedByOthers`."""
    if disk.cluster == cluster:
        return f"the cluster {cluster} uses it, of which this mirror is a replica"
    taken = "a mirror that starts takes the bucket over from it, and its replicas then write nothing"
    if disk.cluster:
        raise _UsedByOthers(
            f"the cluster {cluster} uses it, and this mirror is a replica of the cluster {disk.cluster}",
            f"correct cluster.name, or give another prefix in store.bucket: {taken}",
        )
    raise _UsedByOthers(
        f"the cluster {cluster} uses it, and this mirror has no [cluster]",
        "configure [cluster] as the replicas have it, or give another prefix in store.bucket; if this mirror is to"
        f" replace the cluster, end all replicas first: {taken}",
    )


def _use_by_replica(disk: DiskUse, user: str) -> str:
    """What it means for a replica with this disk that the mirror of the disk `user` uses the bucket alone. Raises
    `_UsedByOthers`.
    """
    if user == disk.id:
        return (
            f"the mirror of this disk uses it alone\na replica of the cluster {disk.cluster} that starts takes it over"
            " for the cluster: end that mirror first, if it runs"
        )
    raise _UsedByOthers(
        f"a single mirror uses it, and not the cluster {disk.cluster}: the mirror of the disk {user}",
        "a replica that starts takes the bucket over for the cluster, and that mirror then writes nothing: if the"
        " cluster is to replace it, end it first, and start the replicas; if not, give another prefix in store.bucket",
    )


def _rest(body: Body | None) -> bytes | None:
    if body is None:
        return None
    content = bytearray()
    buffer = memoryview(bytearray(4096))
    try:
        while count := body.readinto(buffer):
            content += buffer[:count]
    except BaseException:
        body.abort()
        raise
    return bytes(content)
