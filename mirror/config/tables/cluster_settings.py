"""The settings of a cluster of replicas."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from mirror.config import values
from mirror.config.section import Section
from mirror.config.values import Listed, Seconds
from mirror.policy.cluster.member_addresses import parse_member


def _member(text: str) -> str:
    return str(parse_member(text))


def _address(text: str) -> str:
    if not text:
        return text
    if (address := parse_member(text)).lookup:
        raise ValueError("one address, without dns+: http://10.0.0.1:5001")
    return str(address)


def _listen(text: str) -> str:
    if text.startswith("unix:") or values.listen(text).endswith(":0"):
        raise ValueError(f"{text!r}: other replicas need host:port, with a port that they know")
    return text


class ClusterSettings(Section):
    """`[cluster]`: replicas that share their work. Without `members` there is no cluster."""

    name: str = Field(
        "mirror",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="The cluster's name: letters, digits and . _ -; all members have the same.",
    )
    members: Listed[Annotated[str, AfterValidator(_member)]] = Field(
        [],
        description="http:// or https:// addresses of the internal listeners of all replicas, or one dns+http://name:"
        "port whose addresses they are; none: no cluster.",
    )
    address: Annotated[str, AfterValidator(_address)] = Field(
        "", description="The address of this replica's internal listener, as the other replicas reach it."
    )
    listen: Annotated[str, AfterValidator(_listen)] = Field(
        "0.0.0.0:5001", description="host:port of the internal listener, which is for other replicas alone."
    )
    secret_file: Path | None = Field(
        None,
        description="File with the secret of the cluster, at least 32 bytes. A second line is accepted as well, to "
        "exchange the secret without a pause; read again when the file changes.",
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file with this replica's certificate and its chain, for https:// members."
    )
    tls_key: Path | None = Field(None, description="PEM file with the private key of that certificate.")
    ca_file: Path | None = Field(
        None, description="PEM file with the authority that issues the certificates of replicas, and no others."
    )
    tls_name: str = Field(
        "mirror", min_length=1, max_length=253, description="The DNS name that every replica's certificate has."
    )
    drain: Seconds = Field(
        30.0, ge=0, le=3600, description="How long open uploads may go on at this replica after SIGTERM."
    )

    @property
    def has_members(self) -> bool:
        """True if this mirror is a replica of a cluster."""
        return bool(self.members)
