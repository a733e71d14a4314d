"""The fast path in worker processes: changes by another one are seen at once, and everything is counted exactly."""

from __future__ import annotations

import http.client
from functools import partial
from pathlib import Path

from mirror.oci.digest import Digest
from tests.support.mirror_process import MirrorProcess, write_config
from tests.support.process import PATIENCE, eventually
from tests.support.site_client import SiteClient

_HOSTS = """
[[hosted]]
name = "corp"
[[access.rule]]
effect = "allow"
callers = ["*"]
actions = ["pull", "write", "delete"]
repositories = ["corp/**"]
"""
_TAG = "/v2/corp/app/manifests/v1"


class _Client(SiteClient):
    def __init__(self, port: int) -> None:
        self._port = port

    def _next_port(self) -> int:
        return self._port


def test_a_push_through_one_worker_is_seen_by_all(tmp_path: Path) -> None:
    """Each of many connections has just been answered from a table, in whichever worker it is, when the tag moves, or
    goes: its very next request says so. Metrics and access log have each request once, also after the last answer.
    """
    config = write_config(tmp_path, {"docker.io": "http://127.0.0.1:9"}, workers=2, more=_HOSTS)
    with MirrorProcess(config) as mirror:
        mirror.wait_for_workers(2)
        client = _Client(mirror.port)
        lines = [http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=PATIENCE) for _ in range(12)]

        def ask(line: http.client.HTTPConnection) -> tuple[int, bytes]:
            line.request("GET", _TAG)
            answer = line.getresponse()
            return answer.status, answer.read()

        asked = 0
        for number in range(3):
            pushed = client.push("corp/app", "v1", b"layer %d" % number)
            for _ in range(3):
                for line in lines:
                    assert ask(line) == (200, pushed)
                    asked += 1
            eventually(partial(_has_lines, mirror, asked), "a line for each")
            assert _answered(mirror) == asked
        gone = client.ask("DELETE", f"/v2/corp/app/manifests/{Digest.of(pushed)}")
        assert gone.status == 202
        assert {ask(line)[0] for line in lines} == {404}
        for line in lines:
            line.close()
        assert mirror.stop() == 0
        mirror.expect_clean_log()


def _has_lines(mirror: MirrorProcess, count: int) -> bool:
    """Whether the log has so many pulls, each under a number of its own."""
    numbers = [line["id"] for line in mirror.requests(path=_TAG) if line["method"] == "GET"]
    return len(numbers) == len({*numbers}) == count


def _answered(mirror: MirrorProcess) -> float:
    """Manifests that clients got; those that they pushed have other statuses."""
    return sum(
        value
        for name, value in mirror.metrics().items()
        if name.startswith("mirror_requests_total{") and 'kind="manifest"' in name and 'status="200"' in name
    )
