"""How callers say who they are: adapters of `Authenticator`."""
