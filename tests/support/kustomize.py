"""Folders of Kubernetes objects, rendered as `kubectl apply -k` renders them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.process import run

Object = dict[str, Any]


def render(folder: Path) -> list[Object]:
    """Every object, by `kubectl kustomize`; no cluster is asked. Raises `CommandFailed`."""
    # the test extra brings this kubectl, beside the interpreter
    rendered = run([Path(sys.executable).with_name("kubectl"), "kustomize", folder])
    return [document for document in yaml.safe_load_all(rendered) if document is not None]


def only(objects: list[Object], kind: str, name: str) -> Object:
    """The one object of this kind and name; if there is none, the one whose name begins so."""
    names = {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}
    if name not in names:
        [name] = [other for other in names if other.startswith(name)]
    return names[name]
