"""What is dropped and what stays: eviction, pins, purges, quarantine, reconciliation of index and disk, the scrub."""
