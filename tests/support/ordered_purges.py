"""The purges that other replicas have ordered, as a test says."""

from __future__ import annotations

from mirror.errors import BucketUnavailable, StoreError
from mirror.oci.reference import Reference, Repo


class FakePurges:
    """`OrderedPurges`. Nothing is ordered before a test changes it."""

    def __init__(self) -> None:
        self.is_known = True
        self.is_heeded = True
        self.withheld: set[tuple[Repo, Reference]] = set()
        self.keeping: set[tuple[str, Repo]] = set()

    def require(self) -> None:
        """See `OrderedPurges`."""
        if not self.is_known:
            raise StoreError("the orders are not known")

    def require_heeded(self) -> None:
        """See `OrderedPurges`."""
        self.require()
        if not self.is_heeded:
            raise BucketUnavailable("not carried out here yet", retry_after=0.0)

    def is_withheld(self, repo: Repo, reference: Reference) -> bool:
        """See `OrderedPurges`."""
        return (repo, reference) in self.withheld

    def may_keep(self, member: str, repo: Repo) -> bool:
        """See `OrderedPurges`."""
        return (member, repo) in self.keeping
