"""The serving processes: the supervisor, its workers, their listeners, and the notices to systemd."""
