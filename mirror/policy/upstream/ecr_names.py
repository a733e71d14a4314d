"""The AWS region in the host name of a private ECR registry."""

from __future__ import annotations

import re
from typing import Final

#: Host names are <account>.dkr.ecr[-fips].<region>.amazonaws.com[.cn], and with both IPv4 and IPv6
#: <account>.dkr-ecr[-fips].<region>.on.aws (Amazon ECR User Guide, "Registry endpoints").
_ECR: Final = re.compile(
    r"[0-9]{12}\.dkr[.-]ecr(?:-fips)?\.(?P<region>[a-z]{2,4}(?:-[a-z]+)+-[0-9]+)\.(?:[a-z0-9-]+\.)*[a-z0-9-]+"
)


def ecr_region(host: str) -> str | None:
    """The region of a private ECR registry; None if `host` is not the name of one."""
    match = _ECR.fullmatch(host.lower())
    return match["region"] if match else None
