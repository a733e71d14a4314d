"""The admin API's operation on copies: who may copy what, and where to.

A caller who logs in must be allowed to pull from the source and to push to the destination, and to overwrite if a tag
moves; no right to administer is needed. The rules are judged again at each manifest. Whoever reaches the admin API by
its socket, or by loopback without rules about administrators, may do everything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Protocol

from mirror.errors import AlreadyRunning
from mirror.oci.reference import Repo
from mirror.policy.access_rules import Action, Identity
from mirror.policy.image_names import Image
from mirror.policy.routing import RoutingTable
from mirror.prefetch.progress import ProgressMeter
from mirror.replication.copy_order import CopyOrder, read_order
from mirror.replication.copy_run import AllRights, CopiedJson, Copies, Rights
from mirror.server.registry.access_control import AccessControl

#: Copies that one worker does at once for requests, and those of one caller among them: a caller may ask for copies
#: that take hours, and others must still get theirs.
_AT_ONCE: Final = 4
_OF_ONE_CALLER: Final = 2


class SourceNames(Protocol):
    """Reads the image that is copied."""

    def __call__(self, text: str, is_visible: Callable[[Repo], bool]) -> Image:
        """The image, that of a member for one of a virtual registry. Raises `RequestError`, also if a virtual name
        means a repository that is not visible to the caller, in the same way as if it means none.
        """


@dataclass(frozen=True, slots=True)
class CallersRights:
    """The rights of a caller who has logged in."""

    access: AccessControl
    identity: Identity
    may_see_network: ClassVar[bool] = False

    def may(self, action: Action, repo: Repo) -> bool:
        """See `Rights`. False for pulls of a registry whose upstream is asked about each caller."""
        return self.access.may(self.identity, action, repo)


class CopyAdmin:
    """Reads, judges and does copies that are asked for."""

    def __init__(self, copies: Copies, table: RoutingTable, parse: SourceNames, access: AccessControl | None) -> None:
        """`access` judges callers; None: there are no rules about them."""
        self._copies = copies
        self._table = table
        self._parse = parse
        self._access = access
        #: How many copies run, by caller.
        self._running: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<CopyAdmin running={self._running.total()}>"

    def read(self, body: object, caller: str, identity: Identity | None = None) -> CopyOrder:
        """The order in a request's body. `identity` is None for a caller who may do everything. Raises `BodyInvalid`,
        `StoreError`.
        """
        rights = self._rights(identity)

        def parse(text: str) -> Image:
            return self._parse(text, lambda repo: rights.may(Action.PULL, repo))

        return read_order(body, self._table, parse, caller)

    def _rights(self, identity: Identity | None) -> Rights:
        if identity is not None and self._access is not None:
            return CallersRights(self._access, identity)
        return AllRights()

    async def copy(
        self, order: CopyOrder, identity: Identity | None = None, meter: ProgressMeter | None = None
    ) -> CopiedJson:
        """Does a copy. `identity` is None for a caller who may do everything. Raises like `Copies.copy`, and
        `AlreadyRunning` if too many copies are running, of all callers or of this one.
        """
        rights = self._rights(identity)
        if self._running.total() >= _AT_ONCE:
            raise AlreadyRunning(f"{_AT_ONCE} copies are running already; try again when one has ended")
        if identity is not None and self._running[order.caller] >= _OF_ONE_CALLER:
            raise AlreadyRunning(f"{_OF_ONE_CALLER} of your copies are running already; try again when one has ended")
        self._running[order.caller] += 1
        try:
            result = await self._copies.copy(order, rights, meter or ProgressMeter())
        finally:
            self._running[order.caller] -= 1
            # callers that have no copies take no memory
            self._running += Counter()
        return result.to_json()


def audited_fields(order: CopyOrder, copied: CopiedJson | None = None) -> Mapping[str, Any]:
    """The fields of a copy in the audit log."""
    fields = {"repository": str(order.destination), "reference": order.tag, "source": order.source_name}
    if copied is None:
        return fields
    counts = {"copied": copied["copied"], "moved": copied["moved"], "failures": copied["failed"] or None}
    failed = next((image["reason"] for image in copied["images"] if image["state"] == "failed"), None)
    return counts | {"bytes": copied["bytes"], "reason": failed}
