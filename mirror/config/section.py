"""What all tables of the configuration have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of the file: nothing may change it, and it may contain nothing that is unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
