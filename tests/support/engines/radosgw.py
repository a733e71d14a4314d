"""Ceph's RADOS gateway over one monitor and one OSD that keeps its data in memory (Debian: ceph-mon ceph-osd radosgw).

    ceph-mon ── ceph-osd (made known to the monitor, then started) ── users ── radosgw

A cluster of the tests' own: its configuration, keys, sockets and logs lie in the folder given, and no manager runs. Put
no more than 200 MB there.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.engines.ports import with_free_ports
from tests.support.engines.s3_engine import BUCKET, OWNER, READER, S3Engine
from tests.support.process import ProgramProcess, eventually, run

_CONFIGURATION: Final = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon}]
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
keyring = {folder}/keyring
run_dir = {folder}/run
admin_socket = {folder}/run/$name.asok
pid_file = {folder}/run/$name.pid
log_file = {folder}/log/$name.log
public_network = 127.0.0.0/8
ms_bind_msgr1 = false
ms_bind_ipv6 = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_warn_on_pool_no_redundancy = false
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
auth_allow_insecure_global_id_reclaim = false
mon_data_avail_crit = 1
mon_data_avail_warn = 2
[mon]
mon_data = {folder}/mon
mon_initial_members = a
mon_cluster_log_file = {folder}/log/cluster.log
paxos_propose_interval = 0.05
mon_osd_min_in_ratio = 0
debug_mon = 0
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
osd_uuid = {osd}
memstore_device_bytes = 1073741824
memstore_page_set = true
osd_class_load_list = *
osd_class_default_list = *
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 1
osd_scrub_begin_hour = 3
osd_scrub_end_hour = 4
osd_max_object_name_len = 460
osd_max_object_namespace_len = 64
[client.rgw]
rgw_data = {folder}/rgw
# "secure", which the gateway asks of the monitor by itself, wants the keys that this cluster has not
ms_mon_client_mode = crc
# without tcp_nodelay each small answer takes 44 ms
rgw_frontends = beast endpoint=127.0.0.1:{s3} tcp_nodelay=1
rgw_run_sync_thread = false
rgw_enable_usage_log = false
rgw_enable_lc_threads = false
rgw_enable_quota_threads = false
rgw_thread_pool_size = 64
rgw_dns_name =
rgw_rados_pool_pg_num_min = 1
rgw_relaxed_s3_bucket_names = true
"""


class RadosGateway(S3Engine):
    """Keeps everything in memory, and its configuration below `folder`."""

    name = "radosgw"

    def __init__(self, folder: Path) -> None:
        self._parent = folder
        self._running: list[ProgramProcess] = []

    def _start(self, ports: list[int]) -> None:
        s3, mon = ports
        self.endpoint = f"http://127.0.0.1:{s3}"
        # a new cluster for each try
        folder = self._parent / str(s3)
        for name in ("mon", "osd", "rgw", "run", "log"):
            (folder / name).mkdir(parents=True)
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        (folder / "keyring").touch()
        (folder / "ceph.conf").write_text(_CONFIGURATION.format(fsid=fsid, osd=osd, mon=mon, s3=s3, folder=folder))
        self._environment = {"CEPH_CONF": str(folder / "ceph.conf")}
        try:
            self._start_all(folder, fsid, osd, mon)
        except BaseException:
            self._end()
            raise

    def _start_all(self, folder: Path, fsid: str, osd: str, mon: int) -> None:
        monmap = folder / "monmap"
        address = f"[v2:127.0.0.1:{mon}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, "--set-min-mon-release=16", monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._begin("ceph-mon", "-f", "-i", "a")
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        storage = self._begin("ceph-osd", "-f", "-i", "0")
        eventually(
            lambda: not storage.running or _status(folder / "run" / "osd.0.asok").get("state") == "active",
            "the OSD is active",
        )
        for keys in (OWNER, READER):
            user = ("--uid", keys.access, "--display-name", keys.access)
            self._run(
                *("radosgw-admin", "-n", "client.rgw", "user", "create"),
                *(*user, "--access-key", keys.access, "--secret", keys.secret),
            )
        self.make_bucket(self._begin("radosgw", "-f", "-n", "client.rgw"))
        statement = {
            "Effect": "Allow",
            "Principal": {"AWS": [f"arn:aws:iam:::user/{READER.access}"]},
            "Action": ["s3:GetObject", "s3:ListBucket"],
            "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"],
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]}).encode()
        answer = self.call("PUT", f"/{BUCKET}?policy=", policy)
        assert answer.status in (200, 204), answer

    def _run(self, *argv: str | Path) -> None:
        run(argv, env=self._environment)

    def _begin(self, *argv: str) -> ProgramProcess:
        process = ProgramProcess(argv, env=self._environment)
        self._running.append(process)
        return process

    def _end(self) -> None:
        """Nothing has to be written: the data lie in memory."""
        while self._running:
            self._running.pop().kill()

    def __enter__(self) -> Self:
        with_free_ports(2, self._start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def _status(admin_socket: Path) -> dict[str, Any]:
    """What a daemon says of itself at its admin socket: a command ended by a zero byte, an answer after its length.
    Empty: it cannot say yet. The `ceph` command says the same, and takes half a second to start.
    """
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(admin_socket))
        connection.sendall(b'{"prefix":"status"}\0')
        with connection.makefile("rb") as answer:
            length = answer.read(4)
            if len(length) == 4:
                status: dict[str, Any] = json.loads(answer.read(struct.unpack(">I", length)[0]))
                return status
    return {}
