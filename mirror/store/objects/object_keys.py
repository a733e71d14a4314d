"""The keys of hosted blobs in a bucket: their bytes, and the records of their states.

    hosted/<algorithm>/<ab>/<hex>.<attempt>   bytes; <ab> is the first two digits, <attempt> 16 random hex digits
    states/<algorithm>/<ab>/<hex>             JSON: the state, which says which attempt counts
                                              (`policy/hosted/blob_state.py`)
    states/lost/<algorithm>-<hex>             a mark: the state may be `lost`

Other keys below these prefixes are foreign and left alone.
"""

from __future__ import annotations

import secrets
from typing import Final

from mirror.errors import RequestError
from mirror.oci.digest import HEX_LENGTHS, Digest
from mirror.policy.hosted.blob_state import ATTEMPT

HOSTED: Final = "hosted/"
STATES: Final = "states/"
#: The folder of the marks of lost blobs.
LOST: Final = "states/lost"
#: What the records of all states are below, sorted.
STATE_FOLDERS: Final = tuple(f"{STATES}{algorithm}" for algorithm in sorted(HEX_LENGTHS))


def new_attempt() -> str:
    """The random part of a key that nobody has used."""
    return secrets.token_hex(8)


def hosted_key(digest: Digest, attempt: str) -> str:
    """The key of the bytes that an attempt has stored."""
    return f"{HOSTED}{digest.algorithm}/{digest.hex[:2]}/{digest.hex}.{attempt}"


def parse_hosted_key(key: str) -> tuple[Digest, str] | None:
    """The blob and the attempt of a key; None for any other key."""
    folder, _, name = key.rpartition("/")
    encoded, _, attempt = name.partition(".")
    digest = _digest(folder.removeprefix(HOSTED).partition("/")[0], encoded)
    if digest is None or ATTEMPT.fullmatch(attempt) is None or hosted_key(digest, attempt) != key:
        return None
    return digest, attempt


def state_key(digest: Digest) -> str:
    """The key of a blob's state."""
    return f"{STATES}{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


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
