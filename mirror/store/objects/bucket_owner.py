"""Whose bucket it is, and which mirror uses it.

    mirror.json      {"layout": 1, "id": "…"}: made by the first mirror that finds the prefix empty
                     "migrating": true: a migration is not finished, and nothing else may use the bucket
    last-used.json   {"disk": "…", "nonce": "…"}: the run of the mirror that uses the bucket now
                     {"cluster": "…", "nonce": "…"}: the cluster that does, whose replicas have all the same nonce

    a process starts ── confirm ──> the id is that of the disk's note? ── no ──> BucketUnfit, whatever is asked
                                     └── yes ── the nonce is the memory's? ──┬── yes: what is remembered counts
                                                                             └── no: another mirror was here, or the
                                                              memory is an old copy: what is remembered counts no more
                                     a server then writes the nonce of its run, by compare-and-set

    confirmed ── mirror.json is gone or another one ──> wrong: BucketUnfit, looked at again every few seconds ── confirm

A mirror that finds another nonce in `last-used.json` was overtaken: it writes nothing any more, believes nothing that
it remembers, and goes on reading until it ends. The processes of one run of a server have the same nonce, and each run
has another, so that a memory that is put back from a backup is not taken for the present one. The replicas of a cluster
do not overtake each other; what they remember is judged by journals (`record_journals.py`). A replica that is overtaken
takes part again when it finds its cluster in `last-used.json`: another replica has taken the bucket back by its start.

The store may answer from another bucket at any time: an address was switched over, a bucket was made again. So answers
count only while the identity was read a few seconds ago, and `seen_again` reads it once more where much rests on one.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from mirror.errors import BucketUnavailable, BucketUnfit, IndexUnavailable, RecordChanged, StoreError
from mirror.ports import (
    ABSENT,
    PROBES,
    Body,
    Bucket,
    Expected,
    NotChanged,
    ObjectInfo,
    RecordMemory,
    RecordState,
    RememberedRecord,
    StoredObject,
    Version,
)
from mirror.store.local.bucket_note import BucketNote
from mirror.store.objects.object_keys import STATES
from mirror.store.objects.record_tree import DELETED_SIZE, NAMES, says_taken
from mirror.store.objects.shared_reads import SharedReads
from mirror.telemetry import log

P = ParamSpec("P")
T = TypeVar("T")

#: The version of the layout of a bucket. One of another version is refused.
BUCKET_LAYOUT: Final = 1
IDENTITY: Final = "mirror.json"
LAST_USED: Final = "last-used.json"
#: The beginning of the nonce of a memory whose mirror was overtaken; the rest is that of its run.
_OVERTAKEN: Final = "overtaken"
#: The beginning of who uses a bucket, if that is a cluster.
_CLUSTER: Final = "cluster "
_LIMIT: Final = 64 << 10
_ATTEMPTS: Final = 10
#: Seconds for which it is believed that the store answers from the right bucket, or that it does not.
_BELIEVED: Final = 3.0
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Identity:
    """What `mirror.json` says."""

    id: str
    is_migrating: bool = False

    def to_json(self) -> bytes:
        """The content of the object."""
        migrating = {"migrating": True} if self.is_migrating else {}
        return json.dumps({"layout": BUCKET_LAYOUT, "id": self.id, **migrating}).encode()


class BucketOwner:
    """The use of a bucket by one process. All calls block, and raise `StoreError`, except where they say that they are
    quick.
    """

    def __init__(
        self,
        bucket: Bucket,
        memory: RecordMemory,
        note: BucketNote,
        disk: str,
        exclusive: Callable[[], AbstractContextManager[None]],
        upstreams: Collection[str] = (),
        *,
        run: str = "",
        migrates: bool = False,
        cluster: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`disk` is the id of the local store, `exclusive` a lock of all its processes. A registry of `upstreams` must
        have no names in the bucket. `run` is the id of this run of a server, which takes the bucket over; empty for a
        command, which writes only where the server of the same disk does. `migrates`: a bucket that is being migrated
        to may be used. `cluster` is the name of the cluster of which this mirror is a replica. `now` is in seconds.
        """
        self._bucket = bucket
        self._memory = memory
        self._note = note
        #: Who uses the bucket if this mirror does.
        self._user = f"{_CLUSTER}{cluster}" if cluster else disk
        self._in_cluster = bool(cluster)
        self._exclusive = exclusive
        self._upstreams = upstreams
        self._run = run
        self._migrates = migrates
        self._now = now
        self._confirming = threading.Lock()
        self._seen: SharedReads[None] = SharedReads()
        #: When the identity was last known to be right.
        self._seen_at = float("-inf")
        #: Why the bucket is the wrong one, and until when nobody looks again.
        self._wrong: tuple[BucketUnfit, float] | None = None
        self._id = ""
        #: The same, also while the bucket is another one.
        self._known = ""
        self._nonce = ""
        #: True if the disk is to note the bucket's id before the first write.
        self._claims = False
        #: Upstreams that have names in the bucket: what these mean would depend on the configuration.
        self.refused: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<BucketOwner {self._id or 'unconfirmed'}{'' if self._nonce else ', reads only'}>"

    @property
    def id(self) -> str:
        """The id of the bucket; empty until it is confirmed."""
        return self._id

    @property
    def is_confirmed(self) -> bool:
        """True if this is the right bucket, and what is remembered of it counts. Quick."""
        return bool(self._id)

    @property
    def is_overtaken(self) -> bool:
        """True if another mirror is known to use the bucket. Quick."""
        try:
            return self.is_confirmed and not self.owns
        except StoreError:
            return False

    @property
    def trouble(self) -> str:
        """Why this is no longer the right bucket; empty: it is, or that is not known. Quick."""
        return str(self._wrong[0]) if self._wrong is not None and not self._id else ""

    def confirm(self) -> None:
        """See that this is the right bucket, and take it over if this is a server. Quick once that is done."""
        if self._id:
            return
        with self._confirming:
            if not self._id:
                if self._wrong is not None and self._now() < self._wrong[1]:
                    raise self._wrong[0]
                began = self._now()
                try:
                    with self._exclusive():
                        identity = self._identify()
                        self._begin_use(identity)
                except BucketUnfit as error:
                    if self._known:
                        self._wrong = error, self._now() + _BELIEVED
                    raise
                self._wrong, self.refused = None, frozenset()
                self._seen_at = began
                self._known = self._id = identity

    def seen_lately(self) -> None:
        """Raises `StoreError` unless the identity was right a few seconds ago, or is now. Quick in the first case."""
        if self._now() - self._seen_at > _BELIEVED:
            self.seen_again()

    def seen_again(self) -> None:
        """See that the store answers from the right bucket now: after an answer on which much rests. Callers at the
        same time share one request. Raises `StoreError`.
        """
        self.confirm()
        self._seen.ask(IDENTITY, self._see)

    def proven(self) -> None:
        """To be called when the store has shown that it has what was written to the right bucket."""
        self._seen_at = self._now()

    def _see(self) -> None:
        began, known = self._now(), self._known
        found = self._read_identity()
        if found is None or found[0].id != known:
            error = BucketUnfit(f"the bucket is no longer the one with the id {known}")
            if self._id:
                log.error("bucket is another one", id=known)
            self._wrong, self._id = (error, self._now() + _BELIEVED), ""
            raise error
        self._seen_at = max(self._seen_at, began)

    @property
    def owns(self) -> bool:
        """True if this process may write to the bucket, as far as it knows. Raises `StoreError`."""
        if not self._nonce and not (self._is_replica and self._id):
            return False
        nonce = self._memory_nonce()
        # another process of this replica may have found a new nonce
        return nonce == self._nonce or (self._in_cluster and nonce != "" and not nonce.startswith(_OVERTAKEN))

    @property
    def _is_replica(self) -> bool:
        return self._in_cluster and bool(self._run)

    def must_own(self) -> None:
        """To be called before each write. Quick once the bucket is confirmed. Raises `BucketUnavailable` if another
        mirror uses the bucket.
        """
        self.confirm()
        if not self.owns and not (self._nonce and not self._memory_nonce() and self.watch()):
            raise self._foreign()
        if self._claims:
            self._claim(self._id)

    def check(self) -> None:
        """See in the bucket itself that it is the right one and that no other mirror uses it: to be called before and
        after what must not rest on another bucket.
        """
        self.watch()
        self.must_own()

    def watch(self) -> bool:
        """False if another mirror has taken the bucket over; the memory is told so. To be called now and then. A memory
        that was lost, and an object that was, are made anew. A replica whose cluster has the bucket back takes part
        again, and believes nothing that it remembers. Raises `BucketUnfit` if the bucket is no longer the right
        one.
        """
        self.seen_again()
        if not self._nonce and not self._is_replica:
            return False
        with self._exclusive():
            remembered = self._memory_nonce()
            if not self._nonce and self.owns:
                # another process of this replica has found that the cluster has the bucket back
                self._nonce = remembered
            if not self._nonce or (remembered != "" and not self.owns):
                return self._is_replica and self._takes_part_again()
            user, nonce, version = self._read_last_use()
            if not nonce:
                nonce = self._write_last_use(self._nonce, version)
                user = self._user
            if self._in_cluster and user == self._user and nonce not in ("", self._nonce):
                # another replica has found that the object was lost, or knows no earlier one
                self._remember(nonce)
                self._nonce = nonce
                return True
            if nonce == self._nonce:
                if not remembered:
                    self._remember(self._nonce)
                return True
            log.warning("bucket taken over by another mirror", disk=user)
            self._remember(self._overtaken)
            return False

    def _takes_part_again(self) -> bool:
        user, nonce, _ = self._read_last_use()
        if user != self._user or not nonce:
            return False
        self._refuse_hosted()
        # it is another nonce than that of the memory, so nothing that is remembered counts
        self._remember(nonce)
        self._nonce = nonce
        log.warning("bucket used by this cluster again")
        return True

    def identity(self) -> Identity | None:
        """What `mirror.json` says; None if there is none."""
        found = self._read_identity()
        return found[0] if found else None

    def set_migrating(self, is_migrating: bool) -> None:
        """Say in the bucket whether it is being migrated to. Repeatable."""
        self.confirm()
        for _ in range(_ATTEMPTS):
            found = self._read_identity()
            if found is None:
                raise BucketUnfit(f"the bucket has lost its {IDENTITY}")
            if found[0].is_migrating == is_migrating:
                return
            try:
                self._bucket.write(IDENTITY, Identity(found[0].id, is_migrating).to_json(), expect=found[1])
            except RecordChanged:
                continue
            return
        raise BucketUnavailable(f"{IDENTITY} is changed all the time")

    # ------------------------------------------------------------------------------------------------------ identity

    def _identify(self) -> str:
        on_disk = self._note.read()
        noted = on_disk or self._known or None
        found = self._read_identity()
        if found is None:
            found = self._create(noted)
        identity = found[0]
        if noted is not None and noted != identity.id:
            raise BucketUnfit(
                f"hosted content of this disk is in the bucket with the id {noted}, and this bucket has the id"
                f" {identity.id}: look at [store] bucket"
            )
        if identity.is_migrating and not self._migrates:
            raise BucketUnfit("a migration to or from this bucket is not finished: run mirror migrate again")
        # a migration notes it when it is finished, a command when it writes: until then the disk counts
        self._claims = on_disk is None and not self._migrates
        if self._claims and self._run:
            self._claim(identity.id)
        return identity.id

    def _claim(self, identity: str) -> None:
        """Note on the disk that its hosted content is in this bucket from now on."""
        self._note.write(identity)
        self._claims = False

    def refuse_remembered(self) -> None:
        """Raises `BucketUnfit` if the registry of an upstream has a name in the bucket, as far as this disk remembers;
        asks no bucket.
        """
        noted = self._note.read()
        if noted is None or self._memory_owner()[0] != noted:
            return
        for registry in self._upstreams:
            after, stop = f"{NAMES}/{registry}/", f"{NAMES}/{registry}0"
            while rows := self._remembered(after, stop):
                for row in rows:
                    if row.state in (RecordState.DELETED, RecordState.PERHAPS_DELETED):
                        continue
                    # a name of which nothing is certain is rather taken
                    if row.state is RecordState.UNKNOWN or row.content is None or says_taken(row.content):
                        raise self._hosted(row.key, registry)
                after = rows[-1].key

    def _refuse_hosted(self) -> None:
        """Raises `BucketUnfit` if the registry of an upstream has a name in the bucket: what the name means would
        depend on the configuration.
        """
        for registry in self._upstreams:
            for info in self._bucket.list(f"{NAMES}/{registry}/"):
                if info.size != DELETED_SIZE and self._is_taken(info):
                    raise self._hosted(info.key, registry)

    def _is_taken(self, info: ObjectInfo) -> bool:
        row = None
        with suppress(IndexUnavailable):
            row = self._memory.recall(info.key)
        if row is not None and row.content is not None and info.version and row.version == info.version:
            return says_taken(row.content)
        found = self._read(info.key)
        return found is not None and says_taken(found.content)

    def _hosted(self, key: str, registry: str) -> BucketUnfit:
        self.refused |= {registry}
        name = key.removeprefix(f"{NAMES}/").replace("!", "/")
        return BucketUnfit(f"{registry} is an upstream, and the bucket has hosted images of it ({name})")

    def _remembered(self, after: str, stop: str) -> Sequence[RememberedRecord]:
        try:
            return self._memory.scan(after, stop, _PAGE)
        except IndexUnavailable as error:
            raise StoreError(f"it cannot be said what the bucket has: {error}") from error

    def _create(self, noted: str | None) -> tuple[Identity, Version]:
        there = next((info.key for info in self._bucket.list("") if not info.key.startswith(PROBES)), None)
        if noted is not None:
            raise BucketUnfit(
                f"hosted content of this disk is in the bucket with the id {noted}, and this one has no {IDENTITY}:"
                " look at [store] bucket"
            )
        if there is not None:
            raise BucketUnfit(f"the bucket has objects ({there}) and no {IDENTITY}: the prefix must be empty at first")
        identity = Identity(secrets.token_hex(8), is_migrating=self._migrates)
        try:
            return identity, self._bucket.write(IDENTITY, identity.to_json(), expect=ABSENT)
        except RecordChanged:
            found = self._read_identity()
            if found is None:
                raise
            return found

    def _read_identity(self) -> tuple[Identity, Version] | None:
        found = self._read(IDENTITY)
        if found is None:
            return None
        try:
            said = json.loads(found.content)
            layout, identity = said["layout"], Identity(str(said["id"]), bool(said.get("migrating", False)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BucketUnfit(f"{IDENTITY} in the bucket is damaged") from error
        if layout != BUCKET_LAYOUT:
            raise BucketUnfit(f"the bucket has the layout {layout}; this version of the mirror knows {BUCKET_LAYOUT}")
        return identity, found.version

    # ----------------------------------------------------------------------------------------------------------- use

    @property
    def _overtaken(self) -> str:
        return f"{_OVERTAKEN} {self._run}"

    def _begin_use(self, identity: str) -> None:
        known, remembered = self._memory_owner()
        if known != identity:
            remembered = ""
        for _ in range(_ATTEMPTS):
            user, nonce, version = self._read_last_use()
            if not self._run and user and user != self._user:
                # what an earlier command has listed may be out of date
                self._remember("", identity)
                self._remember(self._overtaken, identity)
                return
            if self._run and remembered == self._overtaken and not (self._in_cluster and nonce and user == self._user):
                return
            if nonce and user == self._user and (self._in_cluster or nonce == self._run or not self._run):
                if self._in_cluster and self._run:
                    self._refuse_hosted()
                # what is remembered with another nonce counts no more
                self._remember(nonce, identity)
                self._nonce = nonce
                return
            if self._run:
                self._refuse_hosted()
            is_ours = user == self._user and nonce == remembered != ""
            if not is_ours:
                # from here on nothing that is remembered counts, whoever dies when
                self._remember("", identity)
            fresh = secrets.token_hex(8) if self._in_cluster else self._run or secrets.token_hex(8)
            if self._write_last_use(fresh, version) != fresh:
                continue
            if user and user != self._user:
                log.warning("bucket taken over from another mirror", disk=user)
            # who dies before this has another nonce than the bucket at the next start
            self._remember(fresh, identity, keeps=is_ours)
            self._nonce = fresh
            return
        raise BucketUnavailable(f"{LAST_USED} is changed all the time")

    def _write_last_use(self, nonce: str, version: Version | None) -> str:
        """Returns the nonce; empty if another process was quicker."""
        user = {"cluster": self._user.removeprefix(_CLUSTER)} if self._in_cluster else {"disk": self._user}
        content = json.dumps({**user, "nonce": nonce}).encode()
        try:
            self._bucket.write(LAST_USED, content, expect=version if version else ABSENT)
        except RecordChanged:
            return ""
        return nonce

    def _read_last_use(self) -> tuple[str, str, Version | None]:
        """Who uses the bucket, a mirror by its disk or a cluster, and the nonce, both empty if nobody or not readable;
        and the version.
        """
        found = self._read(LAST_USED)
        if found is None:
            return "", "", None
        try:
            said = json.loads(found.content)
            user = f"{_CLUSTER}{said['cluster']}" if "cluster" in said else str(said["disk"])
            return user, str(said["nonce"]), found.version
        except (ValueError, KeyError, TypeError, RecursionError):
            return "", "", found.version

    def _read(self, key: str) -> StoredObject | None:
        found = self._bucket.read(key, _LIMIT)
        return None if isinstance(found, NotChanged) else found

    def _memory_owner(self) -> tuple[str, str]:
        try:
            return self._memory.owner()
        except IndexUnavailable as error:
            raise StoreError(f"it cannot be said who uses the bucket: {error}") from error

    def _memory_nonce(self) -> str:
        return self._memory_owner()[1]

    def _remember(self, nonce: str, identity: str = "", *, keeps: bool = False) -> None:
        try:
            self._memory.adopt(identity or self._id, nonce, keeps=keeps)
        except IndexUnavailable as error:
            raise StoreError(f"it cannot be noted who uses the bucket: {error}") from error

    def _foreign(self) -> BucketUnavailable:
        if self._run:
            return BucketUnavailable("another mirror uses this bucket now; this one only reads", retry_after=60.0)
        return BucketUnavailable(
            "the bucket is used by the mirror of another disk, or by a cluster: run the command there"
        )


class OwnedBucket:
    """A `Bucket` that is used only once it is confirmed, and written to only by the mirror that uses it. What the store
    answers counts only while it answers from the right bucket.
    """

    def __init__(self, bucket: Bucket, owner: BucketOwner) -> None:
        self._bucket = bucket
        self._owner = owner
        self.sign = _after(owner.confirm, bucket.sign)
        self.upload = _after(owner.must_own, bucket.upload)
        self.delete = _after(owner.must_own, bucket.delete)
        self.abort_uploads = _after(owner.must_own, bucket.abort_uploads)
        self.health = bucket.health

    def __repr__(self) -> str:
        return f"<OwnedBucket {self._owner!r}>"

    def read(self, key: str, limit: int, *, unless: Version | None = None) -> StoredObject | NotChanged | None:
        """See `ObjectReader.read`."""
        self._owner.confirm()
        found = self._bucket.read(key, limit, unless=unless)
        if isinstance(found, NotChanged):
            # another bucket does not have this version
            self._owner.proven()
        else:
            self._owner.seen_lately()
        return found

    def head(self, key: str) -> ObjectInfo | None:
        """See `ObjectReader.head`."""
        self._owner.confirm()
        found = self._bucket.head(key)
        self._owner.seen_lately()
        return found

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Body | None:
        """See `ObjectReader.open`. The digest says whether the bytes are the right ones."""
        self._owner.confirm()
        found = self._bucket.open(key, start, stop)
        if found is None:
            self._owner.seen_lately()
        return found

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        """See `ObjectWriter.write`."""
        self._owner.must_own()
        version = self._bucket.write(key, content, expect=expect)
        if expect is ABSENT:
            # it is also absent in an empty bucket, where it would be lost; a record that names it follows each state
            if not key.startswith(STATES):
                self._owner.seen_again()
        elif expect is not None:
            self._owner.proven()
        return version

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """See `ObjectLister.list`. Confirms the bucket when it is first iterated, not before: a thread does that."""
        self._owner.confirm()
        yield from self._bucket.list(prefix, after=after)
        # in an empty bucket, the rest would be missing
        self._owner.seen_again()

    def close(self) -> None:
        """See `Bucket.close`."""
        self._bucket.close()


def _after(check: Callable[[], None], call: Callable[P, T]) -> Callable[P, T]:
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        check()
        return call(*args, **kwargs)

    return checked
