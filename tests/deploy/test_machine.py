"""One machine: the Compose file and the systemd unit."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from mirror.config import load
from tests.support.process import run

_ROOT: Final = Path(__file__).resolve().parents[2]
_UNIT: Final = _ROOT / "config/mirror.service"

# -------------------------------------------------------------------------------------------------- Compose


def compose(**environment: str) -> Any:
    """The file as docker-compose understands it, checked against the Compose schema."""
    return yaml.safe_load(run(["docker-compose", "-f", _ROOT / "compose.yaml", "config"], env=environment))


def test_the_compose_file_is_valid() -> None:
    """By Compose's own schema; Redis is started only where its profile is asked for, and the mirror without it."""
    services = compose()["services"]
    assert {name: service.get("profiles", []) for name, service in services.items()} == {
        "mirror": [],
        "redis": ["redis"],
    }
    assert services["mirror"]["environment"] == {"MIRROR__INDEX__URL": ""}
    assert compose(REDIS_URL="redis://redis:6379/0")["services"]["mirror"]["environment"] == {
        "MIRROR__INDEX__URL": "redis://redis:6379/0"
    }


def test_the_services_are_confined() -> None:
    """Read-only, as the image's user, without capabilities or a way to gain any, reachable from this machine alone."""
    services = yaml.safe_load((_ROOT / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert int(service["user"].partition(":")[0]) > 0
        assert service["healthcheck"]["test"][0] == "CMD"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    mirror = services["mirror"]
    assert re.search(rf"^USER {mirror['user']}$", (_ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert mirror["volumes"] == ["store:/var/lib/mirror"]
    assert mirror["tmpfs"][0].startswith("/tmp:")


def test_compose_waits_for_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the image's own settings say, with Redis as without."""
    monkeypatch.setenv("MIRROR__INDEX__URL", "redis://redis:6379/0")
    config = load(_ROOT / "config/container.toml")
    assert config.index.url.get_secret_value() == "redis://redis:6379/0"
    monkeypatch.setenv("MIRROR__INDEX__URL", "")
    assert load(_ROOT / "config/container.toml").index.url.get_secret_value() == ""
    grace = yaml.safe_load((_ROOT / "compose.yaml").read_text())["services"]["mirror"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > config.server.drain_timeout + 10


# -------------------------------------------------------------------------------------------------- systemd


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """As it is, but for the program, which has to exist where it is checked."""
    file = tmp_path / "mirror.service"
    file.write_text(_UNIT.read_text().replace("/opt/mirror/bin/mirror", sys.executable))
    return file


def settings() -> dict[str, str]:
    """The last value of each setting of the unit."""
    return dict(re.findall(r"^(\w+)=(.*)$", _UNIT.read_text(), re.MULTILINE))


def test_systemd_understands_the_unit(unit: Path) -> None:
    """No setting is unknown, none has a value that is ignored."""
    assert _complaints(unit) == ""
    unit.write_text(unit.read_text().replace("NoNewPrivileges=yes", "NoNewPrivileges=perhaps"))
    assert "Failed to parse boolean value, ignoring: perhaps" in _complaints(unit)


def _complaints(unit: Path) -> str:
    """The complaints of `systemd-analyze verify` about this unit; complaints about other units concern the machine."""
    command = 'systemd-analyze verify --man=no "$1" 2>&1 || true'
    lines = run(["sh", "-c", command, "sh", unit]).decode().splitlines()
    return "\n".join(line for line in lines if "mirror.service" in line)


def test_systemd_finds_the_unit_well_confined(unit: Path) -> None:
    """Of ten points of exposure it has less than one and a half; most of that is the network, which it is for."""
    run(["systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", unit])
    loose = run(["sh", "-c", f"systemd-analyze security --offline=true --threshold=2 {unit} >/dev/null; echo $?"])
    assert loose.strip() == b"1"


def test_the_unit_runs_what_the_configuration_is_for(tmp_path: Path) -> None:
    """It is given time to drain, may write where the store is by default, and is not started again for a bad file."""
    unit = settings()
    config = load(_ROOT / "config/mirror.toml")
    assert int(unit["TimeoutStopSec"]) > config.server.drain_timeout + 10
    assert Path("/var/lib", unit["StateDirectory"]) == config.store.root
    page = (_ROOT / "docs/hosted.md").read_text()
    assert f'audit_log = "/var/log/{unit["LogsDirectory"]}/' in page
    assert unit["RestartPreventExitStatus"] == "2"
    assert unit["KillSignal"] == "SIGTERM"
    # its messages to systemd: tests/flows/test_systemd.py
    assert (unit["Type"], unit["NotifyAccess"]) == ("notify", "main")
    assert int(unit["WatchdogSec"]) >= 10
    reloads = re.findall(r"^ExecReload=(.*)$", _UNIT.read_text(), re.MULTILINE)
    assert reloads == [unit["ExecStartPre"], "/bin/kill -HUP $MAINPID"]
    assert unit["ExecStart"].partition(" ")[2] == "serve --config /etc/mirror/mirror.toml"
