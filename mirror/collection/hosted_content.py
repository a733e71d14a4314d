"""What collection works on."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.ports import Blobs, Catalog, HostedBlobs, HostedRecords, LinkLedger, Uploads


@dataclass(frozen=True, slots=True)
class HostedContent:
    """The bytes, records and upload sessions of all hosted repositories."""

    store: Blobs
    catalog: Catalog
    blobs: HostedBlobs
    records: HostedRecords
    uploads: Uploads
    ledger: LinkLedger
