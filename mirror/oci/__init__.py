"""The terms of the OCI specifications as pure values: no I/O, no event loop, no HTTP library."""
