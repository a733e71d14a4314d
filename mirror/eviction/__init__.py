"""What goes and what stays: eviction, pins, purges, quarantine, the comparison of index and disk, the scrub."""
