"""Real object stores that the tests start: `README.md` of the tests says which fixture gives which."""
