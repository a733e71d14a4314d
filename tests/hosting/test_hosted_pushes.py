"""Pushes into a hosted repository, and what can be pulled afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.bundles.layout_source import FileBody
from mirror.errors import (
    BlobDamaged,
    BlobReferenced,
    BlobUnknown,
    Denied,
    DigestInvalid,
    ManifestBlobUnknown,
    ManifestUnknown,
    NameUnknown,
)
from mirror.hosting.hosted_imports import HostedImports
from mirror.oci.digest import Digest
from mirror.policy.hosted.push_checks import HostedRules, read_pushed
from tests.support.hosted_world import (
    TEAM,
    Caller,
    HostedWorld,
    Sent,
    image,
    index,
    push,
    push_image,
    read_blob,
    upload,
)

_ALICE = Caller("user:alice", TEAM)


async def test_an_image_is_pushed_and_pulled(world: HostedWorld) -> None:
    """By tag and by digest, on the worker that took it and on another; its blobs, its tags."""
    here, there = (world.open(TEAM)[0] for _ in range(2))
    with pytest.raises(NameUnknown):
        await there.tags("", 10)
    pushed = await push_image(here, _ALICE, "1", b"{}", b"layer")
    assert pushed.tags == ("1",)
    for repository in (here, there):
        assert (await repository.manifest("1")).content == image(b"{}", b"layer")
        assert (await repository.resolve(pushed.digest)).digest == pushed.digest
        assert await read_blob(repository, Digest.of(b"layer")) == b"layer"
        assert (await repository.stat_blob(Digest.of(b"{}"))).size == 2
        assert (await repository.tags("", 10)).items == ("1",)


async def test_a_manifest_needs_its_blobs_and_children(world: HostedWorld) -> None:
    """All that are missing are named; nothing is stored."""
    [repository] = world.open(TEAM)
    await upload(repository, b"{}", _ALICE)
    with pytest.raises(ManifestBlobUnknown) as caught:
        await push(repository, image(b"{}", b"a", b"b"), _ALICE)
    assert caught.value.digests == (str(Digest.of(b"a")), str(Digest.of(b"b")))
    child = image(b"{}")
    with pytest.raises(ManifestBlobUnknown):
        await push(repository, index(child), _ALICE)
    with pytest.raises(ManifestUnknown):
        await repository.manifest("1")
    await push(repository, child, _ALICE, Digest.of(child))
    pushed = await push(repository, index(child), _ALICE, "1", "2")
    assert pushed.tags == ("1", "2")
    assert (await repository.manifest("2")).content == index(child)


async def test_an_upload_with_a_wrong_digest_stays(world: HostedWorld) -> None:
    """The client may go on with it."""
    [repository] = world.open(TEAM)
    session = await repository.begin_upload(_ALICE)
    writing = await repository.upload(session, _ALICE)
    assert await writing.append(Sent(b"he", b"llo")) == 5
    with pytest.raises(DigestInvalid):
        await writing.commit(Digest.of(b"hello, world"))
    await writing.close()
    assert repository.upload_offset(session, _ALICE) == 5
    writing = await repository.upload(session, _ALICE)
    await writing.append(Sent(b", world"))
    assert await writing.commit(Digest.of(b"hello, world")) == 12
    await writing.close()
    assert await read_blob(repository, Digest.of(b"hello, world")) == b"hello, world"


async def test_deletions_are_seen_by_the_next_request(world: HostedWorld) -> None:
    """On every worker: of a tag, of a manifest with all its tags, and of a blob, which nothing may name."""
    here, there = (world.open(TEAM)[0] for _ in range(2))
    pushed = await push_image(here, _ALICE, "1", b"{}", b"layer")
    await push(here, image(b"{}", b"layer"), _ALICE, "2")
    assert (await there.manifest("2")).digest == pushed.digest
    await here.delete_tag("2", _ALICE)
    with pytest.raises(ManifestUnknown):
        await there.manifest("2")
    assert (await there.manifest("1")).digest == pushed.digest
    with pytest.raises(BlobReferenced):
        await here.delete_blob(Digest.of(b"layer"), _ALICE)
    await here.delete_manifest(pushed.digest, _ALICE)
    for reference in ("1", pushed.digest):
        with pytest.raises(ManifestUnknown):
            await there.manifest(reference)
    assert (await there.tags("", 10)).items == ()
    await here.delete_blob(Digest.of(b"layer"), _ALICE)
    with pytest.raises(BlobUnknown):
        await there.blob(Digest.of(b"layer"))
    await here.undelete(pushed.digest, _ALICE)
    assert (await there.manifest("1")).digest == pushed.digest
    assert await read_blob(there, Digest.of(b"layer")) == b"layer"
    await upload(here, b"loose", _ALICE)
    assert await read_blob(there, Digest.of(b"loose")) == b"loose"
    await here.delete_blob(Digest.of(b"loose"), _ALICE)
    with pytest.raises(BlobUnknown):
        await there.blob(Digest.of(b"loose"))


async def test_a_tag_moves_only_for_callers_who_may_overwrite(world: HostedWorld) -> None:
    """The same digest is no move; a tag whose manifest is gone counts as absent."""
    [repository] = world.open(TEAM)
    bob = Caller("user:bob", TEAM, overwrite=False)
    first = await push_image(repository, bob, "1", b"{}", b"one")
    await upload(repository, b"two", bob)
    await push(repository, image(b"{}", b"one"), bob, "1")
    with pytest.raises(Denied):
        await push(repository, image(b"{}", b"two"), bob, "1")
    assert (await repository.manifest("1")).digest == first.digest
    second = await push(repository, image(b"{}", b"two"), _ALICE, "1")
    assert (await repository.manifest("1")).digest == second.digest
    world.catalog.drop_manifest(TEAM, second.digest)
    await push(repository, image(b"{}", b"one"), bob, "1")
    assert (await repository.manifest("1")).digest == first.digest


def test_an_import_receives_like_an_upload(world: HostedWorld, tmp_path: Path) -> None:
    """What does not match its digest leaves no blob, and no session."""
    verbs, content = world.verbs(), b"imported"
    imports = HostedImports(verbs.parts, verbs.links, verbs.pushing, world.uploads, {"corp": HostedRules()}, "import")
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:

        def body() -> FileBody:
            return FileBody(file.fileno(), 0, len(content))

        with pytest.raises(BlobDamaged):
            imports.receive(Digest.of(b"other"), body())
        assert imports.size(Digest.of(b"other")) is None
        imports.receive(Digest.of(content), body())
    assert imports.size(Digest.of(content)) == len(content)
    assert verbs.parts.blobs.hosted(Digest.of(content)).size == len(content)
    assert list(world.uploads.sessions()) == []
    with pytest.raises(BlobUnknown):
        world.cache.stat(Digest.of(content))


async def test_an_import_needs_all_blobs_but_not_all_platforms(world: HostedWorld) -> None:
    """Blobs that came with it are linked; one that is missing refuses the image."""
    verbs = world.verbs()
    imports = HostedImports(verbs.parts, verbs.links, verbs.pushing, world.uploads, {"corp": HostedRules()}, "import")
    for content in (b"{}", b"layer"):
        world.cache.put(Digest.of(content), content)
    whole, lacking = image(b"{}", b"layer"), image(b"{}", b"absent")
    both = index(whole, lacking)
    read = [read_pushed(content, None, "1") for content in (whole, both)]
    imports.take(TEAM, [Digest.of(b"{}"), Digest.of(b"layer")], read, "1")
    [repository] = world.open(TEAM)
    assert (await repository.manifest("1")).content == both
    for content in (b"{}", b"layer"):
        world.cache.delete(Digest.of(content))
        assert await read_blob(repository, Digest.of(content)) == content
    with pytest.raises(ManifestBlobUnknown):
        imports.take(TEAM, [], [read_pushed(lacking, None, "2")], "2")
