"""The links of hosted repositories: which blobs each may serve.

A link stands only while its bytes are hosted. Whoever writes one writes the link first, and then takes the bytes out of
the queue of the collector (`rescue`):

    link ──> rescue ──┬─ the bytes are here ─────> the link stands: a collector's walk that begins now meets it, and one
                      │                            that began before finds the bytes no longer in the queue
                      └─ they are certainly gone ─> the link is dropped by its version, and the blob is unknown

So no time to wait stands between a push and the collection, and no lock either.

A link whose record is damaged gives a pusher no right, like the mark of a removal: whoever uploads the blob, or mounts
it by name, writes it anew. Only `find` raises `RecordDamaged`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Final

from mirror.errors import BlobUnknown, QuotaExceeded, RecordChanged, RecordDamaged, StoreError
from mirror.hosting.parts import HostedParts
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.policy.hosted.push_checks import is_stale, linked, may_use, renewed, reserved
from mirror.policy.hosted_records import BlobLink, LinkState
from mirror.ports import ABSENT, OWN_WORK, Expected, Steps, Version, Versioned

#: Times that a change is tried again because another process has changed the record meanwhile.
TRIES: Final = 100


class Links:
    """The links of all hosted repositories. All calls block for a short time, and raise `StoreError` if a record or the
    bytes cannot be read.
    """

    def __init__(self, parts: HostedParts, *, patience: float | None = None) -> None:
        """`patience` is for how many seconds a call waits while bytes that only the cache has are sent to where hosted
        ones are (None: until they are there). After that the blob is unknown for now, and the client uploads it.
        """
        self._parts = parts
        self._patience = patience

    def __repr__(self) -> str:
        return "<Links>"

    def find(self, repo: Repo, digest: Digest) -> BlobLink | None:
        """Returns the repository's link, whatever its state; None if it has none."""
        found = self._parts.records.link(repo, digest)
        return found.record if found else None

    def is_removed(self, repo: Repo, digest: Digest) -> bool:
        """True if a client has deleted the blob here, or may have because the link is damaged."""
        found = self._or_removed(repo, digest)
        return found is not None and found.record.state is LinkState.REMOVED

    def make(self, repo: Repo, digest: Digest, size: int) -> None:
        """Links a blob that was uploaded or mounted, whatever link there was. Raises `QuotaExceeded`, and `BlobUnknown`
        if its bytes have gone meanwhile.
        """
        link = linked(digest, size, self._parts.now())
        try:
            before = self._parts.records.link(repo, digest)
        except RecordDamaged:
            # nobody could write the damaged record again if the quota did not allow the new one
            self._parts.accounts.check(repo, size, digest)
            before = None
        self._write(repo, link, before, expect=None)

    def reserve(self, repo: Repo, digest: Digest, size: int, caller: str) -> bool:
        """Reserves a blob for the caller. False if a client has deleted the blob here, or may have. Raises
        `BlobUnknown` if its bytes have gone meanwhile.
        """
        for _ in range(TRIES):
            try:
                before = self._parts.records.link(repo, digest)
            except RecordDamaged:
                return False
            now = self._parts.now()
            link = reserved(before.record if before else None, digest, size, now, caller)
            if before is not None and link == before.record:
                return may_use(link, caller)
            try:
                self._write(repo, link, before, expect=before.version if before else ABSENT)
            except RecordChanged:
                continue
            return True
        raise _never_still(repo, digest)

    def use(self, repo: Repo, digest: Digest, caller: str) -> BlobLink:
        """Returns the link that the caller of a push relies on; it is renewed if it may soon be collected. Raises
        `BlobUnknown` if there is none, or if its bytes are not here.
        """
        for _ in range(TRIES):
            found = self._usable(repo, digest, caller)
            now = self._parts.now()
            if not is_stale(found.record, now, self._parts.grace):
                self._bytes(found.record)
                return found.record
            try:
                self._write(repo, renewed(found.record, now), found, expect=found.version)
            except RecordChanged:
                continue
            return found.record
        raise _never_still(repo, digest)

    def keep(self, repo: Repo, digest: Digest, caller: str) -> BlobLink:
        """Returns the link on which a manifest of the repository relies: a reservation of the caller comes into force,
        and a link that waits to be collected waits no longer. Raises `BlobUnknown` like `use`, `QuotaExceeded`.
        """
        for _ in range(TRIES):
            found = self._usable(repo, digest, caller)
            link = found.record
            if link.state is LinkState.LINKED and link.queued_at is None:
                self._bytes(link)
                return link
            try:
                kept = linked(digest, link.size, self._parts.now())
                self._write(repo, kept, found, expect=found.version)
            except RecordChanged:
                continue
            return kept
        raise _never_still(repo, digest)

    def restore(self, repo: Repo, digest: Digest) -> None:
        """Links a blob again that a client has deleted here, because a deleted manifest that names it comes back. A
        link of another state stays as it is; without the bytes, the mark of the deletion stays. Raises `QuotaExceeded`.
        """
        for _ in range(TRIES):
            found = self._or_removed(repo, digest)
            if found is None or found.record.state is not LinkState.REMOVED:
                return
            link = linked(digest, found.record.size, self._parts.now())
            try:
                self._write(repo, link, found, expect=found.version, lost=found)
            except RecordChanged:
                continue
            except BlobUnknown:
                return
            return
        raise _never_still(repo, digest)

    def own(self, repo: Repo, digest: Digest, caller: str) -> BlobLink:
        """Returns the link that the caller may use, whether its bytes are sound or not. Raises `BlobUnknown`."""
        return self._usable(repo, digest, caller).record

    def removable(self, repo: Repo, digest: Digest, caller: str) -> Versioned[BlobLink]:
        """Returns the link that the caller may delete: one that the caller may use, or a damaged one, as a mark. Raises
        `BlobUnknown` if there is none.
        """
        try:
            found = self._parts.records.link(repo, digest)
        except RecordDamaged as damaged:
            return self._mark(digest, damaged)
        if found is None or not may_use(found.record, caller):
            raise BlobUnknown(f"{repo} has no blob {digest}")
        return found

    def let_wait(self, repo: Repo, link: Versioned[BlobLink], steps: Steps = OWN_WORK) -> Versioned[BlobLink]:
        """Lets a link wait, as if it was to be collected: whoever relies on it from now on writes it anew. Raises
        `RecordChanged`, `StaleRequest`.
        """
        if link.record.state is LinkState.REMOVED or link.record.queued_at is not None:
            # nobody relies on it without a write
            return link
        waiting = replace(link.record, queued_at=self._parts.now())
        version = self._parts.records.put_link(repo, waiting, expect=steps.expect(link.version))
        return Versioned(waiting, version)

    def remove(self, repo: Repo, link: Versioned[BlobLink], steps: Steps = OWN_WORK) -> Version:
        """Leaves a mark instead of a link. Raises `RecordChanged`, `StaleRequest`."""
        mark = replace(link.record, state=LinkState.REMOVED, since=self._parts.now(), by="", queued_at=None)
        return self._parts.records.put_link(repo, mark, expect=steps.expect(link.version))

    def _usable(self, repo: Repo, digest: Digest, caller: str) -> Versioned[BlobLink]:
        found = self._or_removed(repo, digest)
        if found is None or not may_use(found.record, caller):
            raise BlobUnknown(f"{repo} has no blob {digest}")
        return found

    def _or_removed(self, repo: Repo, digest: Digest) -> Versioned[BlobLink] | None:
        """The link; the mark of a removal in place of a damaged one."""
        try:
            return self._parts.records.link(repo, digest)
        except RecordDamaged as damaged:
            return self._mark(digest, damaged)

    def _mark(self, digest: Digest, damaged: RecordDamaged) -> Versioned[BlobLink]:
        size = 0
        with suppress(BlobUnknown):
            size = self._parts.contents.stat(digest).size
        mark = BlobLink(digest, size, LinkState.REMOVED, self._parts.now())
        return Versioned(mark, Version(damaged.version))

    def _write(
        self,
        repo: Repo,
        link: BlobLink,
        before: Versioned[BlobLink] | None,
        *,
        expect: Expected,
        lost: Versioned[BlobLink] | None = None,
    ) -> None:
        """Writes a link, makes sure that its bytes are here, and counts it. Undoes that if one of them fails: `before`
        is what the repository had, `lost` what it has if the bytes are gone. Raises `BlobUnknown`, `QuotaExceeded`,
        `RecordChanged`.
        """
        version = self._parts.records.put_link(repo, link, expect=expect)
        try:
            self._bytes(link, rescue=True)
            if link.state is LinkState.LINKED:
                self._parts.accounts.link(repo, link.digest, link.size)
        except BlobUnknown:
            self._undo(repo, link.digest, lost, version)
            raise
        except QuotaExceeded:
            self._undo(repo, link.digest, before, version)
            raise

    def _undo(self, repo: Repo, digest: Digest, before: Versioned[BlobLink] | None, version: Version) -> None:
        # another push that has written the link meanwhile has looked at the bytes and the quota itself
        try:
            if before is None:
                self._parts.records.drop_link(repo, digest, expect=version)
            else:
                self._parts.records.put_link(repo, before.record, expect=version)
        except RecordChanged:
            return

    def _bytes(self, link: BlobLink, *, rescue: bool = False) -> None:
        """Returns if the bytes of a link are hosted, with the right size. A blob that only the cache has is hosted from
        now on. Raises `BlobUnknown`: a client that pushes the blob again repairs it.
        """
        blobs = self._parts.blobs
        try:
            info = blobs.rescue(link.digest) if rescue else blobs.hosted(link.digest)
        except BlobUnknown:
            if self._parts.contents.stat(link.digest).size != link.size:
                raise
            info = blobs.adopt(link.digest, self._patience)
        if info.size != link.size:
            raise BlobUnknown(f"{link.digest} is damaged here: {info.size} bytes instead of {link.size}")


def _never_still(repo: Repo, digest: Digest) -> StoreError:
    return StoreError(f"the link of {repo} to {digest} was changed all the time")
