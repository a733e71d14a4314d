"""The files of a store whose hosted blobs are in a bucket: what the cache does not see, and what eviction does."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.errors import BlobDamaged, BlobUnknown
from mirror.graph.manifests import has_blob
from mirror.oci.digest import Digest
from mirror.ports import BlobInfo
from mirror.store.local.blobs import LocalStore
from mirror.store.local.layout import Layout
from mirror.store.objects.copied_files import CacheBesideCopies, CopiedFiles
from mirror.store.objects.local_copies import LocalCopies

CONTENT = b"a hosted layer" * 100
DIGEST = Digest.of(CONTENT)
INFO = BlobInfo(DIGEST, len(CONTENT))


class SentBody:
    """What a registry sends."""

    def __init__(self, content: bytes) -> None:
        self.start = 0
        self.size: int | None = len(content)
        self._rest = content

    def readinto(self, buffer: memoryview) -> int:
        """All at once."""
        piece, self._rest = self._rest, b""
        buffer[: len(piece)] = piece
        return len(piece)

    def abort(self) -> None:
        """Does nothing."""


@pytest.fixture
def files(tmp_path: Path) -> CopiedFiles:
    """Empty."""
    return CopiedFiles(CacheBesideCopies(Layout(tmp_path)))


def in_copies(files: CopiedFiles) -> bool:
    """Whether there is a copy."""
    return Path(files.copies.layout.blob(DIGEST)).exists()


def fill(store: LocalStore | CopiedFiles, registry: str) -> None:
    """Let a registry send the blob."""
    ingest = store.ingest(DIGEST, registry)
    try:
        assert ingest.try_lock()
        ingest.resume()
        ingest.expect(len(CONTENT))
        ingest.fill(SentBody(CONTENT), lambda: None)
        ingest.verify()
        ingest.commit()
    finally:
        ingest.close()


def pushed(files: CopiedFiles, folder: Path) -> Path:
    """A file that a client has sent."""
    file = folder / "upload"
    file.write_bytes(CONTENT)
    return file


def test_the_cache_does_not_have_a_copy(files: CopiedFiles) -> None:
    """However it came."""
    fill(files, "corp")
    assert in_copies(files)
    assert not has_blob(files.cache, DIGEST)
    assert list(files.cache.walk()) == []
    assert files.read(DIGEST, len(CONTENT)) == CONTENT
    files.delete(DIGEST)
    files.put(DIGEST, CONTENT)
    files.flush()
    assert not has_blob(files.cache, DIGEST)
    assert [info.digest for info in files.walk()] == [DIGEST]
    with pytest.raises(BlobUnknown):
        files.cache.open(DIGEST)


def test_registries_of_one_name_share_no_growing_file(files: CopiedFiles) -> None:
    """The cache must not see bytes of a copy that grows, and no more than they are complete."""
    for registry in ("", "corp"):
        assert files.layout.ingest(DIGEST, registry) != files.copies.layout.ingest(DIGEST, registry)
    ingest = files.ingest(DIGEST, "")
    assert ingest.try_lock()
    ingest.resume()
    ingest.expect(len(CONTENT))
    ingest.fill(SentBody(CONTENT[:10]), lambda: None)
    assert files.is_filling("", Digest.of(b"another"))
    assert not files.cache.is_filling("", Digest.of(b"another"))
    assert files.growing() == {DIGEST: len(CONTENT)}
    other = files.cache.ingest(DIGEST, "")
    assert other.try_lock()
    assert other.offset == 0
    other.close()
    ingest.close()


@pytest.mark.parametrize("how", ["put", "ingest"])
def test_what_the_cache_gets_needs_no_copy(files: CopiedFiles, how: str) -> None:
    """One file serves both."""
    files.put(DIGEST, CONTENT)
    if how == "put":
        files.cache.put(DIGEST, CONTENT)
    else:
        fill(files.cache, "upstream")
    assert not in_copies(files)
    assert files.read(DIGEST, len(CONTENT)) == CONTENT
    assert files.stat(DIGEST).size == len(CONTENT)


def test_a_push_of_what_the_cache_has_leaves_no_copy(files: CopiedFiles, tmp_path: Path) -> None:
    """Nor does it make the cache's file another one; without it, the pushed file is the copy."""
    added: list[BlobInfo] = []
    copies = LocalCopies(files, added.append)
    files.cache.put(DIGEST, CONTENT)
    file = pushed(files, tmp_path)
    copies.take(INFO, file)
    assert not file.exists()
    assert not in_copies(files)
    files.delete(DIGEST)
    copies.take(INFO, pushed(files, tmp_path))
    assert in_copies(files)
    assert added == [INFO, INFO]


def test_eviction_drops_both_files(files: CopiedFiles) -> None:
    """A crash has left the blob in both places: it counts once, and all of its room is freed."""
    files.cache.put(DIGEST, CONTENT)
    files.copies.put(DIGEST, CONTENT)
    assert [info.digest for info in files.walk()] == [DIGEST]
    deleted = files.delete(DIGEST)
    assert (deleted.size, deleted.freed) == (len(CONTENT), 2 * len(CONTENT))
    assert list(files.walk()) == []
    assert files.delete(DIGEST).size == 0


@pytest.mark.parametrize("place", ["copies", "cache"])
def test_a_use_is_noted_in_either_place(files: CopiedFiles, place: str) -> None:
    """So that it survives the loss of the index."""
    getattr(files, place).put(DIGEST, CONTENT)
    files.mark_used({DIGEST: 4_000_000_000.0, Digest.of(b"another"): 1.0})
    assert files.stat(DIGEST).used_at == 4_000_000_000.0
    assert [info.used_at for info in files.walk()] == [4_000_000_000.0]


@pytest.mark.parametrize("place", ["copies", "cache"])
def test_damage_is_set_aside_in_either_place(files: CopiedFiles, place: str) -> None:
    """Only the file that was read; then the blob is absent."""
    store = getattr(files, place)
    store.put(DIGEST, CONTENT)
    path = Path(store.layout.blob(DIGEST))
    path.chmod(0o600)
    path.write_bytes(CONTENT[::-1])
    with pytest.raises(BlobDamaged):
        files.read(DIGEST, len(CONTENT))
    _, reader = files.open(DIGEST)
    assert files.set_aside(DIGEST, reader)
    assert not files.set_aside(DIGEST, reader)
    reader.close()
    assert not has_blob(files, DIGEST)
    assert [blob.digest for blob in files.quarantined()] == [DIGEST]
    assert files.drop_quarantined(DIGEST) == len(CONTENT)
    assert files.quarantined() == []
