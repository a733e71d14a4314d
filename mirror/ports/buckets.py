"""A bucket of an object store: objects by key, far away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from mirror.ports.streams import Body
from mirror.ports.versioned import Expected, Version

#: The folder of what probes write. They delete it at once, and a sweep deletes what a crash leaves.
PROBES: Final = "probe/"


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object that is there: its `size` in bytes, and when it was written (epoch seconds, by the clock of the store).

    `version` is empty in listings of stores that do not give it there.
    """

    key: str
    size: int
    changed_at: float
    version: Version


@dataclass(frozen=True, slots=True)
class StoredObject:
    """The whole content of a small object, and its version."""

    content: bytes
    version: Version


@dataclass(frozen=True, slots=True)
class NotChanged:
    """The object is still in the version that the caller has."""

    version: Version


@dataclass(frozen=True, slots=True)
class Aborted:
    """How many unfinished uploads were aborted."""

    uploads: int = 0


@dataclass(frozen=True, slots=True)
class BucketHealth:
    """How the store has answered one process lately.

    `down_since`: since when it gives no usable answer, in epoch seconds; None: it does. `throttles`: it asks for fewer
    requests. `refuses`: the operations that it refuses. `is_unfit`: it does not do what hosted content needs. `reason`
    says more about what is wrong.
    """

    down_since: float | None = None
    throttles: bool = False
    refuses: tuple[str, ...] = ()
    is_unfit: bool = False
    reason: str = ""


class ObjectReader(Protocol):
    """Read objects. None means that there certainly is no such object."""

    def read(self, key: str, limit: int, *, unless: Version | None = None) -> StoredObject | NotChanged | None:
        """The whole content of an object. Raises `BlobDamaged` if it has more than `limit` bytes.

        `unless`: a version that the caller has; `NotChanged` if the object is still in that version.
        """

    def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object without its content."""

    def open(self, key: str, start: int = 0, stop: int | None = None) -> Body | None:
        """The content from the offset `start` up to, but not including, `stop` (None: to its end). The body's `size` is
        that of the whole object.

        The body's errors are `UpstreamUnavailable` and `UpstreamTimeout`, like those of an upstream: what broke off can
        be continued from the same byte. `UpstreamInvalid` if the object ends before `start`. The caller reads it to its
        end, or calls `abort`.
        """


class ObjectWriter(Protocol):
    """Write objects. Every reader sees a whole object, the earlier one or the new one."""

    def write(self, key: str, content: bytes, *, expect: Expected = None) -> Version:
        """Write a small object, durable on return. Raises `RecordChanged` if it is not in the expected version.

        Of several writers that expect the same version, on any machine, one succeeds. A write whose answer was lost,
        and that finds its own content, has succeeded.
        """

    def upload(self, key: str, file: Path, size: int) -> None:
        """Write a large object from a local file of `size` bytes, in parallel parts; durable on return. What is left of
        an upload that fails is aborted, by this call or by `abort_uploads`.

        The content must be what the key names, because an object that is there is replaced. Raises `StoreError` also if
        the file cannot be read or has another size.
        """


class ObjectDeleter(Protocol):
    """Delete objects. A deletion cannot depend on a version, and may arrive late: a key whose content matters must not
    be used again.
    """

    def delete(self, keys: Sequence[str]) -> None:
        """Delete any number of objects; those that are absent are ignored."""

    def abort_uploads(self, prefix: str, before: float) -> Aborted | None:
        """Abort the unfinished uploads below a prefix that began before `before` (epoch seconds). None if this store
        does not list them: a lifecycle rule of the bucket must do it.
        """


class ObjectLister(Protocol):
    """List objects. A listing may be late: no decision may rest on it alone."""

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """The objects whose keys begin with `prefix`, which ends with `/` or is empty; only those after the key
        `after`, which is that of an object, there or not. Raises while it is iterated.

        The order is that of the keys' bytes. Some stores sort folder by folder instead (SeaweedFS: `a/b/c` before
        `a/b-c`): only among keys with the same number of parts, none of which is the beginning of another's, both are
        the same.
        """


class ObjectSigner(Protocol):
    """Let others read objects."""

    def sign(self, key: str, life: float) -> str | None:
        """A URL by which anybody can read the object for at most `life` seconds, and never longer than the credentials
        that sign it are valid. None if this store, or these credentials, cannot sign. The URL is a secret.
        """


class Bucket(ObjectReader, ObjectWriter, ObjectDeleter, ObjectLister, ObjectSigner, Protocol):
    """All that the mirror does with a bucket. Keys are relative to the prefix that is configured.

    All calls block until the store has answered, no longer than the configured time-outs, and may be made from any
    thread. Each raises `BucketUnavailable` if the store cannot be reached, throttles, fails or takes too long, and
    `BucketDenied` if it refuses the credentials or lacks a permission.
    """

    def health(self) -> BucketHealth:
        """How it has answered lately. Asks nobody; quick. Raises nothing."""

    def close(self) -> None:
        """End all connections. Repeatable."""
