"""Read this first: the parts of the mirror and what each must do, not how.

A request names a repository, the repository provides content, and the server sends it. Clients get their bytes from the
store: a cache miss starts one *flight* that writes into the store, and every client, including the first, reads the
growing blob from there. Only a blob that the store cannot take is sent from upstream to its client directly. The disk
is the source of truth. The index is derived from it and may be lost at any time.

The ports, and what implements them (the tests have implementations in memory, in `tests/support`):

    content.py    BlobStore      content by digest              store/local/blobs.py
                  Spans          bytes that came out of turn    store/local/span_file.py
    catalogs.py   Catalog        tags and manifest links        store/records/record_catalog.py
                  CachedRecords  those that may be forgotten    store/local/cached_records.py
                  Pins           which images must stay         store/records/pin_records.py
                  Freezes        tags fixed at one digest       store/records/freeze_records.py
    hosting.py    HostedBlobs    hosted blobs                   store/hosted/blob_names.py
                                                                 store/objects/hosted_blobs.py
                  Uploads        upload sessions                store/hosted/upload_files.py
                  HostedRecords  links, referrers, deletions    store/records/repository_records.py
                  LinkLedger     sums and holders of links      index/link_ledger.py
    eventing.py   Announcer      events of changes              events/announcing.py
                  EventStore     where events wait              index/outbox.py
                  EventSender    what sends them                upstream/http/event_posts.py
    recording.py  Records        small JSON records by key      store/local/json_records.py
    record_trees.py  RecordTree  versioned records by path      store/local/file_tree.py   store/objects/record_tree.py
    record_memories.py  RecordMemory  what is known of a bucket  index/record_memory.py
    buckets.py    Bucket         objects of an object store     store/cloud/obstore_bucket.py
    blob_objects.py  BlobObjects  which of them have blobs      store/objects/hosted_blobs.py, bucket_cache/
    object_books.py  ObjectBook  the bucket's cached blobs      index/cached_book.py
    migrating.py  MigratedBytes  hosted bytes of one side       store/hosted/migrated_files.py
                  MigrationJournal  what a migration wrote      index/migration_journal.py
    locking.py    Locks          locks between processes        store/local/locks.py    leases/bucket_leases.py
    peers.py      Members, Notices, PeerBlobs  the other replicas of a cluster
    journals.py   RecordJournals  what other replicas changed     store/objects/record_journals.py
                  JournalMemory   what is known of that          index/journal_memory.py
    indexes.py    ContentIndex   sizes, last use, names, links  index/embedded.py   index/redis.py
                  SortedTags     tag lists, sorted on disk      index/sorted_tags.py
    remotes.py    Upstream       one remote registry            upstream/registry.py    upstream/endpoints.py
                  Writer         one that takes pushes          upstream/registry_writer.py
    streams.py    Body           an upstream answer's bytes     upstream/http/download.py
    callers.py    Authenticator  who the caller is              access/*.py
                  Membership     whether that still holds       access/*.py

`BlobStore` and `Catalog` are sums of small protocols (`Blobs`, `BlobDeleter`, `TagRecords`, ...): a function asks for
the part that it needs. Ports of bytes and records block and are called in threads; `Locks`, `ContentIndex` and
`Upstream` are asynchronous (docs/decisions/0018). Records change by compare-and-set (`versioned.py`).

The life cycle of a blob in a store:

    absent ── ingest() ──> growing ── commit() ──> present ── delete() ──> absent
                              │  ^                               (open readers read on)
                  abort(keep) │  │ ingest() again: hashed again, resumed at its size
                              v  │
                            partial

A blob appears under its final name only after `verify` has checked its digest and `commit` has made it durable. Until
then its bytes belong to the registry that sends them: each registry has its own growing blob, and its own partial, for
the same digest. Any process that shares the store may follow a growing blob. One process at a time, the *filler*, holds
its lock. The kernel releases the lock when the filler dies, and a follower takes over.
"""

# ruff: noqa: F403  # each name without `_` in these modules is part of the face
from mirror.ports.blob_objects import *
from mirror.ports.buckets import *
from mirror.ports.callers import *
from mirror.ports.catalogs import *
from mirror.ports.content import *
from mirror.ports.eventing import *
from mirror.ports.hosting import *
from mirror.ports.indexes import *
from mirror.ports.journals import *
from mirror.ports.locking import *
from mirror.ports.migrating import *
from mirror.ports.object_books import *
from mirror.ports.peers import *
from mirror.ports.record_memories import *
from mirror.ports.record_trees import *
from mirror.ports.recording import *
from mirror.ports.remotes import *
from mirror.ports.streams import *
from mirror.ports.sweeping import *
from mirror.ports.versioned import *
