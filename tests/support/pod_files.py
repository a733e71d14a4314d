"""The configuration that a pod of an overlay, or of the chart, starts with: its file, its variables and its Secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from mirror.config import Config, load
from tests.support.kustomize import Object, only

#: Where pods have what they get of Secrets.
_ACCOUNTS: Final = "/etc/mirror-accounts/"
_SECRETS: Final = {
    "/run/secrets/redis/url": "redis://:secret@mirror-redis:6379/0\n",
    "/run/secrets/cluster/secret": "a secret of the cluster, of more than 32 bytes\n",
    f"{_ACCOUNTS}htpasswd": "",
    # 32 bytes in URL-safe base64
    f"{_ACCOUNTS}token.key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n",
}
_POD_IP: Final = "10.0.0.1"


def mirror_container(objects: list[Object]) -> dict[str, Any]:
    """The container of the mirror, whatever kind of object its pods are made by."""
    [one] = [
        one for one in objects if one["kind"] in ("StatefulSet", "Deployment") and one["metadata"]["name"] == "mirror"
    ]
    [found] = one["spec"]["template"]["spec"]["containers"]
    mirror: dict[str, Any] = found
    return mirror


def variables(objects: list[Object]) -> dict[str, str]:
    """The variables of its environment, those of the pod put in as Kubernetes does."""
    found: dict[str, str] = {}
    for variable in mirror_container(objects).get("env", []):
        if "valueFrom" in variable:
            assert variable["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
            found[variable["name"]] = _POD_IP
        else:
            # one that stands later in the list is not known yet, and stays as it is
            found[variable["name"]] = re.sub(
                r"\$\((\w+)\)", lambda name: found.get(name[1], name[0]), variable["value"]
            )
    return found


def mirror_toml(objects: list[Object]) -> str:
    """The text of the file."""
    text: str = only(objects, "ConfigMap", "mirror-config")["data"]["mirror.toml"]
    return text


def configuration(objects: list[Object], directory: Path) -> Config:
    """Loaded as the pod loads it, but that its secrets are in `directory`. Raises `ConfigError`."""
    text, environment = mirror_toml(objects), variables(objects)
    for path, content in _SECRETS.items():
        ours = directory / path.strip("/").replace("/", "-")
        ours.write_text(content)
        ours.chmod(0o600)
        text = text.replace(path, str(ours))
        environment = {name: value.replace(path, str(ours)) for name, value in environment.items()}
    file = directory / "mirror.toml"
    file.write_text(text)
    with patch.dict(os.environ, environment):
        return load(file)
