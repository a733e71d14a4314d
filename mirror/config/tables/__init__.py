"""The tables of the configuration file that have many settings; `settings.py` puts all tables together."""
