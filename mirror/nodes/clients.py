"""All supported clients, by their names on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from mirror.nodes.buildkit import BUILDKIT
from mirror.nodes.containerd import CONTAINERD
from mirror.nodes.docker import DOCKER
from mirror.nodes.k3s import K3S, RKE2
from mirror.nodes.plan import Client
from mirror.nodes.podman import CRIO, PODMAN

CLIENTS: Final[Mapping[str, Client]] = MappingProxyType(
    {client.name: client for client in (DOCKER, CONTAINERD, PODMAN, CRIO, BUILDKIT, K3S, RKE2)}
)
