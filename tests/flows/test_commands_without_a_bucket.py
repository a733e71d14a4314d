"""What commands say while the bucket does not answer: what the disk has, what could not be read, and no advice that
would be wrong once it answers again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.policy.forecast import Facts, forecast, hosted_blob_forecast
from mirror.policy.rules import RouteRule
from tests.support.bucket_mirror import bucket_mirror, bucket_opened, evict
from tests.support.command import mirror as command
from tests.support.memory_bucket import MemoryBucket
from tests.support.push_client import PushClient, image

_LAYER = b"a layer that only the bucket has"


@pytest.fixture
def bucket() -> Iterator[MemoryBucket]:
    """That of every command of the test."""
    bucket = MemoryBucket()
    with bucket_opened(bucket):
        yield bucket


def _settings(folder: Path) -> Path:
    file = folder / "mirror.toml"
    store = f'[store]\nroot = "{folder / "store"}"\nbucket = "s3://memory/site"\n[bucket]\nregion = "test"\n'
    file.write_text(f'{store}[[hosted]]\nname = "corp"\n[[upstream]]\nname = "docker.io"\nurl = "http://127.0.0.1:9"\n')
    return file


async def _pushed(folder: Path, bucket: MemoryBucket) -> None:
    async with bucket_mirror(folder, bucket) as mirror:
        client, content = PushClient(mirror), image(b"{}", _LAYER)
        for blob in (b"{}", _LAYER):
            await client.push_blob(blob)
        assert (await client.put(content, "v1")).status == 201
        await client.manifest("v1")
        evict(mirror, _LAYER)


def test_a_new_disk(tmp_path: Path, bucket: MemoryBucket) -> None:
    """The status has all that does not need the bucket; lists fail, with the reason, and show nothing."""
    (tmp_path / "store").mkdir()
    config = _settings(tmp_path)
    asyncio.run(_make_store(tmp_path, bucket))
    bucket.down = True
    shown = command("status", "--json", "-c", config)
    assert shown.status == 0, shown
    assert {each["part"] for each in shown.json["unread"]} >= {"store.hosted_damaged", "collection"}
    assert shown.json["store"]["hosted_damaged"] is None
    assert shown.json["store"]["root"] == str(tmp_path / "store")
    assert "unread:    store.hosted_damaged: " in command("status", "-c", config).out
    for words in (["ls"], ["gc"], ["why", "corp/app:v1"]):
        done = command(*words, "-c", config)
        assert (done.status, done.out) == (1, ""), done
        assert done.err.startswith("mirror: "), done


async def _make_store(folder: Path, bucket: MemoryBucket) -> None:
    async with bucket_mirror(folder, bucket):
        pass
    for file in (folder / "store").glob("bucket.sqlite*"):
        file.unlink()


def test_a_disk_that_has_images(tmp_path: Path, bucket: MemoryBucket) -> None:
    """Commands believe what is remembered once they have seen the bucket: without it they fail, and advise nothing."""
    asyncio.run(_pushed(tmp_path, bucket))
    config = _settings(tmp_path)
    listed = command("ls", "-c", config)
    assert listed.status == 0, listed
    assert "corp/app:v1" in listed.out
    bucket.down = True
    for words in (["ls"], ["gc"], ["why", "corp/app:v1"], ["why", str(Digest.of(_LAYER))]):
        done = command(*words, "-c", config)
        said = done.out.partition("the next pull:")[2]
        if done.status == 0:
            assert words[0] == "why"
            assert "503 as long as this lasts" in said, done
            assert "push the image again" not in said, done
        else:
            assert (done.status, done.out) == (1, ""), done
            assert done.err.startswith("mirror: "), done
            assert "push" not in done.err
    bucket.down = False
    assert "served from here" in command("why", "corp/app:v1", "-c", config).out


def test_nobody_is_told_to_push_what_cannot_be_looked_at() -> None:
    """A part that is absent here may be in the bucket."""
    facts = Facts("corp", RouteRule(), hosted=True, recorded=True, unsure="the store does not answer")
    for unsure in (facts, replace(facts, here=True, missing=2)):
        said = " ".join(forecast(unsure, 0.0))
        assert "push" not in said
        assert "503 as long as this lasts, unless the disk has it: the store does not answer" in said
    assert "503" in hosted_blob_forecast(here=False, unsure="the store does not answer")
    assert "push the image again" in " ".join(forecast(replace(facts, unsure=""), 0.0))


def test_a_check_asks_no_bucket(tmp_path: Path) -> None:
    """Unless `--online` is given; then what fails is not called good. No store is made."""
    config = _settings(tmp_path)
    text = config.read_text().replace(
        'region = "test"', 'endpoint = "http://127.0.0.1:9"\nallow_http = true\naccess_key = "a"\nsecret_key = "b"'
    )
    config.write_text("offline = true\n" + text)
    done = command("check", "-c", config)
    assert done.status == 0, done
    assert "good: " in done.out
    assert "the bucket was not asked" in done.out
    assert "answer" not in done.out + done.err
    online = command("check", "--online", "-c", config)
    assert online.status == 1, online
    assert ": good" not in online.out
    assert '"event"' not in online.out + online.err
    assert not (tmp_path / "store").exists()
