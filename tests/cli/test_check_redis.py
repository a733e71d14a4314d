"""`mirror check --online` with a Redis."""

from __future__ import annotations

from pathlib import Path

from tests.support.command import mirror
from tests.support.redis_server import RedisServer


def test_redis_is_tried(tmp_path: Path) -> None:
    """A sealed mirror asks no registry, but its Redis: step by step; a failure is one of the command."""
    with RedisServer("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru") as redis:
        config = tmp_path / "mirror.toml"
        # a busy machine makes a good Redis slow
        config.write_text(
            f'offline = true\n[store]\nroot = "{tmp_path}/store"\n[index]\nurl = "{redis.url}"\ntimeout = "60s"\n'
        )
        said = mirror("check", "--online", "--config", config)
        assert said.status == 0
        assert "ok     redis: answer: version" in said.out
        assert "ok     redis: rights: the user may send all that is needed" in said.out
        assert "set maxmemory-policy noeviction" in said.out
        found = mirror("check", "--online", "--json", "--config", config)
        assert [(each["step"], each["ok"]) for each in found.json["redis"]] == [
            ("answer", True),
            ("rights", True),
            ("memory", True),
        ]
        redis.kill()
        said = mirror("check", "--online", "--config", config)
        assert said.status == 1
        assert "FAILED redis: answer:" in said.out
        assert mirror("check", "--config", config).status == 0
