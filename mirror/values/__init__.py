"""Values that people write: durations, sizes, times, platforms, versions and tag sets."""
