"""The bytes of a bucket that a migration brings to a disk, which may have some of them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from mirror.store.local.recovery import sweep
from mirror.store.objects.migrated_objects import BucketBytes
from tests.support.hosted_blobs_suite import CONTENT, DIGEST
from tests.support.object_site import ObjectSite


@pytest.fixture
def site(tmp_path: Path) -> ObjectSite:
    """One blob is hosted, and the disk has a copy of it."""
    site = ObjectSite(tmp_path)
    site.hosted.put(DIGEST, CONTENT)
    return site


def copy_of(site: ObjectSite) -> Path:
    """The file of the copy."""
    return Path(site.files.copies.layout.blob(DIGEST))


@contextmanager
def fetched(site: ObjectSite) -> Iterator[tuple[Path, bool]]:
    """The file that a migration gets, and whether it was downloaded. It has the right bytes, which were counted."""
    counts: list[int] = []
    opened = len([1 for verb, _ in site.bucket.log if verb == "open"])
    with BucketBytes(site.hosted, site.states, site.bucket, site.layout).fetch(DIGEST, counts.append) as (file, size):
        assert file.read_bytes() == CONTENT
        assert size == len(CONTENT)
        assert sum(counts) >= size
        yield file, len([1 for verb, _ in site.bucket.log if verb == "open"]) > opened
    assert not any(site.layout.ingests.iterdir())


def test_a_copy_is_not_downloaded(site: ObjectSite) -> None:
    """The copy itself gets another name, and stays where it is."""
    with fetched(site) as (file, downloaded):
        assert not downloaded
        assert file.samefile(copy_of(site))
        site.files.delete(DIGEST)
        assert file.read_bytes() == CONTENT


def test_a_sweep_leaves_the_new_name_of_an_old_copy(site: ObjectSite) -> None:
    """It goes by when the name was made, once nobody can want it any more."""
    os.utime(copy_of(site), (1.0, 1.0))
    with fetched(site) as (file, downloaded):
        assert not downloaded
        sweep(site.layout, keep=0.0, now=time.time)
        assert file.read_bytes() == CONTENT
        sweep(site.layout, keep=0.0, now=lambda: time.time() + 2 * 3600.0)
        assert not file.exists()


def test_what_is_cached_is_not_downloaded(site: ObjectSite) -> None:
    """The same."""
    site.cache.put(DIGEST, CONTENT)
    copy_of(site).unlink(missing_ok=True)
    with fetched(site) as (file, downloaded):
        assert not downloaded
        assert file.samefile(site.cache.layout.blob(DIGEST))


def test_without_hard_links_the_bytes_are_copied(site: ObjectSite) -> None:
    """On the disk."""
    with patch("os.link", side_effect=OSError(errno.EPERM, "no links here")), fetched(site) as (file, downloaded):
        assert not downloaded
        assert not file.samefile(copy_of(site))


@pytest.mark.parametrize("content", [b"?" * len(CONTENT), CONTENT[:-1], None])
def test_what_is_damaged_or_absent_is_downloaded(site: ObjectSite, content: bytes | None) -> None:
    """The copy stays as it is: the scrub sets it aside."""
    copy_of(site).unlink()
    if content is not None:
        copy_of(site).write_bytes(content)
    with fetched(site) as (_, downloaded):
        assert downloaded
    assert os.path.lexists(copy_of(site)) == (content is not None)


def test_a_stop_is_heard_while_a_copy_is_read(site: ObjectSite) -> None:
    """Nothing is left of it."""

    class Stopped(Exception):
        pass

    def stopped(_: int) -> None:
        raise Stopped

    held = BucketBytes(site.hosted, site.states, site.bucket, site.layout)
    with pytest.raises(Stopped), held.fetch(DIGEST, stopped):
        pass
    assert not any(site.layout.ingests.iterdir())
