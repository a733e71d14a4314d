"""Decisions about hosted content: what a push must fulfil, and who may use what. Nothing acts here."""
