"""The store on the local disk, and the catalog beside it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mirror.errors import BlobDamaged, BlobUnknown, RecordDamaged, StoreError, StoreFull
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.quarantine_limits import QuarantinedBlob
from mirror.policy.records import ManifestRecord, Sighting, TagRecord
from mirror.ports import BlobStore, Catalog
from mirror.store.local import blobs, quarantine
from mirror.store.local.blobs import LocalStore
from mirror.store.local.ingest_state import read_state, write_state
from mirror.store.local.layout import Layout, state_of
from mirror.store.local.local_records import local_catalog
from mirror.store.local.recovery import Swept, sweep
from tests.support.catalog_suite import ALPINE, CatalogSuite, count_up
from tests.support.store_suite import (
    CONTENT,
    DIGEST,
    LATER,
    REGISTRY,
    Damage,
    Pieces,
    StoreSuite,
    filled,
    put_aside,
    quiet,
)
from tests.support.tmpfs import tmpfs


class TestLocalStore(StoreSuite):
    """The disk behaves like the model in memory."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        """Empty."""
        return LocalStore(Layout(tmp_path))

    @pytest.fixture
    def another(self, store: LocalStore) -> BlobStore:
        """Another process's view of the same disk: it shares nothing but files."""
        return LocalStore(store.layout)

    @pytest.fixture
    def damage(self, store: LocalStore) -> Damage:
        """Bytes that changed on the disk."""

        def change(digest: Digest, content: bytes) -> None:
            path = Path(store.layout.blob(digest))
            path.chmod(0o600)
            path.write_bytes(content)

        return change


class TestLocalCatalog(CatalogSuite):
    """Small files beside the blobs."""

    @pytest.fixture
    def catalog(self, tmp_path: Path) -> Catalog:
        """Empty."""
        return local_catalog(LocalStore(Layout(tmp_path)).layout)

    @pytest.fixture
    def another(self, catalog: Catalog, tmp_path: Path) -> Catalog:
        """Another process's view of the same disk."""
        return local_catalog(Layout(tmp_path))

    def test_no_change_of_another_process_is_lost(self, catalog: Catalog, tmp_path: Path) -> None:
        """Processes that change one tag at the same time read it again when another was first."""
        code = (
            "import sys; from pathlib import Path; from mirror.store.local.local_records import local_catalog;"
            "from mirror.store.local.layout import Layout; from tests.support.catalog_suite import count_up;"
            "count_up(local_catalog(Layout(Path(sys.argv[1]))), 50)"
        )
        processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path]) for _ in range(2)]
        count_up(catalog, 50)
        assert [process.wait() for process in processes] == [0, 0]
        found = catalog.get_tag(ALPINE, "counter")
        assert found
        assert found.size == 150


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Of an empty folder."""
    return Layout(tmp_path)


@pytest.fixture
def store(layout: Layout) -> LocalStore:
    """Empty, on that folder."""
    return LocalStore(layout)


def test_committed_blobs_are_read_only_and_private(store: LocalStore) -> None:
    """Nobody but the owner reads cached content, and not even the owner writes to it by mistake."""
    store.put(DIGEST, CONTENT)
    path = Path(store.layout.blob(DIGEST))
    assert path.stat().st_mode & 0o777 == 0o400
    assert store.layout.blobs.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ['{"layout": 99, "id": "x"}', '{"layout": 99}', '{"layout": 99, "name": "x"}'])
def test_an_unknown_layout_is_refused(layout: Layout, text: str) -> None:
    """A tree written by a later version is refused by name, not guessed at (row 68), and its marker is kept."""
    layout.marker.write_text(text)
    with pytest.raises(StoreError, match=r"layout 99.*run the version that made it"):
        LocalStore(layout)


def test_the_store_keeps_its_identity(layout: Layout) -> None:
    """Opened again it is the same store, so that several of them can share one Redis."""
    assert LocalStore(layout).id == LocalStore(layout).id


@pytest.mark.parametrize("attempt", range(5))
def test_all_that_open_a_new_tree_at_once_agree_on_its_name(tmp_path: Path, attempt: int) -> None:
    """Workers start together. The name is what their locks and their index in Redis go by."""
    together = threading.Barrier(8)

    def opened(_number: int) -> str:
        together.wait()
        return LocalStore(Layout(tmp_path / str(attempt))).id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(opened, range(8)))) == 1


def test_looking_is_no_use(store: LocalStore) -> None:
    """Reading a blob leaves its time of use alone: only `mark_used` says that somebody wanted it."""
    store.put(DIGEST, CONTENT)
    path = Path(store.layout.blob(DIGEST))
    os.utime(path, (1000.0, 1000.0))
    store.read(DIGEST, len(CONTENT))
    _, reader = store.open(DIGEST)
    reader.pread(10, 0)
    reader.close()
    assert store.stat(DIGEST).used_at == 1000.0
    store.mark_used({DIGEST: 2000.0})
    store.read(DIGEST, len(CONTENT))
    assert store.stat(DIGEST).used_at == 2000.0


def test_a_link_in_the_cache_is_not_followed(store: LocalStore, tmp_path: Path) -> None:
    """A symbolic link under a blob's name is not a blob, for reading or listing (row 78)."""
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    path = Path(store.layout.blob(DIGEST))
    path.parent.mkdir(parents=True)
    path.symlink_to(secret)
    with pytest.raises(BlobUnknown):
        store.open(DIGEST)
    with pytest.raises(BlobUnknown):
        store.stat(DIGEST)
    assert list(store.walk()) == []


def test_foreign_files_are_passed_over(store: LocalStore) -> None:
    """What is not ours is neither listed nor removed (row 45)."""
    store.put(DIGEST, CONTENT)
    for path in (
        store.layout.blobs / "lost+found",
        store.layout.blobs / "sha256" / "notes",
        store.layout.ingests / "x",
    ):
        path.mkdir()
    (store.layout.blobs / "sha256" / DIGEST.hex[:2] / "README").write_text("hello")
    assert [info.digest for info in store.walk()] == [DIGEST]
    assert sweep(store.layout, keep=0, now=lambda: LATER) == Swept()
    assert (store.layout.ingests / "x").is_dir()


def test_a_blob_in_the_wrong_folder_is_not_listed(store: LocalStore) -> None:
    """Nobody would find it by its name there, so it must not be counted either."""
    wrong = store.layout.blobs / "sha256" / ("00" if DIGEST.hex[:2] != "00" else "01")
    wrong.mkdir()
    (wrong / DIGEST.hex).write_bytes(CONTENT)
    assert list(store.walk()) == []


@pytest.mark.parametrize("verified", [False, True])
def test_a_partial_of_an_earlier_boot_is_not_resumed(store: LocalStore, verified: bool) -> None:
    """After a power cut bytes can be missing under their size, so they are fetched again (row 42), and nobody is sent
    them, even if they were verified before.
    """
    filler = filled(store, CONTENT, upto=None if verified else 40_000)
    if verified:
        filler.verify()
    filler.close()
    descriptor = os.open(state_of(store.layout.ingest(DIGEST, REGISTRY)), os.O_RDWR)
    state = read_state(descriptor)
    assert state is not None
    assert state.verified == verified
    write_state(descriptor, type(state)(state.size, state.verified, state.inode, bytes(16)))
    os.close(descriptor)
    ingest = store.ingest(DIGEST, REGISTRY)
    assert not ingest.announced
    assert not ingest.verified
    assert ingest.try_lock()
    assert ingest.resume() == 0
    ingest.close()


def test_on_a_kernel_without_a_boot_id_a_fill_is_announced_by_its_filler(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All boots then have the same number. A file without a state is still one that no upstream has answered for: its
    followers wait for the size, and for the error if upstream refuses.
    """
    monkeypatch.setattr(blobs, "boot_id", lambda: bytes(16))
    filler = store.ingest(DIGEST, REGISTRY)
    assert filler.try_lock()
    filler.resume()
    follower = LocalStore(store.layout).ingest(DIGEST, REGISTRY)
    assert (follower.announced, follower.size) == (False, None)
    filler.expect(len(CONTENT))
    follower.refresh()
    assert (follower.announced, follower.size) == (True, len(CONTENT))
    follower.close()
    filler.close()


def test_followers_of_a_thrown_away_file_are_not_told_it_was_verified(store: LocalStore) -> None:
    """The state of a new file under the same name does not apply to the old one."""
    filler = filled(store, CONTENT, upto=40_000)
    follower = LocalStore(store.layout).ingest(DIGEST, REGISTRY)
    assert follower.announced
    filler.restart()
    filler.expect(len(CONTENT))
    filler.fill(Pieces(CONTENT), quiet)
    filler.verify()
    follower.refresh()
    assert not follower.verified
    assert not follower.announced
    assert not follower.in_place
    filler.close()
    follower.close()


def test_a_follower_never_sees_verified_before_it_sees_every_byte(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the filler comes in between the two looks of a follower, «verified» means: as long as it is here."""
    filler = store.ingest(DIGEST, REGISTRY)
    assert filler.try_lock()
    filler.resume()
    filler.expect(len(CONTENT))
    follower = LocalStore(store.layout).ingest(DIGEST, REGISTRY)

    def finish_before(look: Callable[[int], object]) -> Callable[[int], object]:
        def finished(descriptor: int) -> object:
            if filler.offset == 0:
                filler.fill(Pieces(CONTENT), quiet)
                filler.verify()
            return look(descriptor)

        return finished

    for module, name in ((blobs, "read_state"), (os, "fstat")):
        filler.restart()
        filler.expect(len(CONTENT))
        follower.close()
        follower = LocalStore(store.layout).ingest(DIGEST, REGISTRY)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, finish_before(getattr(module, name)))
            follower.refresh()
        assert not follower.verified or follower.offset == len(CONTENT)
        follower.refresh()
        assert (follower.verified, follower.offset) == (True, len(CONTENT))
    follower.close()
    filler.close()


def test_an_announced_size_counts_only_while_somebody_fills(store: LocalStore) -> None:
    """An upstream that announces much and sends little must not push out what is here for longer than it is tried."""
    ingest = filled(store, CONTENT, upto=40_000)
    assert LocalStore(store.layout).growing() == {DIGEST: len(CONTENT)}
    kept = ingest.offset
    ingest.close()
    assert store.growing() == {DIGEST: kept}


def test_sweep_drops_what_crashes_left(store: LocalStore) -> None:
    """Old partials, strays of states and temporary files go; what is being filled, or fresh, stays (row 41)."""
    filled(store, CONTENT, upto=40_000).close()
    other = Digest.of(b"other" * 100_000)
    busy = filled(LocalStore(store.layout), b"other" * 100_000, upto=1000)
    (store.layout.ingests / "tmp-abc").write_bytes(b"half a record")
    (store.layout.ingests / f"sha256-{'0' * 64}.state").write_bytes(b"")
    fresh = sweep(store.layout, keep=3600, now=lambda: 0.0)
    assert (fresh.partials, fresh.strays) == (0, 0)
    late = sweep(store.layout, keep=3600, now=lambda: LATER)
    assert (late.partials, late.strays) == (1, 2)
    assert store.growing().keys() == {other}
    busy.close()


def test_42_a_sweep_in_the_middle_of_a_commit(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published blob without a state file has a durable name, which `test_42_power_cuts` relies on: a sweep between
    the rename and the sync of the folder leaves the file, and the last step of the commit drops it.
    """
    left: list[list[str]] = []

    def sync(folder: Path) -> None:
        sweep(store.layout, keep=3600, now=time.time)
        left.append([file.name for file in store.layout.ingests.iterdir()])

    monkeypatch.setattr("mirror.store.local.blobs.sync_folder", sync)
    ingest = filled(store, CONTENT)
    ingest.verify()
    ingest.commit()
    ingest.close()
    assert [name.endswith(f"{DIGEST.hex}.state") for name in left[-1]] == [True]
    assert list(store.layout.ingests.iterdir()) == []


def test_partials_of_an_older_version_are_dropped(store: LocalStore) -> None:
    """They do not say which registry began them. What an older version's worker still fills is left to it."""
    idle, busy = (store.layout.ingests / f"sha256-{Digest.of(name).hex}" for name in (b"idle", b"busy"))
    for partial in (idle, busy):
        partial.write_bytes(bytes(1000))
        state_of(partial).write_bytes(b"")
    assert store.growing() == {Digest.of(b"idle"): 1000, Digest.of(b"busy"): 1000}
    with busy.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert sweep(store.layout, keep=3600, now=lambda: 0.0) == Swept(1, 0, 1000)
    assert sorted(store.layout.ingests.iterdir()) == [busy, state_of(busy)]


def test_a_commit_that_fails_leaves_what_another_registry_published(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed fsync makes the file doubtful that was being published, not the one that is there (row 35)."""
    first, second = filled(store, CONTENT), filled(store, CONTENT, registry="quay.io")
    first.verify()
    first.commit()
    first.close()
    second.verify()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _fail)
        with pytest.raises(StoreError):
            second.commit()
    second.close()
    assert store.read(DIGEST, len(CONTENT)) == CONTENT


def _fail(_descriptor: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_full_disk_is_told_apart_and_leaves_what_came(tmp_path: Path) -> None:
    """Row 34: ENOSPC in mid-write is `StoreFull`; the size that was reported is right. Later it goes on."""
    with tmpfs(tmp_path, "size=600k") as mount:
        store = LocalStore(Layout(mount))
        ballast = mount / "ballast"
        ballast.write_bytes(bytes(200_000))
        ingest = store.ingest(DIGEST, REGISTRY)
        assert ingest.try_lock()
        ingest.expect(len(CONTENT))
        with pytest.raises(StoreFull):
            ingest.fill(Pieces(CONTENT), quiet)
        reader = ingest.reader()
        assert 0 < ingest.offset < len(CONTENT)
        assert reader.pread(len(CONTENT), 0)[: ingest.offset] == CONTENT[: ingest.offset]
        reader.close()
        with pytest.raises(StoreFull):
            store.put(Digest.of(CONTENT[1:]), CONTENT[1:])
        ingest.close()


def test_a_crash_at_any_step_of_a_commit_leaves_no_wrong_blob(tmp_path: Path) -> None:
    """Killed after any system call of a commit, the store has the whole blob or none, and can fetch it (row 41)."""
    script = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from mirror.store.local.layout import Layout
        from mirror.store.local.blobs import LocalStore
        from tests.support.store_suite import CONTENT, DIGEST, filled

        root, fatal = Path(sys.argv[1]), int(sys.argv[2])
        ingest = filled(LocalStore(Layout(root)), CONTENT)
        steps = 0

        def counted(call):
            def step(*arguments, **named):
                global steps
                result = call(*arguments, **named)
                steps += 1
                if steps == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result
            return step

        for owner, names in ((os, ("fsync", "fchmod", "pwrite")), (Path, ("rename", "unlink", "mkdir"))):
            for name in names:
                setattr(owner, name, counted(getattr(owner, name)))
        ingest.verify()
        ingest.commit()
        print(steps)
        """
    )

    def run(root: Path, fatal: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, str(root), str(fatal)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    whole = run(tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    steps = int(whole.stdout)
    assert steps >= 6
    for fatal in range(1, steps + 1):
        root = tmp_path / str(fatal)
        assert run(root, fatal).returncode == -signal.SIGKILL
        store = LocalStore(Layout(root))
        present = [info.digest for info in store.walk()]
        if present:
            assert present == [DIGEST]
            assert store.read(DIGEST, len(CONTENT)) == CONTENT
            continue
        ingest = store.ingest(DIGEST, REGISTRY)
        assert ingest.try_lock()
        assert ingest.resume() == len(CONTENT)
        ingest.verify()
        ingest.commit()
        assert store.read(DIGEST, len(CONTENT)) == CONTENT


def test_a_failed_fsync_discards_the_file(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync the bytes may be lost although a second one succeeds: nothing of it is kept (row 35)."""
    ingest = filled(store, CONTENT)
    ingest.verify()

    def fail(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError):
        ingest.commit()
    ingest.close()
    monkeypatch.undo()
    assert list(store.walk()) == []
    assert store.growing() == {}


def test_settling_makes_every_new_name_durable(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put is there at once, its bytes synced; the names of it and of new folders by `flush`, once."""
    catalog = local_catalog(store.layout)
    repo, digest = Repo("ghcr.io", "owner/app"), DIGEST
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}").removeprefix(f"{store.layout.root}/"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    store.put(digest, CONTENT)
    catalog.put_tag(repo, TagRecord("v1", digest, OCI_MANIFEST, len(CONTENT), 1.0))
    assert catalog.get_tag(repo, "v1")
    assert store.read(digest, len(CONTENT)) == CONTENT
    assert [name.rpartition("/")[0] for name in synced] == ["ingest", "ingest"]
    synced.clear()
    store.flush()
    assert sorted(synced) == ["blobs/sha256", f"blobs/sha256/{digest.hex[:2]}"]
    synced.clear()
    catalog.flush()
    folders = ["repositories", "repositories/ghcr.io", "repositories/ghcr.io/owner", "repositories/ghcr.io/owner/app"]
    assert sorted(synced) == [*folders, "repositories/ghcr.io/owner/app/_tags"]
    synced.clear()
    store.flush()
    catalog.flush()
    assert synced == []


def test_54_records_that_were_cut_are_not_taken_for_none(store: LocalStore) -> None:
    """Row 54: a record that does not parse is an error of its own, because its content is not known. A history counts
    as none, and a listing skips a damaged record, except by digest.
    """
    catalog = local_catalog(store.layout)
    repo = Repo("docker.io", "library/busybox")
    folder = Path(store.layout.tags(repo))
    folder.mkdir(parents=True)
    for name, text in (("cut", b'{"digest": "sha'), ("empty", b""), ("list", b"[]"), ("wrong", b'{"digest": 1}')):
        (folder / name).write_bytes(text)
        with pytest.raises(RecordDamaged, match=f"the record of the tag {repo}:{name} is damaged"):
            catalog.get_tag(repo, name)
        history = Path(store.layout.history(repo)) / name
        history.parent.mkdir(exist_ok=True)
        history.write_bytes(text)
        assert catalog.get_history(repo, name) == ()
    digest = Digest.of(b"manifest")
    catalog.put_manifest(repo, ManifestRecord(digest, OCI_MANIFEST, 8, 1.0))
    (Path(store.layout.manifests(repo)) / f"sha256-{digest.hex}").write_bytes(b"{")
    with pytest.raises(RecordDamaged, match=f"the record of the manifest {repo}@{digest} is damaged"):
        catalog.get_manifest(repo, digest)
    assert list(catalog.manifests(repo)) == []
    assert list(catalog.manifest_digests(repo)) == [digest]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES, errno.ENOMEM])
def test_36_what_cannot_be_read_is_not_absent(store: LocalStore, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 36, 37: blobs and records that the disk does not give at the moment are errors, never an absence."""
    catalog, repo = local_catalog(store.layout), Repo("docker.io", "library/busybox")
    store.put(DIGEST, CONTENT)
    catalog.put_tag(repo, TagRecord("v1", DIGEST, OCI_MANIFEST, 1, 1.0))
    catalog.put_history(repo, "v1", (Sighting(DIGEST, OCI_MANIFEST, 1, 1.0, 1.0),))
    catalog.put_manifest(repo, ManifestRecord(DIGEST, OCI_MANIFEST, 1, 1.0))

    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    reads: list[Callable[[], object]] = [
        lambda: store.stat(DIGEST),
        lambda: store.open(DIGEST),
        lambda: store.read(DIGEST, 1 << 20),
        lambda: list(store.walk()),
        lambda: catalog.get_tag(repo, "v1"),
        lambda: catalog.get_history(repo, "v1"),
        lambda: catalog.get_manifest(repo, DIGEST),
        lambda: list(catalog.manifests(repo)),
        lambda: list(catalog.manifest_digests(repo)),
        lambda: catalog.tags(repo),
        lambda: list(catalog.repositories()),
    ]
    for read in reads:
        with monkeypatch.context() as patch:
            for name in ("open", "lstat", "listdir", "scandir"):
                patch.setattr(os, name, fail)
            patch.setattr(Path, "read_bytes", fail)
            with pytest.raises(StoreError, match=os.strerror(number)):
                read()
        assert read() is not None


def test_a_name_that_no_file_can_have_is_absent(store: LocalStore) -> None:
    """It is certain that there is none: a client may ask for anything."""
    assert local_catalog(store.layout).get_tag(Repo("docker.io", "a" * 300), "v1") is None


def test_quarantined_bytes_stay_for_the_curious(store: LocalStore) -> None:
    """A damaged blob is moved, not deleted: an administrator who examines the disk finds it."""
    store.put(DIGEST, CONTENT)
    path = Path(store.layout.blob(DIGEST))
    path.chmod(0o600)
    path.write_bytes(b"rot")
    with pytest.raises(BlobDamaged):
        store.read(DIGEST, 1 << 20)
    put_aside(store, DIGEST)
    assert (store.layout.quarantine / f"sha256-{DIGEST.hex}").read_bytes() == b"rot"


def test_only_our_own_files_are_in_the_quarantine(store: LocalStore) -> None:
    """Notes, folders and links that somebody has put there are neither counted nor touched."""
    store.put(DIGEST, CONTENT)
    put_aside(store, DIGEST)
    (store.layout.quarantine / "notes.txt").write_text("the disk is bad")
    (store.layout.quarantine / f"sha256-{Digest.of(b'folder').hex}").mkdir()
    (store.layout.quarantine / f"sha256-{Digest.of(b'link').hex}").symlink_to("notes.txt")
    assert [one.digest for one in store.quarantined()] == [DIGEST]
    assert store.drop_quarantined(DIGEST) == len(CONTENT)
    assert len(list(store.layout.quarantine.iterdir())) == 3


def test_what_is_written_to_stays_in_the_quarantine(store: LocalStore) -> None:
    """A filler that has published a blob a moment ago may still hold its lock; once it lets go the file may go."""
    ingest = filled(store, CONTENT)
    file = store.layout.quarantine / f"sha256-{DIGEST.hex}"
    store.layout.ingest(DIGEST, REGISTRY).rename(file)
    assert LocalStore(store.layout).drop_quarantined(DIGEST) == 0
    assert file.exists()
    ingest.close()
    assert LocalStore(store.layout).drop_quarantined(DIGEST) == len(CONTENT)


def test_a_quarantine_that_was_cleared_away(store: LocalStore) -> None:
    """Its folder may be deleted by hand: nothing is in it then, and the next damaged blob still leaves its place."""
    shutil.rmtree(store.layout.quarantine)
    assert store.quarantined() == []
    assert store.drop_quarantined(DIGEST) == 0
    store.put(DIGEST, CONTENT)
    put_aside(store, DIGEST)
    assert [one.digest for one in store.quarantined()] == [DIGEST]
    with pytest.raises(BlobUnknown):
        store.stat(DIGEST)


def test_a_quarantine_that_has_not_changed_is_not_listed_again(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its last change is some seconds ago; what comes or goes afterwards is seen at once."""
    store.put(DIGEST, CONTENT)
    put_aside(store, DIGEST)
    listed: list[Path] = []
    kept = quarantine.blobs

    def list_it(folder: Path) -> list[QuarantinedBlob]:
        listed.append(folder)
        return kept(folder)

    monkeypatch.setattr(quarantine, "blobs", list_it)
    for _ in range(3):
        assert len(store.quarantined()) == 1
    assert len(listed) == 3
    os.utime(store.layout.quarantine, (1e9, 1e9))
    for _ in range(3):
        assert len(store.quarantined()) == 1
    assert len(listed) == 4
    LocalStore(store.layout).drop_quarantined(DIGEST)
    assert store.quarantined() == []
