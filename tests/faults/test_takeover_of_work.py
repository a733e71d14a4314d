"""Row 129 with replicas as users run them: the one that collects for all is killed, or frozen and thawed."""

from __future__ import annotations

import json
import threading
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.faults.conftest import Tally
from tests.support.cluster_site import ClusterSite, Replica
from tests.support.engines.fault_proxy import Meanwhile, StoreCall
from tests.support.engines.seaweedfs import SeaweedFS
from tests.support.images import sha256
from tests.support.live_mirror import noise
from tests.support.process import PATIENCE, eventually
from tests.support.pushers import open_to_pushers

_LEASE = "collect"


class _Strike:
    """What happens to the first replica that looks for content to collect, in the middle of its round."""

    def __init__(self, site: ClusterSite, end: str) -> None:
        self._site = site
        self._end = end
        self._lock = threading.Lock()
        self.struck: Replica | None = None
        for one in site.replicas:
            assert one.bucket is not None
            one.bucket.cause(Meanwhile(partial(self._look, one)), where=_lists_states)

    def _look(self, one: Replica) -> None:
        with self._lock:
            lease = self._site.bucket.object(f"leases/{_LEASE}")
            if self.struck is not None or lease is None or json.loads(lease).get("holder") != one.member:
                return
            if self._end == "killed":
                one.kill()
            else:
                one.freeze()
            self.struck = one


def _lists_states(call: StoreCall) -> bool:
    return call.lists and "/states/" in unquote(call.target)


@pytest.mark.parametrize("end", ["killed", "frozen"])
def test_129_another_replica_collects(seaweedfs: SeaweedFS, tmp_path: Path, end: str, tally: Tally) -> None:
    """Row 129: another replica takes the work over in its middle; when the holder is back, it finds its lease lost, and
    all of them agree on what is there.
    """
    with ClusterSite(tmp_path, seaweedfs, more=open_to_pushers()) as site:
        kept = site.at(0).push("corp/kept", "v1", noise(2000, seed=1))
        deleted = site.at(1).push("corp/app", "v1", noise(2000, seed=2))
        strike = _Strike(site, end)
        holder = eventually(lambda: strike.struck, "one of them collects")
        others = site.others(holder)
        assert others[0].ask("DELETE", f"/v2/corp/app/manifests/{sha256(deleted)}").status == 202
        layer = json.loads(deleted)["layers"][0]["digest"].partition(":")[2]
        eventually(
            lambda: not any(layer in key for key in site.bucket.counted()), "another one collects", timeout=PATIENCE * 3
        )
        taken = [line for one in others for line in one.mirror.log if line["event"] == "lease taken over"]
        assert (_LEASE, holder.member) in [(line["lease"], line["holder"]) for line in taken]
        site.mend()
        if end == "killed":
            holder.start()
        else:
            holder.thaw()
            holder.mirror.wait_for_event("lease lost", lease=_LEASE)
        for one in site.replicas:
            assert one.pull("corp/kept", "v1") == kept
            assert one.manifest("corp/app", "v1").status == 404
        # the one that is back pushes what it has been collecting
        again = holder.push("corp/app", "v2", noise(2000, seed=2))
        assert {one.pull("corp/app", "v2") for one in site.replicas} == {again}
        tally(end=end)
