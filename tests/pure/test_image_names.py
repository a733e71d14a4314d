"""Images as people write them."""

from __future__ import annotations

import pytest

from mirror.errors import DigestInvalid, MirrorError, NameInvalid, NameUnknown, TagInvalid
from mirror.oci.digest import Digest
from mirror.policy.image_names import parse_image
from mirror.policy.routing import Registry, RoutingTable

_TABLE = RoutingTable.build(
    [
        Registry("docker.io", ("index.docker.io",), library=True),
        Registry("ghcr.io"),
        Registry("*.pkg.dev"),
        Registry("localhost:5000"),
        Registry("corp", hosted=True),
    ],
    "docker.io",
)
_DIGEST = Digest.of(b"x")


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("bitnami/redis", "docker.io/bitnami/redis:latest"),
        ("index.docker.io/alpine:3", "docker.io/library/alpine:3"),
        ("docker.io/library/alpine", "docker.io/library/alpine:latest"),
        ("docker://ghcr.io/owner/app:v1", "ghcr.io/owner/app:v1"),
        ("GHCR.io/owner/app", "ghcr.io/owner/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("localhost:5000/app:2", "localhost:5000/app:2"),
        ("eu-docker.pkg.dev/p/r/app:1", "eu-docker.pkg.dev/p/r/app:1"),
        (f"ghcr.io/owner/app@{_DIGEST}", f"ghcr.io/owner/app@{_DIGEST}"),
        (f"alpine:3@{_DIGEST}", f"docker.io/library/alpine:3@{_DIGEST}"),
        (" alpine \n", "docker.io/library/alpine:latest"),
        ("corp/team/app:1", "corp/team/app:1"),
        ("corp/app", "corp/app:latest"),
        ("corp:1", "docker.io/library/corp:1"),
    ],
)
def test_what_an_image_means(written: str, means: str) -> None:
    """Docker's rules: default registry, `library/` for one-part names of Docker Hub, `latest`."""
    assert str(parse_image(written, _TABLE)) == means


def test_a_digest_goes_before_a_tag() -> None:
    """With both, the digest is asked for."""
    assert parse_image(f"alpine:3@{_DIGEST}", _TABLE).reference == _DIGEST
    assert parse_image("alpine:3", _TABLE).reference == "3"


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ("", NameInvalid),
        (":tag", NameInvalid),
        ("UPPER", NameInvalid),
        ("a/../b", NameInvalid),
        ("alpine:", TagInvalid),
        (str(_DIGEST), NameInvalid),
        ("alpine:a b", TagInvalid),
        ("alpine@sha256:12", DigestInvalid),
        ("registry.example/app", NameUnknown),
        ("pkg.dev/app", NameUnknown),
    ],
)
def test_what_is_no_image_of_this_mirror(written: str, error: type[MirrorError]) -> None:
    """A mistake is told, never guessed at: a registry that is not configured is not a name on the default one."""
    with pytest.raises(error):
        parse_image(written, _TABLE)


def test_without_a_default_registry() -> None:
    """Then an image must say its registry."""
    with pytest.raises(NameUnknown):
        parse_image("alpine", RoutingTable.build([Registry("ghcr.io")], None))
