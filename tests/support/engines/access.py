"""What a mirror needs to know of a bucket of an engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class BucketAccess:
    """`url` is what `[store] bucket` says, without a prefix; `settings` is the table `[bucket]`."""

    url: str
    settings: Mapping[str, Any]

    def below(self, prefix: str) -> BucketAccess:
        """The same bucket below a prefix: each test takes one of its own."""
        return replace(self, url=f"{self.url}/{prefix}")

    def changed(self, **settings: Any) -> BucketAccess:
        """With other settings, such as the endpoint of a proxy; None: without that one."""
        changed = {**self.settings, **settings}
        return replace(self, settings={name: value for name, value in changed.items() if value is not None})

    def table(self) -> str:
        """The table `[bucket]` of a configuration file."""
        return "\n".join(["[bucket]", *(f"{name} = {json.dumps(value)}" for name, value in self.settings.items()), ""])
