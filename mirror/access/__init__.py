"""Authentication of callers: adapters of `Authenticator`."""
