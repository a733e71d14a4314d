"""The referrers of hosted manifests (distribution-spec, "Listing Referrers")."""

from __future__ import annotations

import pytest

from mirror.oci.attachments import referrers_tag
from mirror.oci.digest import Digest
from mirror.oci.manifest import LARGEST, OCI_INDEX, Descriptor
from mirror.oci.reference import Repo
from mirror.repository.protocol import all_referrers
from tests.support.hosted_world import TEAM, Caller, HostedWorld, descriptor, image, manifest, push, upload

ALICE = Caller("user:alice", TEAM)
IMAGE = image(b"{}")
SUBJECT = Digest.of(IMAGE)


async def test_referrers_are_listed_at_once(world: HostedWorld) -> None:
    """Also before their subject is there; with artifact type and annotations; gone once they are deleted."""
    here, there = world.open(TEAM)[0], world.open(TEAM)[0]
    assert (await there.referrers(SUBJECT)).items == ()
    await upload(here, b"{}", ALICE)
    signature = manifest(
        config=descriptor(b"{}", "application/vnd.example.sig"),
        layers=[],
        subject=descriptor(IMAGE),
        annotations={"by": "alice", "n": 1},
    )
    pushed = await push(here, signature, ALICE, Digest.of(signature))
    assert pushed.subject == SUBJECT
    sbom = manifest(mediaType=OCI_INDEX, artifactType="application/sbom", manifests=[], subject=descriptor(IMAGE))
    await push(here, sbom, ALICE, Digest.of(sbom))
    found = {each.digest: each for each in (await there.referrers(SUBJECT)).items}
    assert list(found) == sorted([Digest.of(signature), Digest.of(sbom)])
    assert found[Digest.of(signature)].artifact_type == "application/vnd.example.sig"
    assert found[Digest.of(signature)].annotations == {"by": "alice"}
    assert found[Digest.of(sbom)].artifact_type == "application/sbom"
    assert (found[Digest.of(sbom)].media_type, found[Digest.of(sbom)].size) == (OCI_INDEX, len(sbom))
    await here.delete_manifest(Digest.of(signature), ALICE)
    assert [each.digest for each in (await there.referrers(SUBJECT)).items] == [Digest.of(sbom)]
    await here.undelete(Digest.of(signature), ALICE)
    assert len((await there.referrers(SUBJECT)).items) == 2


async def test_what_older_clients_list_under_a_tag_counts_as_well(world: HostedWorld) -> None:
    """Each referrer once, however it is known (distribution-spec, "Referrers Tag Schema")."""
    [repository] = world.open(TEAM)
    await upload(repository, b"{}", ALICE)
    new = manifest(config=descriptor(b"{}", "application/new"), layers=[], subject=descriptor(IMAGE))
    old = manifest(config=descriptor(b"{}", "application/old"), layers=[])
    for content in (new, old):
        await push(repository, content, ALICE, Digest.of(content))
    listed = [
        descriptor(content, "application/vnd.oci.image.manifest.v1+json", artifactType=kind)
        for content, kind in ((new, "application/wrong"), (old, "application/old"))
    ]
    await push(repository, manifest(mediaType=OCI_INDEX, manifests=listed), ALICE, referrers_tag(SUBJECT))
    found = {each.digest: each.artifact_type for each in (await repository.referrers(SUBJECT)).items}
    assert found == {Digest.of(new): "application/new", Digest.of(old): "application/old"}


async def test_referrers_with_very_much_to_say(world: HostedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may push can give a subject any number of referrers, each with annotations as large as a manifest. A page
    reads and remembers no more of them than a client takes at once; page by page, all are there.
    """
    [repository] = world.open(TEAM)
    await upload(repository, b"{}", ALICE)
    pushed = []
    for number in range(9):
        content = manifest(
            config=descriptor(b"{}", "application/vnd.example.sig"),
            layers=[],
            subject=descriptor(IMAGE),
            annotations={"filling": str(number) * (LARGEST // 3)},
        )
        await push(repository, content, ALICE, Digest.of(content))
        pushed.append(Digest.of(content))
    read: list[Digest] = []
    reading = world.records.referrer

    def counted(repo: Repo, subject: Digest, digest: Digest) -> Descriptor | None:
        read.append(digest)
        entry: Descriptor | None = reading(repo, subject, digest)
        return entry

    monkeypatch.setattr(world.records, "referrer", counted)
    for _ in range(2):
        page = await repository.referrers(SUBJECT)
        assert [each.digest for each in page.items] == sorted(pushed)[:2]
        assert page.more
        # and the first one of the next page, only once
        assert read == sorted(pushed)[:3]
    assert [each.digest async for each in all_referrers(repository, SUBJECT)] == sorted(pushed)
    last = await repository.referrers(SUBJECT, sorted(pushed)[-1])
    assert (last.items, last.more) == ((), False)
