"""Commands beside the cache in a bucket."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirror.bucket_cache.cached_keys import CachedRecord, blob_key
from mirror.bucket_cache.cached_uploads import CachedUploads
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo
from tests.support.bucket_mirror import bucket_opened
from tests.support.command import mirror as command
from tests.support.live_mirror import live_mirror, noise
from tests.support.memory_bucket import MemoryBucket
from tests.support.stocked import Stocked, write_settings

_APP = Repo("docker.io", "library/app")
_LAYER = noise(100_000)
_KEPT = '[bucket]\nregion = "test"'


@pytest.fixture
def bucket() -> Iterator[MemoryBucket]:
    """That of every mirror and command of the test that has one."""
    bucket = MemoryBucket()
    with bucket_opened(bucket):
        yield bucket


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """One image, with one layer."""
    elsewhere = Stocked(tmp_path / "elsewhere")
    elsewhere.tag("library/app", "v1", elsewhere.image("library/app", [_LAYER]))
    made = tmp_path / "bundle.tar"
    done = command("export", "app:v1", "-o", made, "-c", write_settings(elsewhere.root))
    assert done.status == 0, done
    return made


def _settings(root: Path) -> Path:
    """A site that keeps what it caches in the bucket."""
    Stocked(root)
    config = write_settings(root, more=_KEPT)
    text = config.read_text()
    assert "[store]\n" in text
    config.write_text(text.replace("[store]\n", '[store]\nbucket = "s3://memory/site"\ncache_in_bucket = true\n'))
    return config


async def _pulls(root: Path) -> list[int]:
    """How a sealed mirror answers that has nothing but the bucket."""
    shutil.rmtree(root)
    store = {"bucket": "s3://memory/site", "cache_in_bucket": True}
    upstreams = {"docker.io": "http://127.0.0.1:1"}
    async with live_mirror(root, upstreams, store=store, bucket={"region": "test"}, offline=True) as mirror:
        tag = await mirror.ask("/v2/library/app/manifests/v1")
        layer = await mirror.ask(f"/v2/library/app/blobs/{Digest.of(_LAYER)}")
        return [tag.status, layer.status]


def test_an_imported_image_is_in_the_bucket_when_the_command_ends(
    bucket: MemoryBucket, bundle: Path, tmp_path: Path
) -> None:
    """A sealed site may then lose its disk."""
    root = tmp_path / "site"
    done = command("import", bundle, "-c", _settings(root))
    assert (done.status, done.err) == (0, "")
    assert bucket.content()[blob_key(Digest.of(_LAYER))] == _LAYER
    assert CachedRecord.of_tag(_APP, "v1").key in bucket.content()
    assert asyncio.run(_pulls(root)) == [200, 200]


def test_an_import_does_not_fail_because_of_the_bucket(
    bucket: MemoryBucket, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what was not written, and ends."""
    monkeypatch.setattr(CachedUploads, "_is_hopeless", lambda uploads: uploads.trouble is not None)
    bucket.fail("upload", 1000)
    done = command("import", bundle, "-c", _settings(tmp_path / "site"))
    assert done.status == 0, done
    assert "not written to the bucket, which gets them when they are next used: the bucket does not answer" in done.err


def test_why_says_that_the_bucket_is_asked_first(bucket: MemoryBucket, tmp_path: Path) -> None:
    """`why` describes the disk."""
    done = command("why", "app:v1", "-c", _settings(tmp_path / "site"))
    assert "what the disk lacks is looked for in the bucket s3://memory/site first" in done.out, done


def test_an_image_that_only_the_bucket_has_is_purged(bucket: MemoryBucket, bundle: Path, tmp_path: Path) -> None:
    """`ls` shows what the disk has; a purge knows both."""
    root = tmp_path / "site"
    config = _settings(root)
    assert command("import", bundle, "-c", config).status == 0
    assert asyncio.run(_pulls(root)) == [200, 200]
    assert json.loads(command("ls", "--json", "-c", config).out)["image"] == "docker.io/library/app:v1"
    here = Stocked(root)
    here.catalog.drop_tag(_APP, "v1")
    assert json.loads(command("ls", "--json", "-c", config).out)["tag"] is None
    done = command("purge", "app:v1", "--json", "-c", config)
    assert done.status == 0, done
    assert json.loads(done.out)["tags"] == ["v1"]
    kept = [key for key in bucket.content() if key.startswith(("cache/", "cached/"))]
    assert not [key for key in kept if "/_history/" not in key]
