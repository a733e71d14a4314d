"""The paths of all files of a store. Everything else under the root is foreign and left alone.

    <root>/
    ├── store.json                       {"layout": 1, "id": "…"}: the id of this tree; an unknown layout is refused
    ├── blobs/
    │   └── <algorithm>/<ab>/<hex>       committed, read-only, named by digest; <ab> is the first two digits
    ├── copies/<algorithm>/<ab>/<hex>    with a bucket: copies of hosted blobs (see `objects/copied_files.py`)
    ├── ingest/
    │   ├── <registry>-<algorithm>-<hex>        growing, or a partial that waits to be resumed; its filler holds its
    │   │                                       flock; <registry> is a hash of the name of the sending registry
    │   ├── <registry>-<algorithm>-<hex>.state  its state, for followers in other processes (`ingest_state.py`)
    │   ├── <registry>-<algorithm>-<hex>.spans, .map   bytes of it that came out of turn, and which of them are here
    │   │                                       (`span_file.py`)
    │   ├── <registry>-<algorithm>-<hex>.served, .earlier   who was given some of them (`beside/served_notes.py`)
    │   ├── <registry>-<algorithm>-<hex>.avoid, <registry>.avoid   empty: no small parts of it, or of any blob of
    │   │                                       the registry, are asked for now
    │   ├── <algorithm>-<hex>, with .state      a partial of an older version: dropped at start-up
    │   └── tmp-<random>                        a small file that will be renamed to its final name
    ├── quarantine/
    │   └── <algorithm>-<hex>            a damaged blob, kept for a while (see `quarantine.py`)
    ├── hosted/<algorithm>/<ab>/<hex>    the hosted name of a blob, which no eviction deletes (`hosted/blob_names.py`)
    ├── hosted-queue/<algorithm>/<ab>/<hex>   JSON: the hosted blob waits to be collected, since when
    ├── hosted-damaged/<algorithm>-<hex>      a damaged hosted blob, kept until it is pushed again
    ├── uploads/<boot>-<owner>-<random>  the bytes of an upload session (see `hosted/upload_files.py`)
    ├── locks/                           empty files, for flock only
    ├── events/                          events that wait to be delivered (see `index/outbox.py`)
    ├── hosted.sqlite                    sums and holders of hosted content (see `index/link_ledger.py`)
    ├── index.sqlite                     the embedded index, if no Redis is configured (see `index/embedded.py`)
    ├── bucket-cache.sqlite              what the bucket has of the cache (see `index/cached_book.py`)
    ├── bucket.json                      {"id": "…"}: hosted content is in the bucket of this id (see `bucket_note.py`)
    ├── bucket.sqlite                    what is known of the bucket's records (see `index/record_memory.py`)
    ├── misses.json                      images that a sealed mirror was asked for and lacks (see `miss_file.py`)
    ├── lists/<hash>.sqlite              long tag lists of upstreams that do not sort (see `index/sorted_tags.py`)
    ├── recent/<n>.json                  the last answers of each worker (see `answer_files.py`)
    ├── scrub/<hash>.json                the progress of the check of all blobs
    ├── pins/<hash>.json                 images that must not be evicted (see `records.py` for folders of this kind)
    ├── freezes/<hash>.json              tags fixed to one digest, whatever upstream answers
    ├── sync/, jobs/, job-queue/, job-cancels/   likewise: the last result of each sync, and requested jobs
    ├── board/<n>.json                   the status of each running process (see `status_board.py`)
    ├── purges/, traffic/                likewise: recent purges; hits and bytes of the last day
    ├── retention/, pulls/               likewise: rounds and marks of retention; when hosted images were pulled
    ├── admin.sock                       the admin API's socket, unless it is configured elsewhere
    ├── migration.sqlite                 what `mirror migrate` has written (see `index/migration_journal.py`)
    ├── backed-up                        empty; its time is when the last complete backup of hosted content began
    ├── repositories-added               grows with each new repository: an older list of them is then out of date
    └── repositories/
        └── <registry>/<name…>/
            ├── _tags/<tag>              JSON: digest, media type, size, fetched at
            ├── _history/<tag>           JSON: the digests it pointed to, and when; written if it moves
            ├── _manifests/<algorithm>-<hex>   JSON: media type, size, fetched at
            │   and, of hosted repositories (see `policy/hosted_records.py` for the JSON):
            ├── _blobs/<algorithm>-<hex>       JSON: the link to a blob
            ├── _referrers/<algorithm>-<hex>/<algorithm>-<hex>    JSON: the descriptor of a referrer, by its subject
            ├── _deleted/<algorithm>-<hex>     JSON: a deleted manifest and the tags that it had
            ├── _deleted_tags/<tag>            JSON: a deleted tag
            └── _changes                       its size grows with each change; it has no content

A repository name has several parts and may contain the words `tags` and `manifests`, but no part begins with an
underscore (distribution-spec, "Pulling manifests"), so these folders cannot be confused with a part of a name.

`blobs`, `copies`, `ingest`, `hosted`, `hosted-damaged`, `quarantine` and `uploads` must be on one filesystem, because
blobs get their names by renames and hard links.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from mirror.store.records import record_keys
from mirror.store.records.record_keys import digest_from

#: The version of this layout. A tree of another version is refused.
LAYOUT = 1

#: 128 bits: a registry under a wildcard can choose its name, and must not be able to find one with another's hash.
_REGISTRY_BYTES: Final = 16
_INGEST: Final = re.compile(rf"(?:[0-9a-f]{{{2 * _REGISTRY_BYTES}}}-)?(?P<digest>[a-z0-9]+-[0-9a-f]+)")


@dataclass(frozen=True)
class Layout:
    """Paths below one root. Digests and names are validated values, so no path leads out of the root.

    The paths of single files and of the folders of a repository are `str`, because `Path` is slow: a hit needs one of
    them, a push thirty.
    """

    root: Path

    @cached_property
    def marker(self) -> Path:
        return self.root / "store.json"

    @cached_property
    def backed_up(self) -> Path:
        return self.root / "backed-up"

    @cached_property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @cached_property
    def ingests(self) -> Path:
        return self.root / "ingest"

    @cached_property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @cached_property
    def hosted(self) -> Path:
        return self.root / "hosted"

    @cached_property
    def hosted_queue(self) -> Path:
        return self.root / "hosted-queue"

    @cached_property
    def hosted_damaged(self) -> Path:
        return self.root / "hosted-damaged"

    @cached_property
    def uploads(self) -> Path:
        return self.root / "uploads"

    @cached_property
    def locks(self) -> Path:
        return self.root / "locks"

    @cached_property
    def repositories(self) -> Path:
        return self.root / "repositories"

    @cached_property
    def repositories_added(self) -> Path:
        return self.root / "repositories-added"

    @cached_property
    def ledger(self) -> Path:
        return self.root / "hosted.sqlite"

    @cached_property
    def cached_book(self) -> Path:
        return self.root / "bucket-cache.sqlite"

    @cached_property
    def bucket_note(self) -> Path:
        return self.root / "bucket.json"

    @cached_property
    def record_memory(self) -> Path:
        return self.root / "bucket.sqlite"

    @cached_property
    def migration(self) -> Path:
        return self.root / "migration.sqlite"

    @cached_property
    def events(self) -> Path:
        return self.root / "events"

    @cached_property
    def lists(self) -> Path:
        return self.root / "lists"

    @cached_property
    def misses(self) -> Path:
        return self.root / "misses.json"

    @cached_property
    def _root(self) -> str:
        return str(self.root)

    def records(self, kind: str) -> Path:
        return self.root / kind

    def lock(self, name: str) -> str:
        """The file of a lock."""
        return f"{self._root}/locks/{name}"

    def blob(self, digest: Digest) -> str:
        return f"{self._root}/blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"

    def hosted_blob(self, digest: Digest) -> str:
        """The hosted name of a blob."""
        return f"{self._root}/hosted/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"

    def queued_blob(self, digest: Digest) -> str:
        """The record of a hosted blob that waits to be collected."""
        return f"{self._root}/hosted-queue/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"

    def ingest(self, digest: Digest, registry: str) -> Path:
        """The path of the growing file of this registry; `registry` is "" for bytes that come from no registry."""
        # hashed, because a name and a digest together may be too long for a file name
        hashed = hashlib.blake2b(registry.encode(), digest_size=_REGISTRY_BYTES).hexdigest()
        return self.ingests / f"{hashed}-{digest.algorithm}-{digest.hex}"

    def upload(self, session: str) -> str:
        """The file of an upload session."""
        return f"{self._root}/uploads/{session}"

    def record(self, key: str) -> str:
        """The file of a record, given by its key (`records/record_keys.py`)."""
        return f"{self._root}/{key}"

    def repository(self, repo: Repo) -> str:
        return self.record(record_keys.repository(repo))

    def tags(self, repo: Repo) -> str:
        return self.record(record_keys.tags(repo))

    def history(self, repo: Repo) -> str:
        return self.record(record_keys.history(repo))

    def manifests(self, repo: Repo) -> str:
        return self.record(record_keys.manifests(repo))

    def links(self, repo: Repo) -> str:
        return self.record(record_keys.links(repo))

    def referrers(self, repo: Repo, subject: Digest) -> str:
        return self.record(record_keys.referrers(repo, subject))

    def deleted_manifests(self, repo: Repo) -> str:
        return self.record(record_keys.deleted_manifests(repo))

    def deleted_tags(self, repo: Repo) -> str:
        return self.record(record_keys.deleted_tags(repo))

    def changes(self, repo: Repo) -> str:
        return f"{self.repository(repo)}/_changes"


class CopiesLayout(Layout):
    """The same root, whose blobs are the copies of hosted blobs. Growing copies share no file with growing blobs of the
    cache.
    """

    @cached_property
    def blobs(self) -> Path:
        return self.root / "copies"

    def blob(self, digest: Digest) -> str:
        return f"{self._root}/copies/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"

    def ingest(self, digest: Digest, registry: str) -> Path:
        # no registry has a name with a slash
        return super().ingest(digest, f"copies/{registry}")


def state_of(ingest: Path) -> Path:
    """The state file beside a growing blob."""
    return ingest.with_name(f"{ingest.name}.state")


def spans_of(ingest: Path) -> Path:
    """The bytes of a growing blob that came out of turn."""
    return ingest.with_name(f"{ingest.name}.spans")


def map_of(ingest: Path) -> Path:
    """The states of the blocks of `spans_of`."""
    return ingest.with_name(f"{ingest.name}.map")


def served_of(ingest: Path) -> Path:
    """Who was given unverified bytes of a growing blob."""
    return ingest.with_name(f"{ingest.name}.served")


def earlier_of(ingest: Path) -> Path:
    """The notes before those of `served_of`."""
    return ingest.with_name(f"{ingest.name}.earlier")


def avoided_of(ingest: Path) -> Path:
    """An empty file: small parts of the growing blob must not be asked for, since it was touched. Also with only the
    hash of the registry: of no blob of that one.
    """
    return ingest.with_name(f"{ingest.name}.avoid")


def digest_of_ingest(name: str) -> Digest | None:
    """The digest of a growing file under `ingest/`, also one that an older version left; None for any other name."""
    match = _INGEST.fullmatch(name)
    return digest_from(match["digest"]) if match else None
