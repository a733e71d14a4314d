"""Where files live. Everything else under the root is foreign and left alone.

    <root>/
    ├── store.json                       {"layout": 1, "id": "…"}: who wrote this tree; an unknown layout is refused
    ├── blobs/
    │   └── <algorithm>/<ab>/<hex>       committed, read-only, named by digest; <ab> are the first two digits
    ├── ingest/
    │   ├── <registry>-<algorithm>-<hex>        growing, or a partial that waits to be resumed; its filler holds its
    │   │                                       flock; <registry> is a hash of the name whose bytes these are
    │   ├── <registry>-<algorithm>-<hex>.state  what followers in other processes need to know (see `state.py`)
    │   ├── <algorithm>-<hex>, with .state      a partial of an older version: dropped at start-up
    │   └── tmp-<random>                        a small file about to be renamed into its place
    ├── quarantine/
    │   └── <algorithm>-<hex>            a blob whose bytes were found to be wrong, kept for a while (`quarantine.py`)
    ├── locks/                           files for flock only; empty
    ├── misses.json                      what was asked for in vain of a sealed mirror (see `misses.py`)
    ├── lists/<hash>.sqlite              long tag lists that an upstream does not sort (see `index/sorted_tags.py`)
    ├── recent/<worker>.json             what clients were answered last (see `recent.py`)
    ├── scrub/<hash>.json                how far the hashing of everything is
    ├── pins/<hash>.json                 images that must stay (see `notes.py` for folders of this kind)
    ├── freezes/<hash>.json              tags that answer one digest, whatever upstream says
    ├── sync/, jobs/, job-queue/, job-cancels/   likewise: what syncs did last, and what was asked for
    ├── board/<n>.json                  what each running process says of itself (see `board.py`)
    ├── purges/, traffic/                likewise notes: what was purged lately; hits and bytes over the last day
    ├── admin.sock                       the admin API's socket, unless it is elsewhere
    ├── repositories-added               grows by a byte or two with each new repository: a list of them is out of date
    └── repositories/
        └── <registry>/<name…>/
            ├── _tags/<tag>              JSON: digest, media type, size, fetched at
            ├── _history/<tag>           JSON: what it has pointed to, and when; written when it moves, never dropped
            └── _manifests/<algorithm>-<hex>   JSON: media type, size, fetched at

Repository names have several parts and may hold the words `tags` and `manifests`, but no part of a name begins with an
underscore (distribution-spec, "Pulling manifests"), so these folders cannot be mistaken for a part of it.

`blobs` and `ingest` are on one filesystem, because a blob is published by a rename.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.errors import RequestError
from mirror.oci.digest import Digest
from mirror.oci.reference import Repo

__all__ = ["LAYOUT", "Layout", "digest_from", "digest_of_ingest", "state_of"]

#: The version of this drawing. A tree of another version is refused rather than guessed at.
LAYOUT = 1

#: 128 bits: a registry under a wildcard can choose its name, and must not find one that has another's hash.
_REGISTRY_BYTES: Final = 16
_INGEST: Final = re.compile(rf"(?:[0-9a-f]{{{2 * _REGISTRY_BYTES}}}-)?(?P<digest>[a-z0-9]+-[0-9a-f]+)")


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below one root. Digests and names are checked values, so no path leaves the root."""

    root: Path

    @property
    def marker(self) -> Path:
        return self.root / "store.json"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def ingests(self) -> Path:
        return self.root / "ingest"

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    @property
    def repositories(self) -> Path:
        return self.root / "repositories"

    @property
    def repositories_added(self) -> Path:
        return self.root / "repositories-added"

    @property
    def lists(self) -> Path:
        return self.root / "lists"

    @property
    def misses(self) -> Path:
        return self.root / "misses.json"

    def notes(self, kind: str) -> Path:
        return self.root / kind

    def blob(self, digest: Digest) -> str:
        """As text: this is on the path of every hit, and `Path` is slow."""
        return f"{self.root}/blobs/{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"

    def ingest(self, digest: Digest, registry: str) -> Path:
        """The growing bytes that this registry has sent; "" for bytes that came from no registry."""
        # hashed: a name and a digest together may be longer than a file's name may be
        hashed = hashlib.blake2b(registry.encode(), digest_size=_REGISTRY_BYTES).hexdigest()
        return self.ingests / f"{hashed}-{digest.algorithm}-{digest.hex}"

    def repository(self, repo: Repo) -> Path:
        return self.repositories / repo.registry / repo.name

    def tags(self, repo: Repo) -> Path:
        return self.repository(repo) / "_tags"

    def history(self, repo: Repo) -> Path:
        return self.repository(repo) / "_history"

    def manifests(self, repo: Repo) -> Path:
        return self.repository(repo) / "_manifests"


def state_of(ingest: Path) -> Path:
    """The state file beside a growing blob."""
    return ingest.with_name(f"{ingest.name}.state")


def digest_of_ingest(name: str) -> Digest | None:
    """The digest of a file under `ingest/`, also of one that an older version left; None for any other name."""
    found = _INGEST.fullmatch(name)
    return digest_from(found["digest"]) if found else None


def digest_from(name: str) -> Digest | None:
    """The digest of a file called `<algorithm>-<hex>`; None for any other name."""
    try:
        return Digest.parse(name.replace("-", ":", 1))
    except RequestError:
        return None
