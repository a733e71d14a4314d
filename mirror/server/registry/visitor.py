"""The caller of one request to a virtual registry, for whom its members are asked one after another."""

from __future__ import annotations

from aiohttp import web

from mirror.errors import MirrorError
from mirror.oci.reference import Repo
from mirror.oci.request import RegistryRequest
from mirror.policy.access_rules import Identity
from mirror.server.registry.access_control import AccessControl
from mirror.server.registry.pull import RequestRecord


class VirtualVisitor:
    """`Admission` by the rules about each member's repository."""

    def __init__(
        self,
        access: AccessControl | None,
        identity: Identity,
        asked: Repo,
        request: web.BaseRequest,
        wanted: RegistryRequest,
        record: RequestRecord,
    ) -> None:
        """Without `access`, everybody may pull everything. The `record` names the member that was admitted last."""
        self._access = access
        self._identity = identity
        self._asked = asked
        self._request = request
        self._wanted = wanted
        self._record = record

    def __repr__(self) -> str:
        return f"<VirtualVisitor {self._identity} of {self._asked}>"

    def admit(self, repo: Repo) -> bool:
        """See `Admission`."""
        access = self._access
        if access is not None and not access.admits_to_member(
            self._identity, repo, self._asked, self._request, self._wanted
        ):
            return False
        self._record.repository = str(repo)
        return True

    def passed_over(self, repo: Repo, error: MirrorError) -> None:
        """See `Admission`. The access log names the members that did not have what was asked."""
        passed = self._record.notes.setdefault("passed", [])
        if isinstance(passed, list):
            passed.append(f"{repo.registry}: {type(error).__name__}")
