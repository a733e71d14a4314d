"""Values that people write: durations, sizes, times, platforms, versions, sets of tags."""
