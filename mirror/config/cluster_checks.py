"""Checks of `[cluster]`: what belongs together, what the other settings must be in a cluster, and files."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from mirror.config.files import unreadable
from mirror.config.settings import Config
from mirror.config.tables.cluster_settings import ClusterSettings
from mirror.errors import ConfigError, reason_of
from mirror.policy.cluster.member_addresses import MemberAddress, parse_member
from mirror.policy.cluster.peer_secrets import parse_secrets

_TLS: Final = ("tls_certificate", "tls_key", "ca_file")


def check_cluster(config: Config) -> list[str]:
    """The mistakes in the settings of the cluster, in the files that they name, and in what else a replica needs."""
    cluster = config.cluster
    if not cluster.has_members:
        written = sorted(cluster.model_fields_set - {"members"})
        return [f"cluster.{name}: there is no cluster: set cluster.members" for name in written]
    members = [parse_member(member) for member in cluster.members]
    mistakes = [*_members(members), *_address(cluster, members), *_secret(cluster.secret_file)]
    mistakes += _tls(cluster, tls=members[0].is_tls)
    listening = [("server.listen", each) for each in config.server.listen]
    listening += [("admin.listen", config.admin_tcp)] if config.admin_tcp else []
    mistakes += [
        f"listen: {cluster.listen} and {address} of {setting} exclude each other: the internal listener needs a port "
        "of its own"
        for setting, address in listening
        if _overlap(cluster.listen, address)
    ]
    return [*(f"cluster.{mistake}" for mistake in mistakes), *_others(config)]


def cluster_hints(config: Config) -> list[str]:
    """Warnings about settings that are valid, and hardly meant."""
    cluster, hints = config.cluster, []
    if not cluster.has_members:
        if config.hosting.tag_freshness:
            hints.append("hosting.tag_freshness: has no effect without cluster.members")
        return hints
    if len(cluster.members) == 1 and not parse_member(cluster.members[0]).lookup:
        hints.append("cluster.members: this replica is the only member")
    if config.hosting.tag_freshness > 60:
        hints.append(
            f"hosting.tag_freshness: for {config.hosting.tag_freshness:g} s after a push, other replicas may answer "
            "with the tag's old image"
        )
    return hints


def _overlap(one: str, other: str) -> bool:
    """True if two addresses to listen on cannot both be had."""
    if other.startswith("unix:") or one.rpartition(":")[2] != other.rpartition(":")[2]:
        return False
    hosts = {address.rpartition(":")[0] for address in (one, other)}
    return len(hosts) == 1 or bool(hosts & {"0.0.0.0", "[::]", "::"})  # noqa: S104 - compared, not listened on


def _members(members: list[MemberAddress]) -> list[str]:
    mistakes = []
    if any(member.lookup for member in members) and len(members) > 1:
        mistakes.append("members: a dns+ name stands alone: its addresses are the members")
    if len({member.scheme for member in members}) > 1:
        mistakes.append("members: http:// and https:// do not mix: all replicas speak TLS with one another, or none")
    names = [str(member) for member in members]
    mistakes += [f"members: {name} is there more than once" for name in sorted(set(names)) if names.count(name) > 1]
    return mistakes


def _address(cluster: ClusterSettings, members: list[MemberAddress]) -> list[str]:
    if not cluster.address:
        return ["address: must be set: the address of this replica, as the other replicas reach it"]
    own, first = parse_member(cluster.address), members[0]
    if not first.lookup:
        if cluster.address not in cluster.members:
            return [f"address: {cluster.address} is not one of cluster.members"]
        return []
    mistakes = []
    if (own.scheme, own.port) != (first.scheme, first.port):
        mistakes.append(f"address: {own} differs from {first} in scheme or port, so it is none of its addresses")
    if not own.has_ip:
        mistakes.append(f"address: {own.host} is a name; members that are looked up are known by their IP addresses")
    return mistakes


def _secret(path: Path | None) -> list[str]:
    if path is None:
        return ["secret_file: must be set: a file with at least 32 random bytes, the same on all replicas"]
    try:
        parse_secrets(path.read_bytes())
    except OSError as error:
        return [f"secret_file: {path}: {reason_of(error)}"]
    except ConfigError as error:
        return [f"secret_file: {path}: {mistake}" for mistake in error.mistakes]
    return []


def _tls(cluster: ClusterSettings, *, tls: bool) -> list[str]:
    paths: dict[str, Path | None] = {name: getattr(cluster, name) for name in _TLS}
    if not tls:
        return [f"{name}: is for members with https://" for name, path in paths.items() if path is not None]
    missing = [f"{name}: must be set for members with https://" for name, path in paths.items() if path is None]
    missing += unreadable(paths)
    certificate, key, ca_file = cluster.tls_certificate, cluster.tls_key, cluster.ca_file
    if missing or certificate is None:
        return missing
    mistakes = []
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError):
        mistakes.append(
            f"tls_certificate, tls_key: {certificate} and {key} are not PEM files that belong together, or the key has "
            "a passphrase"
        )
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca_file)
    except (OSError, ssl.SSLError):
        mistakes.append(f"ca_file: {ca_file} contains no certificate")
    return mistakes


def _others(config: Config) -> list[str]:
    """What other settings must be in a cluster."""
    mistakes = []
    if config.hosted and config.store.bucket is None:
        mistakes.append(
            "cluster.members: hosted registries need store.bucket: without it, each replica would host images of its "
            "own"
        )
    if (config.hosted or not config.access.is_open) and config.access.token_key_file is None:
        mistakes.append(
            "access.token_key_file: must be set in a cluster: a token that one replica issues is shown to the others"
        )
    return mistakes
