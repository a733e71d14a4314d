"""Virtual registries: one name for several registries, whose rights, rules and content stay their own."""
