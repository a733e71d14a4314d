"""Decisions about hosted content: what a push must fulfil, who may use what, what goes. Nothing acts here."""
