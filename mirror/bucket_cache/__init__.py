"""The cache in the bucket: what was cached here is kept there as well, for when the disk has lost it.

    a blob was published, a manifest or tag was written ── CachedUploads ──> the bucket, behind the answer
    a blob is missing ── CachedObjects.source ──> its object, which a flight reads
    a manifest or tag is missing ── Restoring ──> the disk, which then answers as ever
    too many bytes, or objects that nobody knows ── CacheUpkeep ──> deleted, entered in the book
    an image is purged, content is erased ── BucketPurge ──> deleted

In the bucket (below its prefix; `cached_keys.py`):

    cache/<algorithm>/<ab>/<hex>                     the bytes of a blob or manifest
    cached/<registry>/<name…>/_tags/<tag>            the records of the repositories, as they are on the disk
    cached/<registry>/<name…>/_history/<tag>
    cached/<registry>/<name…>/_manifests/<algorithm>-<hex>

The disk is the truth, and the bucket a cache of it: an object that is lost, stale or wrong costs time, never more.
Bytes are verified by their digest whenever they are read. Nothing here is called for content that the disk has, and no
answer waits for the bucket to take anything. What may be evicted here is deleted without any condition: a deletion that
is late may hit an object that was just put again, and then the next miss asks upstream.

Kept is the content of proxied and sealed registries; not that of hosted ones, whose truth is in the bucket anyway
(`store/objects`), nor that of registries with `access = "verify"`, where each caller must be allowed by upstream.
"""
