"""What host names tell."""

from __future__ import annotations

import pytest

from mirror.policy.upstream.ecr_names import ecr_region


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("123456789012.dkr.ecr.us-east-1.amazonaws.com", "us-east-1"),
        ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", "eu-central-1"),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("123456789012.dkr-ecr.us-west-2.on.aws", "us-west-2"),
        ("123456789012.DKR.ECR.ap-southeast-2.amazonaws.com", "ap-southeast-2"),
        ("public.ecr.aws", None),
        ("ecr.internal", None),
        ("12345.dkr.ecr.us-east-1.amazonaws.com", None),
        ("evil.example/123456789012.dkr.ecr.us-east-1.amazonaws.com", None),
    ],
)
def test_ecr_region(host: str, region: str | None) -> None:
    """The region stands in the name of a private registry of AWS."""
    assert ecr_region(host) == region
