"""Bundles as the command line writes and takes them: what is refused changes nothing, what is cut can go on."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.app.storage import open_storage
from mirror.bundles import tar_members
from mirror.bundles.export import export, select
from mirror.bundles.layout_target import create_layout
from mirror.config import load
from mirror.errors import BundleError
from mirror.eviction.reconcile import reconcile
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from mirror.oci.reference import Repo
from mirror.policy.image_names import Image
from mirror.policy.records import ManifestRecord, Sighting
from tests.support.command import Done, mirror
from tests.support.layouts import Members, blob_path, entry, foreign_layout, read_members, write_members
from tests.support.process import ProgramProcess, eventually, run
from tests.support.stocked import Stocked, tree, write_settings

_APP = "docker.io/library/app:v1"


@dataclass(frozen=True, slots=True)
class Gap:
    """Two sites, the connected one with an image of two platforms, its signature, and another image."""

    connected: Stocked
    isolated: Stocked
    config: Path
    isolated_config: Path
    folder: Path

    @property
    def bundle(self) -> Path:
        """Signed, with everything that the connected site has."""
        return self.folder / "site.tar"

    @property
    def public_key(self) -> Path:
        """Of who signed."""
        return self.folder / "site.pub"

    def export(self, *words: str | Path, out: str | Path | None = None) -> Done:
        """On the connected side."""
        return mirror("export", *words, "-o", out or self.bundle, "-c", self.config)

    def take(self, source: Path, *words: str | Path) -> Done:
        """On the isolated side."""
        return mirror("import", source, *words, "-c", self.isolated_config)

    def expect_refused(self, source: Path, *words: str | Path, why: str) -> None:
        """With an error that says why, and nothing of the isolated store changed, the index neither."""
        before = tree(self.isolated.root), mirror("inventory", "--json", "-c", self.isolated_config).out
        done = self.take(source, *words)
        assert done.status == 1, done
        assert why in done.err, done
        assert done.err.startswith(f"mirror: {source}: "), done
        assert done.err.count("\n") == 1, done
        assert (tree(self.isolated.root), mirror("inventory", "--json", "-c", self.isolated_config).out) == before


@pytest.fixture
def gap(tmp_path: Path) -> Gap:
    connected, isolated = Stocked(tmp_path / "connected"), Stocked(tmp_path / "isolated")
    amd64 = connected.image("library/app", [b"a layer of both", b"amd64's own" * 50])
    arm64 = connected.image("library/app", [b"a layer of both", b"arm64's own" * 50])
    root = connected.index("library/app", {"amd64": amd64, "arm64": arm64})
    connected.tag("library/app", "v1", root)
    connected.image("library/app", [b"its signature"], subject=root)
    connected.tag("team/deep/tool", "1.0", connected.image("team/deep/tool", [b"a layer of both", b"tool" * 300]))
    # what is there already must stay as it is
    isolated.tag("library/old", "v0", isolated.image("library/old", [b"old"]))
    made = Gap(connected, isolated, write_settings(connected.root), write_settings(isolated.root), tmp_path)
    assert mirror("keygen", tmp_path / "site").status == 0
    done = made.export(_APP, "team/deep/tool:1.0", "--referrers", "--sign", tmp_path / "site.key")
    assert done.status == 0, done
    return made


def read_inventory_of(bundle: Path) -> Any:
    """Its images."""
    [content] = [content for member, content in read_members(bundle) if member.name == "mirror-inventory.json"]
    return json.loads(content)["images"]


def rebuild(config: Path) -> None:
    """As a server does when it starts: its index knows the disk."""

    async def work() -> None:
        async with open_storage(load(config)) as storage:
            await reconcile(storage.store, storage.catalog, storage.index)

    asyncio.run(work())


# -------------------------------------------------------------------------------------------- what is taken in


def test_everything_arrives(gap: Gap) -> None:
    """Tags, both platforms, the signature and every layer, filed where a pull would have filed them."""
    done = gap.take(gap.bundle, "--verify", gap.public_key, "--json")
    assert (done.status, done.json["verified"], done.json["here"]["blobs"]) == (0, True, 0), done
    before, after = (
        json.loads(mirror("inventory", "--json", "-c", one).out) for one in (gap.config, gap.isolated_config)
    )
    assert [image for image in after["images"] if image["repository"] != "library/old"] == before["images"]
    assert {blob["digest"] for blob in before["blobs"]} <= {blob["digest"] for blob in after["blobs"]}
    assert gap.isolated.tagged("library/app") == gap.connected.tagged("library/app")
    assert gap.isolated.has(b"its signature")


def test_a_second_import_writes_nothing(gap: Gap) -> None:
    """Content that is here is skipped."""
    assert gap.take(gap.bundle).status == 0
    done = gap.take(gap.bundle, "--json")
    assert done.json["written"] == {"blobs": 0, "bytes": 0}
    assert done.json["here"]["blobs"] == len(read_members(gap.bundle)) - 4 - 2  # its own files, and two folders


def test_a_folder_instead_of_a_tar(gap: Gap) -> None:
    """The same files are written to a folder, and can be imported from it."""
    folder = gap.folder / "layout"
    key: list[str | Path] = ["--sign", gap.folder / "site.key"]
    assert gap.export(_APP, *key, out=f"{folder}/").status == 0
    assert gap.export(_APP, *key).status == 0
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {member.name: content for member, content in read_members(gap.bundle) if member.isfile()}
    assert gap.take(folder, "--verify", gap.public_key).status == 0
    assert gap.isolated.tagged("library/app") == gap.connected.tagged("library/app")


def test_a_dry_run_changes_nothing(gap: Gap) -> None:
    """It checks everything, and says that it is good."""
    before = tree(gap.isolated.root)
    done = gap.take(gap.bundle, "--dry-run")
    assert (done.status, "good: 3 images" in done.out) == (0, True), done
    assert tree(gap.isolated.root) == before


@settings(max_examples=12)
@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,3}/[a-z]{1,3}:[a-z0-9]{1,3}", fullmatch=True),
        st.lists(st.lists(st.binary(max_size=2000), max_size=3), min_size=1, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_exported_imported_exported_is_the_same_tar(images: dict[str, list[list[bytes]]]) -> None:
    """Whatever the images are: the bundle of a site that was filled by a bundle is that bundle."""
    folder = Path(tempfile.mkdtemp(prefix="mt-"))
    try:
        first = Stocked(folder / "first")
        for name, platforms in images.items():
            repository, _, tag = name.partition(":")
            made = [first.image(repository, layers) for layers in platforms]
            root = made[0] if len(made) == 1 else first.index(repository, dict(zip("abc", made, strict=False)))
            first.tag(repository, tag, root)
        one, two = write_settings(first.root), write_settings(folder / "second")
        assert mirror("export", *images, "-o", folder / "1.tar", "-c", one).status == 0
        done = mirror("import", folder / "1.tar", "-c", two)
        assert done.status == 0, done
        assert mirror("export", *reversed(images), "-o", folder / "2.tar", "-c", two).status == 0
        assert (folder / "1.tar").read_bytes() == (folder / "2.tar").read_bytes()
    finally:
        shutil.rmtree(folder)


# ------------------------------------------------------------------------------------------- what is refused


def _add(*members: tuple[tarfile.TarInfo, bytes]) -> Callable[[Members], Members]:
    return lambda before: [*before, *members]


def _pax(**said: str) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        members[-1][0].pax_headers = dict(said)
        return members

    return change


def _without(*names: str) -> Callable[[Members], Members]:
    return lambda members: [(member, content) for member, content in members if member.name not in names]


def _a_blob_longer(members: Members) -> Members:
    member, content = members.pop()
    return [*members, (member, content + b"!")]


def _a_blob_renamed(members: Members) -> Members:
    member, content = members.pop()
    member.name = blob_path(b"something else")
    return [*members, (member, content)]


_ONE_MORE = blob_path(b"one more")

_CRAFTED: dict[str, tuple[Callable[[Members], Members], str]] = {
    "absolute": (_add((entry("/etc/cron.d/evil"), b"x")), "absolute path"),
    "up": (_add((entry("blobs/../../evil"), b"x")), "`..`"),
    "up at the end": (_add((entry("blobs/sha256/.."), b"x")), "`..`"),
    "symbolic link": (_add((entry(_ONE_MORE, tarfile.SYMTYPE, "/etc/passwd"), b"")), "symbolic link"),
    "hard link": (_add((entry(_ONE_MORE, tarfile.LNKTYPE, "index.json"), b"")), "hard link"),
    "character device": (_add((entry(_ONE_MORE, tarfile.CHRTYPE), b"")), "device"),
    "block device": (_add((entry(_ONE_MORE, tarfile.BLKTYPE), b"")), "device"),
    "pipe": (_add((entry(_ONE_MORE, tarfile.FIFOTYPE), b"")), "pipe"),
    "contiguous": (_add((entry(_ONE_MORE, tarfile.CONTTYPE), b"x")), "type"),
    "twice": (_add((entry("index.json"), b"{}")), "two members"),
    "twice in other words": (_add((entry("./oci-layout"), b"{}")), "two members"),
    "not a digest": (_add((entry("blobs/sha256/README"), b"x")), "not named by a digest"),
    "unknown algorithm": (_add((entry("blobs/md5/d41d8cd98f00b204e9800998ecf8427e"), b"")), "not named by a digest"),
    "directly below blobs": (_add((entry("blobs/x"), b"x")), "not named by a digest"),
    "deeper below blobs": (_add((entry(f"{_ONE_MORE}/x"), b"x")), "not named by a digest"),
    "upper case": (_add((entry("blobs/sha256/" + "A" * 64), b"x")), "not named by a digest"),
    "a foreign file": (_add((entry("install.sh"), b"x")), "install.sh"),
    "an unnamed blob": (_add((entry(_ONE_MORE), b"one more")), "does not name"),
    "odd path": (_add((entry("a//b"), b"x")), "invalid path"),
    "control characters": (_add((entry("a\x1b[2Jb"), b"x")), "not printable"),
    "sparse by extension": (_pax(**{"GNU.sparse.realsize": "1"}), "sparse"),
    "large extension": (_pax(comment="x" * 70_000), "header of"),
    "a blob longer": (_a_blob_longer, "where its inventory says"),
    "a blob under another name": (_a_blob_renamed, "does not name"),
    "without a blob": (lambda members: members[:-1], "which is not in it"),
    "without marker": (_without("oci-layout"), "no oci-layout"),
    "without index": (_without("index.json"), "no index.json"),
    "without inventory": (_without("mirror-inventory.json"), "there is none"),
}


@pytest.mark.parametrize("crafted", _CRAFTED)
def test_a_crafted_bundle_is_refused(gap: Gap, crafted: str) -> None:
    """With nothing changed, whether it is signed or not."""
    change, why = _CRAFTED[crafted]
    write_members(gap.bundle, change(read_members(gap.bundle)))
    gap.expect_refused(gap.bundle, why=why)


@pytest.mark.parametrize("kind", ["gzip", "nothing", "noise", "a block of zeros", "something behind"])
def test_other_formats_than_tar_are_refused(gap: Gap, kind: str) -> None:
    """For compressed tars the message says what to do."""
    whole = gap.bundle.read_bytes()
    content, why = {
        "gzip": (gzip.compress(whole), "decompress it first"),
        "nothing": (b"", "truncated"),
        "noise": (os.urandom(4096), "not a tar"),
        "a block of zeros": (bytes(512), "truncated"),
        "something behind": (whole + b"x", "follows the end"),
    }[kind]
    gap.bundle.write_bytes(content)
    gap.expect_refused(gap.bundle, why=why)


def test_a_truncated_bundle_is_refused(gap: Gap) -> None:
    """Wherever the cut is: at a block's edge, within a header, in a blob, in the end mark."""
    whole = gap.bundle.read_bytes()
    cut = gap.folder / "cut.tar"
    before = tree(gap.isolated.root)
    edges = {edge + off for edge in range(0, len(whole), 512) for off in (0, 100)}
    for length in sorted(edge for edge in edges if edge < len(whole)):
        cut.write_bytes(whole[:length])
        done = gap.take(cut)
        assert done.status == 1, (length, done)
        assert tree(gap.isolated.root) == before, length
    assert len(edges) > 50


def test_a_flipped_byte_is_refused(gap: Gap) -> None:
    """In whichever member, its header or its content; in the signature only if that is checked."""
    whole = gap.bundle.read_bytes()
    flipped = gap.folder / "flipped.tar"
    before = tree(gap.isolated.root)
    kinds = set()
    with tarfile.open(gap.bundle) as tar:
        members = [(member.name, member.offset, member.offset_data, member.size) for member in tar.getmembers()]
    for name, offset, data, size in members:
        for place in {offset + 20, data + size // 2, data + size - 1} if size else {offset + 20}:
            damaged = bytearray(whole)
            damaged[place] ^= 0x01
            flipped.write_bytes(damaged)
            key: list[str | Path] = ["--verify", gap.public_key] if name.endswith(".sig") else []
            done = gap.take(flipped, *key)
            assert done.status == 1, (name, place - data, done)
            assert tree(gap.isolated.root) == before, (name, place)
        kinds.add(name.partition("/")[0])
    assert kinds == {"oci-layout", "index.json", "mirror-inventory.json", "mirror-inventory.json.sig", "blobs"}


def test_too_many_members_are_refused(gap: Gap, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar of endless empty files ends somewhere."""
    monkeypatch.setattr(tar_members, "MOST_MEMBERS", 8)
    gap.expect_refused(gap.bundle, why="more than 8 members")


@pytest.mark.parametrize("kind", ["link", "linked folder", "pipe", "foreign"])
def test_a_crafted_folder_is_refused(gap: Gap, kind: str) -> None:
    """A folder may lead elsewhere by links, as a tar may."""
    folder = gap.folder / "layout"
    folder.mkdir()
    assert gap.export(_APP, out=folder).status == 0
    secret = gap.folder / "secret"
    secret.write_bytes(b"secret")
    place, why = folder / blob_path(b"secret"), "symbolic link"
    match kind:
        case "link":
            place.symlink_to(secret)
        case "linked folder":
            (folder / "blobs/sha512").symlink_to(gap.folder)
        case "pipe":
            os.mkfifo(place)
            why = "device, pipe or socket"
        case "foreign":
            (folder / "blobs/notes").write_text("x")
            why = "not named by a digest"
    gap.expect_refused(folder, why=why)


# --------------------------------------------------------------------------------- layouts that others have made


def _manifest(*layers: bytes, size: int | None = None, **more: Any) -> bytes:
    listed = [
        {
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": str(Digest.of(layer)),
            "size": len(layer) if size is None else size,
        }
        for layer in layers
    ]
    config = {"mediaType": "application/json", "digest": str(Digest.of(b"{}")), "size": 2}
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": listed, **more}
    return json.dumps(body).encode()


_FULL = "docker.io/org/app:v1"

_FOREIGN: dict[str, tuple[Members, list[str], str]] = {
    "a blob that is another": (
        [
            *foreign_layout({_FULL: _manifest(b"layer")}, [b"{}"]),
            (entry(blob_path(b"layer")), b"liars"),
        ],
        [],
        "does not match its name",
    ),
    "a manifest that is another": (
        [
            (member, content + b" " if content.startswith(b'{"schemaVersion": 2, "mediaType"') else content)
            for member, content in foreign_layout({_FULL: _manifest(b"layer")}, [b"{}", b"layer"])
        ],
        [],
        "where its descriptor says",
    ),
    "another size than the manifest says": (
        foreign_layout({_FULL: _manifest(b"layer", size=6)}, [b"{}", b"layer"]),
        [],
        "where its descriptor says 6",
    ),
    "a manifest of 5 MiB": (
        foreign_layout({_FULL: _manifest(b"layer", annotations={"x": "y" * (5 << 20)})}, [b"{}", b"layer"]),
        [],
        "more than the 4194304 allowed",
    ),
    "no JSON": (foreign_layout({_FULL: b"not JSON"}), [], "is not a manifest"),
    "JSON without end": (foreign_layout({_FULL: b"[" * 100_000}), [], "is not a manifest"),
    "an index called a manifest": (
        foreign_layout({_FULL: b'{"schemaVersion":2,"manifests":[]}'}),
        [],
        "is not a manifest",
    ),
    "a missing layer": (
        foreign_layout({_FULL: _manifest(b"layer")}, [b"{}"]),
        [],
        "neither in the source nor in this mirror",
    ),
    "a missing manifest": (
        [member for member in foreign_layout({_FULL: b"x"}) if not member[0].name.startswith("blobs/")],
        [],
        "is not in it",
    ),
    "unknown registries": (
        foreign_layout({"ghcr.io/a/b:v1": _manifest(), "quay.io/a/b:v1": _manifest()}, [b"{}"]),
        [],
        "ghcr.io is not configured in this mirror; quay.io/a/b:v1: the registry quay.io is not configured",
    ),
    "a bare tag": (foreign_layout({"v1": _manifest()}, [b"{}"]), [], "--name"),
    "no name": (foreign_layout({"": _manifest()}, [b"{}"]), [], "has no name"),
    "one name for two": (
        foreign_layout({"v1": _manifest(), "v2": _manifest(b"{}")}, [b"{}"]),
        ["--name", "org/app:v1"],
        "cannot all have the name",
    ),
    "the same name twice": (
        foreign_layout({"docker.io/org/app:v1": _manifest(), "org/app:v1": _manifest(b"{}")}, [b"{}"]),
        [],
        "two images have the name docker.io/org/app:v1",
    ),
    "another digest than its name says": (
        foreign_layout({f"docker.io/org/app@{Digest.of(b'x')}": _manifest()}, [b"{}"]),
        [],
        "names another digest",
    ),
    "a name that is none": (
        foreign_layout({"docker.io/Org/../app:v1": _manifest()}, [b"{}"]),
        [],
        "not a repository name",
    ),
    "no image": (foreign_layout({}), [], "names no image"),
    "no index": (foreign_layout({}, schemaVersion=1), [], "not an image index"),
    "digest nonsense": (foreign_layout({}, manifests=[{"digest": "sha256:x", "size": 1}]), [], "index.json"),
    "another layout": (
        [
            (member, b'{"imageLayoutVersion": "2.0.0"}' if member.name == "oci-layout" else content)
            for member, content in foreign_layout({_FULL: _manifest()}, [b"{}"])
        ],
        [],
        "2.0.0",
    ),
}


@pytest.mark.parametrize("crafted", _FOREIGN)
def test_a_crafted_layout_is_refused(gap: Gap, crafted: str) -> None:
    """Where no inventory binds anything, digests and descriptors do."""
    members, words, why = _FOREIGN[crafted]
    gap.expect_refused(write_members(gap.folder / "foreign.tar", members), *words, why=why)


def test_a_layout_without_an_inventory(gap: Gap) -> None:
    """Only what its images need is imported, whatever else is in it."""
    members = foreign_layout({_FULL: _manifest(b"layer")}, [b"{}", b"layer", b"left over from something"])
    members.append((entry("manifest.json"), b"[]"))
    done = gap.take(write_members(gap.folder / "foreign.tar", members), "--json")
    assert (done.status, done.json["has_inventory"], done.json["images"]) == (0, False, [_FULL]), done
    assert gap.isolated.has(b"layer")
    assert not gap.isolated.has(b"left over from something")


@pytest.mark.parametrize(
    ("said", "name", "filed"),
    [
        ("v2", "org/app", ("org/app", "v2")),
        ("v2", "docker.io/org/app:v3", ("org/app", "v3")),
        ("", "app:v3", ("library/app", "v3")),
        ("quay.io/a/b:v4", "org/app", ("org/app", "v4")),
        ("org/app:v5", None, ("org/app", "v5")),
    ],
)
def test_names_of_layouts(gap: Gap, said: str, name: str | None, filed: tuple[str, str]) -> None:
    """The layout's own, or the one given, with the layout's tag where that has none."""
    path = write_members(gap.folder / "foreign.tar", foreign_layout({said: _manifest()}, [b"{}"]))
    done = gap.take(path, *(["--name", name] if name else []))
    assert done.status == 0, done
    assert gap.isolated.tagged(*filed) == Digest.of(_manifest())


def test_a_layout_as_docker_saves_it(gap: Gap) -> None:
    """With a bare tag, the full name in containerd's annotation, and files of its own."""
    members = foreign_layout({"": _manifest(b"layer")}, [b"{}", b"layer"])
    index = json.loads(members[1][1])
    index["manifests"][0]["annotations"] = {
        "io.containerd.image.name": "docker.io/library/saved:1.0",
        "org.opencontainers.image.ref.name": "1.0",
    }
    members[1] = (members[1][0], json.dumps(index).encode())
    members += [(entry("manifest.json"), b"[]"), (entry("repositories"), b"{}")]
    done = gap.take(write_members(gap.folder / "saved.tar", members))
    assert done.status == 0, done
    assert gap.isolated.tagged("library/saved", "1.0") == Digest.of(_manifest(b"layer"))


def test_a_layout_without_any_tag_is_filed_by_digest(gap: Gap) -> None:
    """`--name` says the repository; no tag is made up."""
    path = write_members(gap.folder / "foreign.tar", foreign_layout({"": _manifest()}, [b"{}"]))
    done = gap.take(path, "--name", "org/app", "--json")
    assert done.json["images"] == [f"docker.io/org/app@{Digest.of(_manifest())}"], done
    assert not gap.isolated.catalog.tags(Repo("docker.io", "org/app"))


# --------------------------------------------------------------------------------------------------- signatures


def test_signatures(gap: Gap) -> None:
    """Refused are: none, one by another key, one over another inventory, and a layout that has no inventory."""
    assert mirror("keygen", gap.folder / "other").status == 0
    verify: list[str | Path] = ["--verify", gap.public_key]
    gap.expect_refused(gap.bundle, "--verify", gap.folder / "other.pub", why="not that of this inventory")
    unsigned = write_members(gap.folder / "1.tar", _without("mirror-inventory.json.sig")(read_members(gap.bundle)))
    gap.expect_refused(unsigned, *verify, why="not signed")
    assert gap.export("team/deep/tool:1.0", out=gap.folder / "2.tar").status == 0
    signature = [(member, content) for member, content in read_members(gap.bundle) if member.name.endswith(".sig")]
    mixed = write_members(gap.folder / "2.tar", [*read_members(gap.folder / "2.tar"), *signature])
    gap.expect_refused(mixed, *verify, why="not that of this inventory")
    foreign = write_members(gap.folder / "3.tar", foreign_layout({_FULL: _manifest()}, [b"{}"]))
    gap.expect_refused(foreign, *verify, why="no inventory")
    assert gap.take(gap.bundle, *verify, "--require-signature").status == 0


def test_others_can_check_a_signature(gap: Gap) -> None:
    """openssl verifies it, and makes keys that sign here."""
    files = {member.name: content for member, content in read_members(gap.bundle)}
    for name in ("mirror-inventory.json", "mirror-inventory.json.sig"):
        (gap.folder / name).write_bytes(files[name])
    check: list[str | Path] = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", gap.public_key]
    inventory = gap.folder / "mirror-inventory.json"
    said = run([*check, "-in", inventory, "-sigfile", f"{inventory}.sig"])
    assert b"Verified Successfully" in said
    run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", gap.folder / "theirs.key"])
    run(["openssl", "pkey", "-in", gap.folder / "theirs.key", "-pubout", "-out", gap.folder / "theirs.pub"])
    assert gap.export(_APP, "--sign", gap.folder / "theirs.key").status == 0
    assert gap.take(gap.bundle, "--verify", gap.folder / "theirs.pub").status == 0


@pytest.mark.parametrize("kind", ["rsa", "nonsense", "the other half"])
def test_keys_of_another_kind(gap: Gap, kind: str) -> None:
    """They are refused as such, whichever they are for."""
    wrong = gap.folder / "wrong.pem"
    if kind == "rsa":
        run(["openssl", "genpkey", "-algorithm", "rsa", "-out", wrong])
    else:
        wrong.write_bytes(b"nonsense" if kind == "nonsense" else gap.public_key.read_bytes())
    done = gap.export(_APP, "--sign", wrong, out=gap.folder / "x.tar")
    assert (done.status, "wrong.pem: the key to sign with is not" in done.err) == (2, True), done
    if kind == "the other half":
        wrong.write_bytes((gap.folder / "site.key").read_bytes())
    done = gap.take(gap.bundle, "--verify", wrong)
    assert (done.status, "wrong.pem: the key to verify with is not" in done.err) == (2, True), done
    assert "PRIVATE KEY" not in done.err


def test_a_signed_bundle_binds_its_names(gap: Gap) -> None:
    """`index.json` is not what is signed; it may still not call an image otherwise, or leave one out."""
    members = read_members(gap.bundle)
    for old, new in ((b"app:v1", b"app:v2"), (b"io.containerd.image.name", b"registry-mirror.image")):
        changed = [
            (member, content.replace(old, new) if member.name == "index.json" else content)
            for member, content in members
        ]
        path = write_members(gap.folder / "changed.tar", changed)
        done = gap.take(path, "--verify", gap.public_key)
        assert (done.status, new == b"app:v2") in ((1, True), (0, False)), done
    [index] = [content for member, content in members if member.name == "index.json"]
    body = json.loads(index)
    body["manifests"] = body["manifests"][1:]
    changed = [
        (member, json.dumps(body).encode() if member.name == "index.json" else content) for member, content in members
    ]
    gap.expect_refused(write_members(gap.folder / "fewer.tar", changed), "--verify", gap.public_key, why="differ about")


def test_a_registry_that_has_another_name_here(gap: Gap) -> None:
    """What this mirror has as an alias is filed under the name that it has here, signed or not."""
    other = Stocked(gap.folder / "other")
    config = write_settings(other.root)
    config.write_text(
        config.read_text().replace('name = "docker.io"', 'name = "hub.internal"\naliases = ["docker.io"]')
    )
    done = mirror("import", gap.bundle, "--verify", gap.public_key, "--json", "-c", config)
    assert done.status == 0, done
    assert "hub.internal/library/app:v1" in done.json["images"]
    assert other.catalog.tags(Repo("hub.internal", "library/app")) == ["v1"]


# ------------------------------------------------------------------------------------------------------- export


def test_missing_content_is_named(gap: Gap) -> None:
    """Images that were never pulled, and missing blobs; no file is left."""
    lacking = gap.connected.image("library/half", [b"here", b"never came"], missing=[b"never came"])
    gap.connected.tag("library/half", "v1", lacking)
    out = gap.folder / "out.tar"
    done = gap.export("half:v1", "never:v1", out=out)
    assert (done.status, "docker.io/library/never:v1 is not here" in done.err) == (1, True), done
    assert f"docker.io/library/half:v1 lacks {Digest.of(b'never came')} (layer, 10 B)" in done.err
    assert not [path for path in gap.folder.iterdir() if "out" in path.name]


def test_an_incomplete_image_on_request(gap: Gap) -> None:
    """Exported with `--allow-incomplete`, it is taken with `--allow-incomplete` only, and lacks what it lacked."""
    lacking = gap.connected.image("library/half", [b"here", b"never came"], missing=[b"never came"])
    gap.connected.tag("library/half", "v1", lacking)
    done = gap.export("half:v1", "--allow-incomplete", "--json")
    assert (done.status, done.json["missing"]) == (0, [str(Digest.of(b"never came"))]), done
    gap.expect_refused(gap.bundle, why=str(Digest.of(b"never came")))
    done = gap.take(gap.bundle, "--allow-incomplete", "--json")
    assert (done.status, list(done.json["absent"])) == (0, [str(Digest.of(b"never came"))]), done
    assert gap.isolated.has(b"here")


def test_platforms(gap: Gap) -> None:
    """The chosen ones, with the whole index; one that is asked for and not here is an error."""
    done = gap.export(_APP, "--platform", "linux/arm64", "--json")
    assert done.status == 0, done
    assert gap.take(gap.bundle).status == 0
    assert gap.isolated.tagged("library/app") == gap.connected.tagged("library/app")
    assert gap.isolated.has(b"arm64's own" * 50)
    assert not gap.isolated.has(b"amd64's own" * 50)
    # nobody pulled amd64 on the other side
    words: list[str | Path] = ["export", _APP, "-o", gap.folder / "back.tar", "-c", gap.isolated_config]
    assert mirror(*words).status == 0
    done = mirror(*words, "--platform", "linux/amd64")
    assert (done.status, "manifest for linux/amd64" in done.err) == (1, True), done
    done = mirror(*words, "--platform", "linux/s390x")
    assert (done.status, "is not for linux/s390x" in done.err) == (1, True), done


def test_a_tag_is_exported_as_it_is_answered(gap: Gap) -> None:
    """A frozen tag as it was frozen; one that is too new as the older one or not at all, unless sealed."""
    frozen = gap.connected.image("library/app", [b"the good one"])
    assert mirror("freeze", _APP, "--at", str(frozen.digest), "-c", gap.config).status == 0
    assert gap.export(_APP, out=gap.folder / "1.tar").status == 0
    assert gap.take(gap.folder / "1.tar").status == 0
    assert gap.isolated.tagged("library/app") == frozen.digest
    assert mirror("unfreeze", _APP, "-c", gap.config).status == 0
    new = gap.connected.image("library/app", [b"perhaps a poisoned one"])
    gap.connected.catalog.put_manifest(
        Repo("docker.io", "library/app"), ManifestRecord(new.digest, new.media_type, new.size, time.time())
    )
    gap.connected.tag("library/app", "v1", new)
    older = Sighting(frozen.digest, frozen.media_type, frozen.size, 1_000_000_000.0, 1_000_000_001.0)
    newest = Sighting(new.digest, new.media_type, new.size, 1_700_000_000.0, 1_700_000_000.0)
    gap.config.write_text(gap.config.read_text() + '[[route]]\nmatch = "**"\nminimum_age = "9000d"\n')
    done = gap.export(_APP, out=gap.folder / "2.tar")
    assert (done.status, "minimum_age" in done.err) == (1, True), done
    sealed = gap.folder / "sealed.toml"
    sealed.write_text("offline = true\n" + gap.config.read_text())
    done = mirror("export", _APP, "-o", gap.folder / "2.tar", "-c", sealed)
    assert [image["digest"] for image in read_inventory_of(gap.folder / "2.tar")] == [str(new.digest)], done
    gap.connected.catalog.put_history(Repo("docker.io", "library/app"), "v1", (older, newest))
    done = gap.export(_APP, out=gap.folder / "2.tar")
    assert [image["digest"] for image in read_inventory_of(gap.folder / "2.tar")] == [str(frozen.digest)], done


def test_a_damaged_blob_is_not_exported(gap: Gap) -> None:
    """It is detected while it is written, named, and set aside to be fetched again; no file is left."""
    place = Path(gap.connected.layout.blob(Digest.of(b"amd64's own" * 50)))
    gap.connected.plant(Digest.of(b"amd64's own" * 50), b"amd64's OWN" * 50)
    out = gap.folder / "out.tar"
    done = gap.export(_APP, out=out)
    assert (done.status, str(Digest.of(b"amd64's own" * 50)) in done.err) == (1, True), done
    assert not [path for path in gap.folder.iterdir() if "out" in path.name]
    assert not place.exists()


def test_lists_of_images(gap: Gap) -> None:
    """A file with an image a line; comments and empty lines are passed over."""
    listed = gap.folder / "images.txt"
    listed.write_text("# the application\napp:v1   # pinned\n\n  team/deep/tool:1.0\n")
    done = gap.export("--from-file", listed, "--json")
    assert done.json["images"] == [_APP, "docker.io/team/deep/tool:1.0"], done


def test_signatures_by_tag_are_referrers_too(gap: Gap) -> None:
    """`sha256-<hex>.sig` is where older tools put them."""
    root = gap.connected.tagged("library/app")
    assert root
    name = f"sha256-{root.hex}.sig"
    gap.connected.tag("library/app", name, gap.connected.image("library/app", [b"of cosign"]))
    done = gap.export(_APP, "--referrers", "--json")
    assert f"docker.io/library/app:{name}" in done.json["images"]


def test_attestations_in_an_index_are_referrers_too(gap: Gap) -> None:
    """Of the chosen platform, where they are asked for."""
    one, two = (gap.connected.image("org/built", [name]) for name in (b"for amd64", b"for arm64"))
    about = {
        one.digest: gap.connected.image("org/built", [b"on amd64"]),
        two.digest: gap.connected.image("org/built", [b"on arm64"]),
    }
    gap.connected.tag("org/built", "v1", gap.connected.index("org/built", {"amd64": one, "arm64": two}, attested=about))
    words = ["org/built:v1", "--platform", "linux/amd64"]
    assert gap.export(*words).status == 0
    assert gap.take(gap.bundle).status == 0
    assert not gap.isolated.has(b"on amd64")
    assert gap.export(*words, "--referrers").status == 0
    assert gap.take(gap.bundle).status == 0
    assert [gap.isolated.has(layer) for layer in (b"for amd64", b"on amd64", b"for arm64", b"on arm64")] == [
        True,
        True,
        False,
        False,
    ]


def test_one_name_for_two_digests(gap: Gap) -> None:
    """A tag, and the same tag with another digest, cannot both be in a bundle."""
    other = gap.connected.image("library/app", [b"another"])
    done = gap.export(_APP, f"{_APP}@{other.digest}", out=gap.folder / "x.tar")
    assert (done.status, "is requested as" in done.err) == (1, True), done
    assert gap.export(f"{_APP}@{other.digest}").status == 0
    assert gap.take(gap.bundle).status == 0
    assert gap.isolated.tagged("library/app") == other.digest


def test_an_export_into_a_used_folder(gap: Gap) -> None:
    """It is an error."""
    (gap.folder / "full").mkdir()
    (gap.folder / "full/mine").write_text("mine")
    done = gap.export(_APP, out=gap.folder / "full")
    assert (done.status, "not empty" in done.err) == (1, True), done
    assert [path.name for path in (gap.folder / "full").iterdir()] == ["mine"]
    assert not [path for path in gap.folder.iterdir() if path.name.endswith(".part")]


# ------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["export", "app:v1"], "--output"),
        (["export", "-o", "x.tar"], "name an image, or a list"),
        (["export", "quay.io/a/b:v1", "-o", "x.tar"], "quay.io is not configured"),
        (["export", "app:v1", "-o", "x.tar", "--platform", "linux"], "not a platform"),
        (["export", "app:v1", "-o", "x.tar", "--sign", "no-such.key"], "no-such.key: No such file"),
        (["export", "app:v1", "-o", "x.tar", "--since", __file__], "not an inventory of a mirror"),
        (["export", "--from-file", "no-such.txt", "-o", "x.tar"], "no-such.txt: No such file"),
        (["import"], "either a bundle or --registry-data"),
        (["import", "x.tar", "--registry-data", "."], "either a bundle or --registry-data"),
        (["import", "x.tar", "--as", "docker.io"], "--as is for --registry-data only"),
        (["import", "x.tar", "--require-signature"], "--require-signature needs --verify"),
        (["import", "--registry-data", ".", "--verify", "x.pub"], "are for bundles"),
        (["import", "--registry-data", ".", "--as", "quay.io"], "not a registry of this mirror"),
    ],
)
def test_unusable_arguments(gap: Gap, words: list[str], why: str) -> None:
    """Exit status 2, and what is wrong with them."""
    done = mirror(*words, "-c", gap.config)
    assert (done.status, why in done.err) == (2, True), done


def test_a_missing_file(gap: Gap) -> None:
    """It is reported like every other mistake."""
    gap.expect_refused(gap.folder / "never.tar", why="No such file")


def test_keys_are_not_overwritten(gap: Gap) -> None:
    """A private key is readable by its owner alone, and stays."""
    before = (gap.folder / "site.key").read_bytes()
    assert (gap.folder / "site.key").stat().st_mode & 0o777 == 0o600
    assert mirror("keygen", gap.folder / "site").status == 2
    assert (gap.folder / "site.key").read_bytes() == before


def test_room_is_made_for_the_whole_bundle(gap: Gap) -> None:
    """Older images are evicted; blobs of the bundle that are here already stay, and so do its own first images."""
    layers = [random.Random(number).randbytes(100_000) for number in range(5)]
    gap.connected.tag("library/big", "v1", gap.connected.image("library/big", layers))
    assert gap.export("big:v1").status == 0
    small = Stocked(gap.folder / "small")
    config = write_settings(small.root, capacity="700kB")
    small.blob(layers[0])
    small.tag("library/old", "v1", small.image("library/old", [random.Random(9).randbytes(300_000)]))
    os.utime(small.layout.blob(Digest.of(layers[0])), (1_000_000, 1_000_000))  # the coldest of all
    done = mirror("import", gap.bundle, "-c", config, "--json")
    assert (done.status, done.json["here"]["blobs"]) == (0, 1), done
    assert all(small.has(layer) for layer in layers)
    assert not small.has(random.Random(9).randbytes(300_000))


@pytest.mark.parametrize("indexed", [False, True])
def test_shared_layers_stay_when_room_is_made(gap: Gap, indexed: bool) -> None:
    """A layer that the bundle's image shares with the coldest image here does not go with that one, by the index or by
    the disk alone; also where the bundle is a difference that leaves it out.
    """
    shared, own = random.Random(1).randbytes(100_000), random.Random(2).randbytes(300_000)
    small = Stocked(gap.folder / "small")
    config = write_settings(small.root, capacity="700kB")
    small.tag("library/base", "v1", small.image("library/base", [shared]))
    inventory = gap.folder / "small.json"
    inventory.write_text(mirror("inventory", "--json", "-c", config).out)
    for file in (small.root / "blobs").rglob("*"):
        if file.is_file():
            os.utime(file, (1_000_000, 1_000_000))  # the coldest
    warm = random.Random(3).randbytes(400_000)
    small.tag("library/warm", "v1", small.image("library/warm", [warm]))
    gap.connected.tag("library/big", "v1", gap.connected.image("library/big", [shared, own]))
    assert gap.export("big:v1", "--since", inventory, "--sign", gap.folder / "site.key").status == 0
    if indexed:
        rebuild(config)
    done = mirror("import", gap.bundle, "-c", config, "--json", "--verify", gap.public_key)
    assert done.status == 0, done
    assert [small.has(content) for content in (shared, own, warm)] == [True, True, False]


def test_a_store_of_another_user(gap: Gap, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this user would take in its server could not read."""
    before = tree(gap.isolated.root)
    monkeypatch.setattr(os, "geteuid", lambda: gap.isolated.root.stat().st_uid + 1)
    done = gap.take(gap.bundle)
    assert (done.status, "run it as that user" in done.err) == (2, True), done
    assert tree(gap.isolated.root) == before


def test_a_folder_that_is_not_a_layout(gap: Gap) -> None:
    """The message says so at once, whatever else is in the folder."""
    folder = gap.folder / "etc"
    folder.mkdir()
    (folder / "link").symlink_to("/")
    gap.expect_refused(folder, why="not an OCI image layout: it has no oci-layout")


def test_a_pipe_is_refused(gap: Gap) -> None:
    """At once, whether a process writes to it or not."""
    os.mkfifo(gap.folder / "pipe")
    gap.expect_refused(gap.folder / "pipe", why="neither a file nor a folder")


def test_a_store_that_is_too_small(gap: Gap) -> None:
    """Is said before anything is written."""
    small = Stocked(gap.folder / "small")
    config = write_settings(small.root, capacity="2kB")
    mirror("inventory", "-c", config)
    before = tree(small.root)
    done = mirror("import", gap.bundle, "-c", config)
    assert (done.status, "no room for the" in done.err) == (1, True), done
    assert tree(small.root) == before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_import_that_is_killed(gap: Gap, how: signal.Signals) -> None:
    """In the middle, by whatever signal: the image is not here, and the next import brings it."""
    layers = [random.Random(number).randbytes(8 << 20) for number in range(3)]
    gap.connected.tag("library/big", "v1", gap.connected.image("library/big", layers))
    assert gap.export("big:v1").status == 0
    command: list[str | Path] = [sys.executable, "-m", "mirror", "import", gap.bundle, "-c", gap.isolated_config]
    layout = gap.isolated.layout
    begun = [layout.ingest(Digest.of(layers[0]), ""), Path(layout.blob(Digest.of(layers[0])))]
    # as long as we fill the last layer it waits for us, and cannot come to its end
    ours = gap.isolated.store.ingest(Digest.of(layers[2]), "")
    assert ours.try_lock()
    with ProgramProcess(command, env={"PYTHONPATH": str(Path(__file__).parents[2])}) as process:
        eventually(lambda: any(path.exists() for path in begun), "a blob grows")
        process.signal(how)
        assert process.wait() != 0, process.tail()
        assert not [line for line in process.lines if "Traceback" in line], process.tail()
    ours.close()
    assert gap.isolated.tagged("library/big") is None
    assert gap.take(gap.bundle).status == 0
    assert gap.isolated.tagged("library/big") == gap.connected.tagged("library/big")
    assert all(gap.isolated.has(layer) for layer in layers)


@pytest.mark.parametrize("as_folder", [True, False])
def test_an_export_that_is_killed(gap: Gap, as_folder: bool) -> None:
    """At any point: no file is left, and an earlier file stays."""
    images = [Image(Repo("docker.io", "library/app"), "v1")]
    selection = select(
        gap.connected.store,
        gap.connected.catalog,
        images,
        answers=lambda *_: gap.connected.tagged("library/app"),
        may_serve=lambda _repo, _digest: True,
    )
    out = gap.folder / "out"
    out.mkdir()
    place = out / "bundle"
    if not as_folder:
        place.write_text("the one before")
    for limit in range(0, selection.inventory().size, 300):
        remaining = limit

        def on_read(count: int) -> None:
            nonlocal remaining
            remaining -= count
            if remaining < 0:
                raise BundleError("interrupted")

        with pytest.raises(BundleError, match="interrupted"):
            export(selection, gap.connected.store, create_layout(place, folder=as_folder), on_read=on_read)
        assert [path.read_text() for path in out.iterdir()] == ([] if as_folder else ["the one before"])
