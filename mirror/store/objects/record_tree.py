"""A tree of records in a bucket: one small object for each record, changed by compare-and-set.

    no object ── write ──> live ── write ──> live, another version ── drop ──> deleted ── write ──> live …

A deletion in a bucket cannot depend on a version, so a deleted record is an object of its own kind: a zero byte and 16
random bytes. Its version is never that of another deletion, so a write that arrives late changes nothing. Every write
depends on a version, also one whose caller expects nothing: it reads first.

What this machine remembers (`ports/record_memories.py`) saves transfers, and gives names without a listing:

    read      a conditional GET by the remembered version
    write     begin ── the bucket ── end: the memory says nothing wrong at any moment, whoever dies when
    names     from the memory, once the bucket was listed; until then, one listing of that folder

How much is believed of the memory (`Reads`):

    STRICT      nothing: the bucket says what a record is, or StoreError. For whatever changes hosted content.
    OWN         what this mirror has written, or compared since the start; for what nobody else changes.
    LENIENT     while the bucket cannot be asked: what was compared with it since the start. For pulls.
    REMEMBERED  everything, and the bucket is asked only for what is not known; if it cannot be asked, what a memory
                that was complete once does not know is absent. For eviction, display, and cached content.

In a cluster other replicas write, too, and `record_journals.py` says what they have changed. Each write is then made
with an entry in a journal. OWN and LENIENT believe what the journal leaves true, after a look at it that is young
enough; while another replica writes, they ask the bucket. Names are complete only as far as the journal says so;
otherwise the folder is listed. So is it before a name is released; and who takes a name looks in the bucket whether it
still has it.

A name is taken by a record of its own, `names/<registry>/<name>`, with `!` for each `/` of the name:

    no record ── take ──> taken ── forget: free, a look for records, taken again if there are any ──> free ── take ──> …

Who writes a record takes the name first and looks at it again afterwards: of a push and a `forget` that meet, one sees
the other.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from enum import Enum
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from mirror.aio.caches import SharedLru
from mirror.errors import BucketUnavailable, IndexUnavailable, RecordChanged, RequestError, StoreError
from mirror.oci.reference import Repo, check_registry
from mirror.policy.cluster import journal_names
from mirror.ports import (
    ABSENT,
    Absent,
    Condition,
    Expected,
    InTime,
    ListedPart,
    ListedRecord,
    NotChanged,
    ObjectLister,
    ObjectReader,
    ObjectWriter,
    RecordMemory,
    RecordState,
    RememberedFolder,
    RememberedRecord,
    Version,
    Versioned,
)
from mirror.store.objects.shared_reads import SharedReads
from mirror.store.records.record_keys import LISTED, REPOSITORIES, repo_from, repository

if TYPE_CHECKING:
    from mirror.store.objects.record_journals import BucketJournals

#: The folder of the names that repositories have taken.
NAMES: Final = "names"
#: Stands for the slashes of a name: no key is a folder of another, which some stores do not allow.
_SLASH: Final = "!"
#: Bytes of a record that was deleted. No other record has this size.
DELETED_SIZE: Final = 17
#: Bytes. No record is larger.
MOST_BYTES: Final = 8 << 20
#: Folders whose records take a name, besides links, which do so only if they are more than reservations.
_TAKING: Final = frozenset({"_tags", "_manifests", "_referrers", "_deleted", "_deleted_tags"})
#: Records whose absence no pull believes while the bucket does not answer: clients would give up for good.
_NEVER_ABSENT: Final = (f"{REPOSITORIES}/", "state/robots/")
#: Records of one folder that are read to give a list of names. More of them are being changed only if a lot goes wrong.
_MOST_READS: Final = 1000
_PAGE: Final = 500
#: Folders of repositories that are looked at first. A repository has no more.
_FIRST_PAGE: Final = 16
#: A name goes on like this in keys that are before its own, although it is before them as text.
_GOES_ON: Final = re.compile(r"[-.]|/[0-9]")
#: Seconds that a pull may last, from its look at a journal to its last read of a record.
_ONE_PULL: Final = 1.0
#: A write that expects nothing is tried so often while others change the same record.
_ATTEMPTS: Final = 100
#: Names that were found free while the memory was not complete.
_FREE: Final = 10_000


class Reads(Enum):
    """How much of the memory is believed."""

    STRICT = "strict"
    OWN = "own"
    LENIENT = "lenient"
    REMEMBERED = "remembered"


class RecordObjects(ObjectReader, ObjectWriter, ObjectLister, Protocol):
    """What a tree of records needs of a bucket."""


#: A record as the bucket has it: its version, and its content, None if it is deleted. None: there is no object.
_Found: TypeAlias = Versioned[bytes | None] | None
#: See `InTime.check`.
_Check: TypeAlias = Callable[[], None] | None


class BucketTree:
    """See `mirror.ports.RecordTree`. May be used from any thread; one for all threads of a process, with `view`s."""

    def __init__(
        self,
        bucket: RecordObjects,
        memory: RecordMemory,
        reads: Reads = Reads.STRICT,
        *,
        is_confirmed: Callable[[], bool] = lambda: True,
        complete: Callable[[], None] = lambda: None,
        see: Callable[[], None] = lambda: None,
        journals: BucketJournals | None = None,
    ) -> None:
        """`is_confirmed`: whether it is certain that the memory is that of this bucket; quick. `complete` is called
        when a complete memory is needed: it may list the bucket, if nobody else does. `see` makes sure, by a request,
        that the bucket is the right one now: it raises `StoreError` if not. `journals`: what other replicas change;
        None if there are none.
        """
        self._bucket = bucket
        self._memory = memory
        self._reads = reads
        self._is_confirmed = is_confirmed
        self._complete = complete
        self._see = see
        self.journals: Final = journals
        self._shared: SharedReads[_Found] = SharedReads()
        #: By name: the epoch of the memory in which the bucket had no record of it, and when that was.
        self._free: SharedLru[Repo, tuple[int, float]] = SharedLru(_FREE)

    def __repr__(self) -> str:
        return f"<BucketTree {self._reads.value}>"

    def view(self, reads: Reads) -> BucketTree:
        """The same tree, with another belief in the memory."""
        tree = BucketTree(
            self._bucket,
            self._memory,
            reads,
            is_confirmed=self._is_confirmed,
            complete=self._complete,
            see=self._see,
            journals=self.journals,
        )
        tree._shared, tree._free = self._shared, self._free
        return tree

    # ----------------------------------------------------------------------------------------------- single records

    def read(self, key: str) -> Versioned[bytes] | None:
        if self.journals is not None and self._reads in (Reads.OWN, Reads.LENIENT):
            known, found = self._by_journal(key, self.journals)
            if known:
                return found
        elif self._reads in (Reads.REMEMBERED, Reads.OWN):
            known, found = self._remembered(key, trusted=self._reads is Reads.OWN)
            if known:
                return found
        try:
            return _live(self._ask(key))
        except BucketUnavailable:
            if self._reads is Reads.REMEMBERED and self._recall(key) is None and self._was_complete():
                return None
            # with journals, `_by_journal` has said whether what is remembered may be believed
            is_followed = self.journals is not None and journal_names.of_key(key) is not None
            known, found = self._remembered(key, trusted=True)
            if self._reads is not Reads.LENIENT or not known or is_followed:
                raise
            return found

    def _by_journal(self, key: str, journals: BucketJournals) -> tuple[bool, Versioned[bytes] | None]:
        """Whether what is remembered of a record is true by its journal, and what that is. Raises `StoreError`."""
        name = journal_names.of_key(key)
        if name is None:
            return False, None
        is_lenient = self._reads is Reads.LENIENT
        # pulls look at the journal before they read, and this read may be a part of one; what decides about a change
        # does not rest on an older look
        age = journals.freshness + (_ONE_PULL if journal_names.repo_path(name) else 0.0) if is_lenient else 0.0
        try:
            counts = journals.look(name, age, patient=not is_lenient)
        except BucketUnavailable:
            known, found = self._remembered(key, trusted=True)
            # another replica may have made a record since; that nothing is frozen, pinned or lost is believed
            if not is_lenient or not known or (found is None and key.startswith(_NEVER_ABSENT)):
                raise
            journals.believed(name)
            return known, found
        return self._remembered(key, trusted=True) if counts else (False, None)

    def write(self, key: str, content: bytes, *, expect: Condition = None) -> Version:
        """See `RecordTree.write`; durable on return. Raises `ValueError` if the content is empty, or begins with a
        zero byte.
        """
        if not content or not content[0]:
            raise ValueError("a record is not empty and does not begin with a zero byte")
        if len(content) == DELETED_SIZE:
            content += b"\n"
        repo = _takes_name(key)
        if repo is not None:
            self.take(repo)
        version = self._replace(key, content, *_parts(expect))
        if repo is not None:
            # the name may have been released between the two
            self.take(repo, again=True)
        return version

    def drop(self, key: str, *, expect: Condition = None) -> None:
        deleted = b"\0" + secrets.token_bytes(DELETED_SIZE - 1)
        expected, check = _parts(expect)
        if isinstance(expected, str):
            self._send(key, deleted, expected, check)
            return
        for _ in range(_ATTEMPTS):
            found = self._ask(key)
            if found is None:
                # otherwise the record would be back with the right bucket
                self._see()
            if found is None or found.record is None:
                return
            if expected is ABSENT:
                raise RecordChanged(f"there is a record {key}")
            with suppress(RecordChanged):
                self._send(key, deleted, found.version, check)
                return
        raise BucketUnavailable(f"the record {key} is changed all the time")

    def flush(self) -> None:
        """Nothing to do: a bucket has written what it has acknowledged."""

    def _replace(self, key: str, content: bytes, expect: Expected, check: _Check) -> Version:
        if isinstance(expect, str):
            return self._send(key, content, expect, check)
        base = self._guess(key, expect)
        for _ in range(_ATTEMPTS):
            if base is None:
                found = self._ask(key)
                if expect is ABSENT and found is not None and found.record is not None:
                    raise RecordChanged(f"there is a record {key}")
                base = ABSENT if found is None else found.version
            try:
                return self._send(key, content, base, check)
            except RecordChanged:
                base = None
        raise BucketUnavailable(f"the record {key} is changed all the time")

    def _guess(self, key: str, expect: Expected) -> Version | Absent | None:
        """The version that a write may try first, without a read; None if the memory has no idea."""
        row = self._recall(key)
        if row is None:
            return ABSENT
        if row.version is None or row.state is RecordState.UNKNOWN:
            return None
        if row.state is RecordState.LIVE:
            return None if expect is ABSENT else row.version
        return row.version

    def _send(self, key: str, content: bytes, expect: Version | Absent, check: _Check = None) -> Version:
        """One conditional write, with the memory informed before and after. Raises `RecordChanged`, `StoreError`, and
        what `check` raises.
        """
        with nullcontext() if self.journals is None else self.journals.writing(key):
            return self._send_alone(key, content, expect, check)

    def _send_alone(self, key: str, content: bytes, expect: Version | Absent, check: _Check) -> Version:
        if check is not None:
            check()
        try:
            token = self._memory.begin(key)
        except IndexUnavailable as error:
            # others would go on believing what the memory says
            raise StoreError(f"a record cannot be changed now: {error}") from error
        try:
            version = self._bucket.write(key, content, expect=expect)
        except RecordChanged:
            with suppress(IndexUnavailable):
                self._memory.fail(key, token)
            raise
        # any other error leaves the token: the write may still arrive
        with suppress(IndexUnavailable):
            self._memory.end(key, token, version, None if _is_deleted(content) else content)
        return version

    def _ask(self, key: str) -> _Found:
        """What the bucket says now. Raises `StoreError`."""
        return self._shared.ask(key, lambda: self._ask_alone(key))

    def _ask_alone(self, key: str) -> _Found:
        seen = self._recall(key)
        if seen is None and self.journals is not None:
            seen = self._expect(key)
        is_whole = seen is not None and (seen.content is not None or seen.state is RecordState.DELETED)
        unless = seen.version if seen is not None and is_whole else None
        try:
            answer = self._bucket.read(key, MOST_BYTES, unless=unless)
        except BaseException:
            if seen is not None and seen.state is RecordState.PERHAPS_DELETED and seen.version is None:
                self._note(key, seen, None)
            raise
        if answer is None:
            found: _Found = None
        elif isinstance(answer, NotChanged):
            found = Versioned(seen.content if seen else None, answer.version)
            if seen is not None and seen.is_trusted and seen.state is not RecordState.UNKNOWN:
                return found
        else:
            found = Versioned(None if _is_deleted(answer.content) else answer.content, answer.version)
        if seen is not None and _is_strange(seen, found, others_write=self.journals is not None):
            # nobody else writes here, and a deletion leaves an object: perhaps this is another bucket
            self._see()
        if found is not None or seen is not None:
            self._note(key, seen, found)
        return found

    def _note(self, key: str, seen: RememberedRecord | None, found: _Found) -> None:
        with suppress(IndexUnavailable):
            self._memory.note(key, seen, found.version if found else None, found.record if found else None)

    def _expect(self, key: str) -> RememberedRecord | None:
        """A row for a record of which nothing is remembered: only a row can be doubted while the record is read."""
        with suppress(IndexUnavailable):
            self._memory.expect(key)
        return self._recall(key)

    def _recall(self, key: str) -> RememberedRecord | None:
        with suppress(IndexUnavailable):
            return self._memory.recall(key)
        return None

    def _remembered(self, key: str, *, trusted: bool) -> tuple[bool, Versioned[bytes] | None]:
        """Whether the memory says what a record is, and what it says. `trusted`: only what may be relied upon."""
        try:
            row = self._memory.recall(key)
        except IndexUnavailable:
            return False, None
        if row is None:
            return (self._is_complete() if self.journals is None or not trusted else self._is_listed(key)), None
        if trusted and not (row.is_trusted and self._is_confirmed()):
            return False, None
        if row.state is RecordState.DELETED:
            return True, None
        if row.state is RecordState.LIVE and row.content is not None and row.version is not None:
            return True, Versioned(row.content, row.version)
        return False, None

    # -------------------------------------------------------------------------------------------------------- names

    def names(self, folder: str) -> list[str]:
        """See `RecordTree.names`. Until the memory is complete, this lists one folder of the bucket."""
        beginning = f"{folder}/"
        self._know(beginning)
        states = {row.key: row.state for row in self._rows(beginning)}
        found = {key for key, state in states.items() if state is RecordState.LIVE}
        asked = {key for key, state in states.items() if state is RecordState.UNKNOWN}
        if not self._knows_names():
            listed = self._listed(beginning)
            if listed is None:
                return [name for key in found | asked if "/" not in (name := key.removeprefix(beginning))]
            # what only the memory has may be too new for the listing
            asked |= found - listed.keys()
            for key, size in listed.items():
                if size != DELETED_SIZE:
                    (asked if states.get(key) is RecordState.DELETED else found).add(key)
                elif states.get(key) is RecordState.LIVE:
                    asked.add(key)
        if self._reads is Reads.REMEMBERED:
            found |= asked
        else:
            found = (found - asked) | self._live_ones(asked)
        return [name for key in found if "/" not in (name := key.removeprefix(beginning))]

    def _listed(self, beginning: str) -> dict[str, int] | None:
        """The sizes of the objects below `beginning`, by key; None if the bucket cannot be asked and the memory is
        believed.
        """
        try:
            return {info.key: info.size for info in self._bucket.list(beginning)}
        except BucketUnavailable:
            if self._reads is Reads.REMEMBERED and self._was_complete():
                return None
            raise

    def _know(self, beginning: str) -> None:
        """Let the memory have every name of a folder, at any depth, whatever other replicas do. Raises `StoreError`."""
        name = None if self._reads is Reads.REMEMBERED else journal_names.of_key(beginning)
        if self.journals is None or name is None:
            return
        is_lenient, freshness = self._reads is Reads.LENIENT, self.journals.freshness
        try:
            age = freshness + _ONE_PULL if is_lenient and journal_names.repo_path(name) else 0.0
            if not self.journals.look(name, age, patient=not is_lenient) or not self._is_listed(beginning):
                self._list_part(name, beginning, self.journals)
        except BucketUnavailable:
            if not is_lenient or not self._was_complete():
                raise
            self.journals.believed(name)
            if beginning.endswith("/_tags/") and not any(True for _ in self._rows(beginning)):
                raise

    def _list_part(self, name: str, beginning: str, journals: BucketJournals) -> None:
        """Compare the part of a journal's records that has this beginning with the bucket. Raises `StoreError`."""
        part, position = journal_names.folder_in(name, beginning), journals.position(name)
        self._list_prefix(
            f"{beginning[: beginning.index(f'/{part}/')]}/{part}/" if part.startswith("_") else f"{part}/"
        )
        if position is not None:
            journals.list_folders(name, [part], position.gaps)

    def _list_prefix(self, prefix: str) -> None:
        start = self._memory.begin_listing()
        by_folder: dict[str, list[ListedRecord]] = {}
        for info in self._bucket.list(prefix):
            listed = ListedRecord(info.key, info.version, info.size == DELETED_SIZE)
            by_folder.setdefault(f"{info.key.rpartition('/')[0]}/", []).append(listed)
        parts = [
            ListedPart(folder, f"{folder}\U0010ffff", sorted(listed, key=lambda each: each.key))
            for folder, listed in by_folder.items()
        ]
        try:
            self._memory.compare(start, parts)
        except IndexUnavailable as error:
            raise StoreError(f"records cannot be listed now: {error}") from error

    def _is_listed(self, key: str) -> bool:
        """True if the memory has every name of the part of a journal's records in which a key is."""
        name = journal_names.of_key(key)
        position = self.journals.position(name) if self.journals is not None and name is not None else None
        return position is not None and name is not None and journal_names.folder_in(name, key) in position.listed

    def folders(self, folder: str) -> list[str]:
        beginning = f"{folder}/"
        self._know(beginning)
        keys = {row.key for row in self._rows(beginning)}
        if not self._knows_names():
            keys |= {info.key for info in self._bucket.list(beginning)}
        below = (key.removeprefix(beginning).partition("/") for key in keys)
        return sorted({name for name, slash, _ in below if slash})

    def _know_repositories(self, folders: Collection[str], registry: str = "") -> None:
        """Let the memory have every name of these folders in all repositories, or in those of one registry, whatever
        other replicas do: only those whose journals have changed are looked at. Raises `StoreError`.
        """
        if self.journals is None or self._reads is Reads.REMEMBERED:
            return
        prefix = f"{journal_names.OF_NAMES}{registry}/" if registry else journal_names.OF_NAMES
        for name in self.journals.catch_up(prefix):
            self._know_parts(name, folders, self.journals)

    def _know_parts(self, name: str, parts: Collection[str], journals: BucketJournals) -> None:
        """Let the memory have every name of these parts of a journal's records."""
        position, path = journals.position(name), journal_names.repo_path(name)
        for part in parts:
            if position is None or position.others or part not in position.listed:
                self._list_part(name, f"{REPOSITORIES}/{path}/{part}/" if path else f"{part}/", journals)

    def catch_up(self) -> Sequence[str]:
        """Let the memory have what other replicas have changed, as far as it is about names that are shown: those of
        repositories, tags and manifests, and of all JSON records. Returns the journals that there are. Raises
        `StoreError`.
        """
        if self.journals is None:
            return ()
        names = self.journals.catch_up()
        for name in names:
            parts = LISTED if journal_names.repo_path(name) else journal_names.parts(name)
            self._know_parts(name, parts, self.journals)
        return names

    def read_doubted(self, most: int, seconds: float) -> int:
        """Read again up to `most` records that were read here before and that others have changed since: pulls can then
        be answered while the bucket is down. No more are begun after `seconds`. Records that another replica may still
        be writing wait. Returns how many were read. Raises `BucketUnavailable`, `IndexUnavailable`.
        """
        if self.journals is None:
            return 0
        after, count, ends_at = "", 0, time.monotonic() + seconds
        while keys := self._memory.doubted(after, _PAGE):
            after = keys[-1]
            for key in keys:
                if count >= most or time.monotonic() > ends_at:
                    return count
                name = journal_names.of_key(key)
                if name is None or not self.journals.is_quiet(name):
                    continue
                count += 1
                try:
                    self._ask(key)
                except BucketUnavailable:
                    raise
                except StoreError:
                    # who asks for this one hears why; the others are read
                    continue
        return count

    def begin_names(self) -> Mapping[str, int]:
        """To be called before all records are listed; `end_names` takes the result. Raises `StoreError`."""
        if self.journals is None:
            return {}
        names = {*self.journals.catch_up(), journal_names.OPERATORS, journal_names.LOST}
        for name in names:
            # one that nobody has written yet is not listed
            if self.journals.position(name) is None:
                self.journals.look(name)
        positions = {name: self.journals.position(name) for name in names}
        return {name: position.gaps for name, position in positions.items() if position is not None}

    def end_names(self, begun: Mapping[str, int]) -> None:
        """To be called once all records were listed: their names are complete as far as journals were seen before."""
        if self.journals is not None:
            for name, gaps in begun.items():
                self.journals.list_folders(name, journal_names.parts(name), gaps)

    def registries(self) -> list[str]:
        self._must_be_complete()
        self._know_repositories(LISTED)
        found, after, stop = [], f"{REPOSITORIES}/", f"{REPOSITORIES}0"
        while rows := self._scan(after, stop, 1):
            registry = rows[0].key.split("/")[1]
            after = f"{REPOSITORIES}/{registry}0"
            with suppress(RequestError):
                found.append(check_registry(registry))
        return found

    def repositories(
        self, folders: Collection[str], registry: str = "", *, had: bool = False, after: str = ""
    ) -> Iterator[Repo]:
        """See `RecordTree.repositories`.

        The memory gives them in the order of keys. As text, a name comes before longer ones that begin with it; its
        keys come behind theirs if they go on with `-`, `.`, or `/` and a digit. So it is looked up before the first of
        them is given, and left out when its turn comes.
        """
        self._must_be_complete()
        if had:
            yield from self._taken(registry, after)
            return
        self._know_repositories(folders, registry)
        last, looked_up = "", list[str]()
        for each in self._folders_of_repositories(registry, after):
            path, _, folder = each.folder.removeprefix(f"{REPOSITORIES}/").rpartition("/")
            if path == last or path <= after or folder not in folders:
                continue
            looked_up = [name for name in looked_up if path.startswith(name)]
            if path in looked_up or not self._has_any(each):
                continue
            last = path
            for name in names_before(path):
                if name > after and name not in looked_up:
                    looked_up.append(name)
                    if (repo := repo_from(name)) is not None and self._is_repository(name, folders):
                        yield repo
            if (repo := repo_from(path)) is not None:
                yield repo

    def _folders_of_repositories(self, registry: str, after: str) -> Iterator[RememberedFolder]:
        """All folders of repositories whose keys are behind this name. The first pages are small, for those who want
        few.
        """
        beginning = f"{REPOSITORIES}/{registry}/" if registry else f"{REPOSITORIES}/"
        place, stop, count = max(beginning, f"{REPOSITORIES}/{_ascii(after)}"), f"{beginning[:-1]}0", _FIRST_PAGE
        while page := self._memory_folders(place, stop, count):
            yield from page
            place, count = f"{page[-1].folder}0", min(2 * count, _PAGE)

    def _is_repository(self, name: str, folders: Collection[str]) -> bool:
        """True if a repository has a record in one of these folders."""
        beginning = f"{REPOSITORIES}/{name}/_"
        # the key behind all that begin so
        found = self._memory_folders(beginning, f"{beginning[:-1]}`", _FIRST_PAGE)
        return any(each.folder.rpartition("/")[2] in folders and self._has_any(each) for each in found)

    def _has_any(self, folder: RememberedFolder) -> bool:
        return folder.has_live or (folder.has_unknown and self._has_live(f"{folder.folder}/"))

    def scan(self, prefix: str, after: str, count: int) -> Sequence[RememberedRecord]:
        """What is remembered of up to `count` records below `prefix/` whose keys are after `after`, deleted ones
        included, sorted by key as bytes. Raises `BucketUnavailable` until the memory is complete.
        """
        self._must_be_complete()
        return self._scan(max(after, f"{prefix}/"), f"{prefix}0", count)

    def repositories_added(self) -> int:
        try:
            return self._memory.added()
        except IndexUnavailable:
            return -1

    def _rows(self, beginning: str) -> Iterator[RememberedRecord]:
        after, stop = beginning, f"{beginning[:-1]}0"
        while page := self._scan(after, stop, _PAGE):
            yield from page
            after = page[-1].key

    def _scan(self, after: str, stop: str, count: int) -> Sequence[RememberedRecord]:
        try:
            return self._memory.scan(after, stop, count)
        except IndexUnavailable as error:
            raise StoreError(f"records cannot be listed now: {error}") from error

    def _memory_folders(self, after: str, stop: str, count: int) -> Sequence[RememberedFolder]:
        try:
            return self._memory.folders(after, stop, count)
        except IndexUnavailable as error:
            raise StoreError(f"records cannot be listed now: {error}") from error

    def _live_ones(self, keys: Collection[str]) -> set[str]:
        """Those of these records that exist; the bucket is asked. Raises `BucketUnavailable` if they are too many."""
        if len(keys) > _MOST_READS:
            raise BucketUnavailable(f"{len(keys)} records of one folder are not known", retry_after=_LISTING)
        return {key for key in keys if (found := self._ask(key)) is not None and found.record is not None}

    def _has_live(self, beginning: str) -> bool:
        """True if a record below `beginning`, at any depth, exists."""
        self._know(beginning)
        asked = set()
        for row in self._rows(beginning):
            if row.state is RecordState.LIVE:
                return True
            if row.state is RecordState.UNKNOWN:
                asked.add(row.key)
        if self._reads is Reads.REMEMBERED and asked:
            return True
        if not self._knows_names():
            for info in self._bucket.list(beginning):
                if info.size != DELETED_SIZE:
                    asked.add(info.key)
        return bool(self._live_ones(asked))

    def _is_complete(self) -> bool:
        try:
            return self._is_confirmed() and self._memory.is_complete()
        except IndexUnavailable:
            return False

    def _knows_names(self) -> bool:
        """True if the memory has the names of a folder, in a cluster after `_know`."""
        return (self.journals is not None and self._reads is not Reads.REMEMBERED) or self._is_complete()

    def _was_complete(self) -> bool:
        with suppress(IndexUnavailable):
            return self._memory.was_complete()
        return False

    def _must_be_complete(self) -> None:
        if not self._is_complete():
            self._complete()
        if not self._is_complete():
            raise BucketUnavailable("the records of the bucket are still being listed", retry_after=_LISTING)

    # ---------------------------------------------------------------------------------------- names of repositories

    def had(self, repo: Repo, folders: Sequence[str]) -> Iterator[str]:
        """See `RecordTree.had`; that a name is taken is answered by the first folder. May ask the bucket, unless
        `name_taken` knows.
        """
        taken = self.name_taken(repo)
        if taken is None or (self.journals is not None and self._reads is not Reads.REMEMBERED):
            taken = self._asks_name(repo)
        if taken:
            yield folders[0]

    def name_taken(self, repo: Repo) -> bool | None:
        """Whether a name is taken, from the memory alone; None if it is not known. Quick enough for the event loop."""
        if not self._is_confirmed():
            return None
        try:
            row = self._memory.recall(_name_key(repo))
            if self.journals is not None and (row is None or not self._says_taken(row)):
                # another replica may have taken it
                return False if self._was_free(repo, self.journals.freshness + _ONE_PULL) else None
            if row is None:
                is_free = self._memory.is_complete() or self._was_free(repo, float("inf"))
                return False if is_free else None
        except IndexUnavailable:
            return None
        if not row.is_trusted:
            return None
        if row.state is RecordState.DELETED:
            return False
        return says_taken(row.content) if row.state is RecordState.LIVE and row.content is not None else None

    @staticmethod
    def _says_taken(row: RememberedRecord) -> bool:
        is_known = row.is_trusted and row.state is RecordState.LIVE and row.content is not None
        return is_known and says_taken(row.content or b"")

    def _was_free(self, repo: Repo, age: float) -> bool:
        """True if the bucket had no record of a name less than `age` seconds ago. Raises `IndexUnavailable`."""
        epoch, at = self._free.get(repo) or (None, 0.0)
        return epoch == self._memory.begin_listing().epoch and time.monotonic() - at < age

    def learn_name(self, repo: Repo) -> None:
        """Ask the bucket whether a name is taken, for `name_taken`. Raises `StoreError`."""
        self._asks_name(repo)

    def must_learn(self, repo: Repo) -> bool:
        """True if `name_taken` can be relied upon only after `learn_name`. Quick enough for the event loop."""
        taken = self.name_taken(repo)
        if self.journals is None or taken is not False:
            return taken is None
        try:
            return not self._was_free(repo, self.journals.freshness)
        except IndexUnavailable:
            return True

    def take(self, repo: Repo, *, again: bool = False) -> None:
        """Take a name, durable on return. Repeatable, and quick if it is taken. `again`: the record that needs it is
        there by now. Raises `StoreError`.
        """
        # another replica may have released it: it looks for records after that
        if (again and self.journals is not None) or self.name_taken(repo) is not True:
            self._set_name(repo, taken=True)

    def forget(self, repo: Repo, folders: Sequence[str]) -> bool:
        beginnings = [f"{repository(repo)}/{folder}/" for folder in folders]
        if any(map(self._has_live, beginnings)):
            return False
        self._set_name(repo, taken=False)
        if any(map(self._has_live, beginnings)):
            self._set_name(repo, taken=True)
            return False
        return True

    def _asks_name(self, repo: Repo) -> bool:
        epoch, began_at = None, time.monotonic()
        with suppress(IndexUnavailable):
            epoch = self._memory.begin_listing().epoch
        found = _live(self._ask(_name_key(repo)))
        if found is not None and says_taken(found.record):
            return True
        # upstream is asked for a name that is free
        self._see()
        if (found is None or self.journals is not None) and epoch is not None:
            # as long as the memory has no row, no process of this machine has taken it
            self._free.put(repo, (epoch, began_at))
        return False

    def _set_name(self, repo: Repo, *, taken: bool) -> None:
        key = _name_key(repo)
        content = json.dumps({"state": "taken" if taken else "free", "nonce": secrets.token_hex(8)}).encode()
        for _ in range(_ATTEMPTS):
            found = self._ask(key)
            said = found is not None and found.record is not None and says_taken(found.record)
            if said is taken:
                return
            with suppress(RecordChanged):
                self._send(key, content, ABSENT if found is None else found.version)
                return
        raise BucketUnavailable(f"the name {repo} is changed all the time")

    def _taken(self, registry: str, after: str) -> Iterator[Repo]:
        if self.journals is not None and self._reads is not Reads.REMEMBERED:
            self._list_prefix(f"{NAMES}/{registry}/" if registry else f"{NAMES}/")
        rows: list[tuple[str, Repo, RememberedRecord]] = []
        for row in self._rows(f"{NAMES}/{registry}/" if registry else f"{NAMES}/"):
            path = row.key.removeprefix(f"{NAMES}/").replace(_SLASH, "/")
            repo = repo_from(path) if path > after and row.state is not RecordState.DELETED else None
            if repo is not None:
                rows.append((path, repo, row))
        # the order of their keys is another one
        for _, repo, row in sorted(rows, key=itemgetter(0)):
            if row.state is RecordState.LIVE and row.content is not None:
                taken = says_taken(row.content)
            else:
                taken = self._asks_name(repo)
            if taken:
                yield repo


#: Seconds after which it makes sense to ask again for what needs the listing.
_LISTING: Final = 10.0


def _name_key(repo: Repo) -> str:
    return f"{NAMES}/{repo.registry}/{repo.name.replace('/', _SLASH)}"


def says_taken(content: bytes) -> bool:
    """True if a record takes its name. A damaged record does: a name must not mean another image because of it."""
    try:
        state = json.loads(content)["state"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return True
    return bool(state != "free")


def names_before(name: str) -> list[str]:
    """What could be the names of repositories that come before this one as text, but behind it by their keys."""
    ends = (found.start() for found in _GOES_ON.finditer(name, name.find("/") + 1))
    return [name[:end] for end in ends]


def _ascii(name: str) -> str:
    """A text that divides names, which are ASCII, into the same two halves, and that any memory can compare."""
    known = next((number for number, letter in enumerate(name) if not letter.isascii()), None)
    return name if known is None else f"{name[:known]}\x7f"


def _takes_name(key: str) -> Repo | None:
    """The repository whose name a record takes; None if it takes none."""
    if not key.startswith(f"{REPOSITORIES}/"):
        return None
    path, _, below = key.removeprefix(f"{REPOSITORIES}/").partition("/_")
    return repo_from(path) if f"_{below.partition('/')[0]}" in _TAKING else None


def _is_strange(seen: RememberedRecord, found: _Found, *, others_write: bool) -> bool:
    """True if the bucket has something else than what is remembered, and no write of this machine, or of others,
    explains it.
    """
    if found is None:
        return seen.version is not None or not others_write
    if others_write:
        return False
    is_known = seen.is_trusted and seen.state is not RecordState.UNKNOWN
    return is_known and seen.version is not None and seen.version != found.version


def _parts(condition: Condition) -> tuple[Expected, _Check]:
    return (condition.expected, condition.check) if isinstance(condition, InTime) else (condition, None)


def _is_deleted(content: bytes) -> bool:
    return len(content) == DELETED_SIZE and not content[0]


def _live(found: _Found) -> Versioned[bytes] | None:
    return None if found is None or found.record is None else Versioned(found.record, found.version)
