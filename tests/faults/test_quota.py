"""A disk whose filesystem says that there is room, and whose quota says that there is none (EDQUOT)."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from tests.support.btrfs import quota, refusal, set_quota
from tests.support.fake_registry import FakeRegistry
from tests.support.live_mirror import noise
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import eventually
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.skipif(refusal() is not None, reason=f"no quota here: {refusal()}")

_MIB = 1 << 20
_LAYER = noise(40 * _MIB, seed=34)
_AT = f"/v2/library/app/blobs/{Digest.of(_LAYER)}"


def test_34_pulls_at_a_quota(registry: FakeRegistry, tmp_path: Path) -> None:
    """Row 34: no client notices, and the log says why the blob is not stored. Once there is room, the same worker
    stores it. The index is in Redis: btrfs ends whoever writes at the quota to a file that is mapped.
    """
    registry.add_image("library/app", "v1", [_LAYER])
    with quota(tmp_path, 24 * _MIB) as folder, RedisServer() as redis:
        config = write_config(folder, {"docker.io": registry.url}, workers=1, index=redis.url)
        with MirrorProcess(config, env={"TMPDIR": str(tmp_path)}) as mirror:
            [worker] = mirror.worker_pids()
            assert mirror.get("/v2/library/app/manifests/v1")[0] == 200
            for _ in range(2):
                assert mirror.get(_AT)[2] == _LAYER
            assert "Disk quota exceeded" in mirror.wait_for_event("store failed")["reason"]
            set_quota(folder, 400 * _MIB)

            def is_stored() -> bool:
                assert mirror.get(_AT)[2] == _LAYER
                return any((folder / "store" / "blobs").glob(f"*/*/{Digest.of(_LAYER).hex}"))

            eventually(is_stored, "it is stored")
            assert mirror.worker_pids() == [worker]
