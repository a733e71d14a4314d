"""What manifests name, as eviction reads it."""

from __future__ import annotations

import json

from mirror.graph.references import ReferenceReader
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST
from tests.support.memory_store import MemoryCatalog, MemoryStore


def test_manifests_that_name_very_much_take_no_more_memory() -> None:
    """What is remembered is limited by what it takes, not by the number of manifests; all is read again if needed."""
    store = MemoryStore()
    reader = ReferenceReader(store, MemoryCatalog(), memory=100_000)
    digests = []
    for number in range(40):
        layers = [
            {"mediaType": "application/octet-stream", "digest": str(Digest.of(b"%d-%d" % (number, layer))), "size": 1}
            for layer in range(100)
        ]
        content = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": layers}).encode()
        digests.append(Digest.of(content))
        store.put(digests[-1], content)
    for digest in digests * 2:
        found = reader.of(digest)
        assert found is not None
        assert len(found.blobs) == 100
    # not all caches of this name, of which other tests have left some
    stats = reader._read.stats()
    assert stats.bytes is not None
    assert 0 < stats.bytes <= stats.limit == 100_000
    assert stats.entries < 5
