"""Copies by the admin API's own class, in a mirror of this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action
from mirror.prefetch.progress import ProgressMeter
from mirror.replication.copy_run import AllRights, CopyResult
from mirror.server.admin.copy_admin import CopyAdmin
from tests.support.live_mirror import LiveMirror


@dataclass
class Rights:
    """All rights but those that a test takes away."""

    denied: set[tuple[Action, str]] = field(default_factory=set)
    may_see_network: bool = False

    def may(self, action: Action, repo: Repo) -> bool:
        return (action, str(repo)) not in self.denied


async def copy(mirror: LiveMirror, source: str, destination: str, rights: Any = None, **more: Any) -> CopyResult:
    """A copy; `more` are further fields of the request."""
    admin: CopyAdmin = mirror.app.admin.copies
    order = admin.read({"source": source, "destination": destination, **more}, "cli:test")
    return await admin._copies.copy(order, rights or AllRights(), ProgressMeter())


def only(result: CopyResult) -> Mapping[str, Any]:
    """The one image of a copy."""
    [image] = result.images
    return image
