"""The keys of hosted blobs in a bucket: their bytes, and the records of their states.

    hosted/<algorithm>/<ab>/<hex>          the bytes at generation 1; <ab> is the first two digits
    hosted/<algorithm>/<ab>/<hex>.<n>      the bytes at generation n
    states/<algorithm>/<ab>/<hex>          JSON: the state (`policy/hosted/blob_state.py`)
    states/lost/<algorithm>-<hex>          a mark: the state may be `lost`

Other keys below these prefixes are foreign and left alone.
"""

from __future__ import annotations

from typing import Final

from mirror.errors import RequestError
from mirror.oci.digest import HEX_LENGTHS, Digest

HOSTED: Final = "hosted/"
STATES: Final = "states/"
#: The folder of the marks of lost blobs.
LOST: Final = "states/lost"
#: The folders of the records of all states, sorted.
STATE_FOLDERS: Final = tuple(
    f"{STATES}{algorithm}/{prefix:02x}" for algorithm in sorted(HEX_LENGTHS) for prefix in range(256)
)


def hosted_key(digest: Digest, generation: int) -> str:
    """The key of a blob's bytes at a generation, which is 1 or more."""
    key = f"{HOSTED}{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"
    return key if generation == 1 else f"{key}.{generation}"


def parse_hosted_key(key: str) -> tuple[Digest, int] | None:
    """The blob and the generation of a key; None for any other key."""
    folder, _, name = key.rpartition("/")
    encoded, dot, number = name.partition(".")
    generation = int(number) if number.isascii() and number.isdigit() else 0 if dot else 1
    digest = _digest(folder.removeprefix(HOSTED).partition("/")[0], encoded)
    # one spelling for each generation: a deletion must hit the key that was listed
    return (digest, generation) if digest and generation and hosted_key(digest, generation) == key else None


def state_key(digest: Digest) -> str:
    """The key of a blob's state."""
    return f"{STATES}{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def state_folder(digest: Digest) -> str:
    """The folder of a blob's state."""
    return f"{STATES}{digest.algorithm}/{digest.hex[:2]}"


def parse_state_key(key: str) -> Digest | None:
    """The blob whose state has this key; None for any other key."""
    folder, _, name = key.rpartition("/")
    digest = _digest(folder.removeprefix(STATES).partition("/")[0], name)
    return digest if digest and state_key(digest) == key else None


def lost_key(digest: Digest) -> str:
    """The key of the mark of a lost blob."""
    return f"{LOST}/{digest.algorithm}-{digest.hex}"


def parse_lost_name(name: str) -> Digest | None:
    """The blob that a mark in the folder `LOST` names; None for any other name."""
    algorithm, _, encoded = name.partition("-")
    return _digest(algorithm, encoded)


def _digest(algorithm: str, encoded: str) -> Digest | None:
    try:
        return Digest.parse(f"{algorithm}:{encoded}")
    except RequestError:
        return None
