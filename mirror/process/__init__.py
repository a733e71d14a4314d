"""The processes that serve: a parent, its workers, their listeners, and systemd."""
