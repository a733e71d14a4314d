"""What a request for a copy may contain."""

from __future__ import annotations

import pytest

from mirror.errors import BodyInvalid
from mirror.policy.image_names import Image, parse_image
from mirror.policy.routing import Registry, RoutingTable
from mirror.replication.copy_order import read_order

_TABLE = RoutingTable.build([Registry("corp", hosted=True)], "corp")
_GOOD = {"source": "corp/a:v1", "destination": "corp/b"}


def _parse(text: str) -> Image:
    return parse_image(text, _TABLE)


@pytest.mark.parametrize(
    "more",
    [
        {"source": "corp/" + "a" * 100_000},
        {"destination": "corp/b:" + "a" * 100_000},
        {"platforms": ["x" * 100_000]},
        {"platforms": ["linux/amd64"] * 100_000},
        {"x" * 100_000: 1},
    ],
)
def test_a_mistake_is_named_without_repeating_all_of_it(more: dict[str, object]) -> None:
    """The message goes to the log: whoever asks for a copy must not fill that."""
    assert read_order({**_GOOD, "platforms": ["linux/amd64,linux/arm64"]}, _TABLE, _parse, "ci").tag == "v1"
    with pytest.raises(BodyInvalid) as caught:
        read_order({**_GOOD, **more}, _TABLE, _parse, "ci")
    assert len(str(caught.value)) < 2000
