#!/usr/bin/env python3
"""Writes the Helm chart (k8s/chart) from the overlay of a cluster (k8s/cluster), so that both say the same.

    python3 k8s/make_chart.py            after every change of k8s/cluster, or of what it is made of

    k8s/base, hosted, bucket, peers, redis
       └── k8s/cluster ── kubectl kustomize ── objects ── EDITS: what may be set ──> k8s/chart/templates
                                                  └────── VALUES: defaults ────────> values.yaml, values.schema.json
    k8s/clouds/* ── what they change in these objects ─────────────────────────────> values-aws.yaml and others

A default is never written here: it is what the overlay has at the place that the value stands for. Needs kubectl and
PyYAML, which `pip install '.[test]'` brings.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

_K8S: Final = Path(__file__).resolve().parent
_LEAVE: Final = "Made by k8s/make_chart.py from k8s/cluster: change that, not this."
_CLOUDS: Final = ("aws", "gcp", "azure")

#: What kustomize appends to the names of the ConfigMaps that it makes.
_SUFFIX: Final = re.compile(r"-[0-9a-z]{10}$")

Object = dict[str, Any]
#: Keys of mappings and positions in lists; a string beside a list means the item of that `name`.
Place = tuple[str | int, ...]


# ------------------------------------------------------------------------------------------------ what may be set


@dataclass(frozen=True)
class Value:
    """One value of the chart: its dotted name, what a user needs to know about it, and its JSON schema."""

    name: str
    about: str
    schema: dict[str, Any]


_STRING: Final = {"type": "string", "minLength": 1}
_MAY_BE_EMPTY: Final = {"type": "string"}
_STRINGS: Final = {"type": "object", "additionalProperties": {"type": "string"}}
_MAPPING: Final = {"type": "object"}
_LIST: Final = {"type": "array", "items": {"type": "object"}}
_SWITCH: Final = {"type": "boolean"}
_COUNT: Final = {"type": "integer", "minimum": 1}
#: A quantity of bytes as Kubernetes writes it.
_BYTES: Final = {"type": "string", "pattern": r"^[1-9][0-9]*(k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"}
_NAME: Final = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}

VALUES: Final = (
    Value("image", "the name under which you pushed the image; a digest (…@sha256:…) pins it", _STRING),
    Value("imagePullSecrets", "names of Secrets for that registry: [{name: …}]", _LIST),
    Value(
        "config",
        "mirror.toml, the same for all replicas. `helm install --set-file config=mirror.toml`; check it before with\n"
        "`mirror check`. The ports are 5000 and 5001, the store is /var/lib/mirror",
        _STRING,
    ),
    Value(
        "env",
        "further variables, which take precedence over `config`: {MIRROR__STORE__BUCKET: s3://my-images/mirror}",
        _STRINGS,
    ),
    Value(
        "address",
        'where the others reach a replica. Pods with IPv6 addresses: http://[$(POD_IP)]:5001, and "[::]:5001" in\n'
        "`cluster.listen`",
        {"type": "string", "pattern": r"^https?://.*\$\(POD_IP\).*$"},
    ),
    Value("secrets.cluster", "the Secret with the cluster's secret, in `secret`", _NAME),
    Value(
        "secrets.accounts", "the Secret with the accounts, in `htpasswd`, and the key of tokens, in `token.key`", _NAME
    ),
    Value("secrets.redis", "the Secret with the address of Redis, in `url`, and its password, in `redis.conf`", _NAME),
    Value("autoscaling.enabled", "a HorizontalPodAutoscaler decides how many replicas there are", _SWITCH),
    Value("autoscaling.minReplicas", "", _COUNT),
    Value("autoscaling.maxReplicas", "", _COUNT),
    Value("autoscaling.cpu", "the target for the CPU use of a replica, in percent of its request", _COUNT),
    Value("replicas", "the number of replicas without autoscaling", _COUNT),
    Value("resources", "of each replica", _MAPPING),
    Value(
        "storeSize", "the disk of each replica, which is deleted with the pod; `store.capacity` must be less", _BYTES
    ),
    Value(
        "terminationGracePeriodSeconds", "longer than 15 s, `server.drain_timeout` and `cluster.drain` together", _COUNT
    ),
    Value("podDisruptionBudget.maxUnavailable", "how many replicas a drain may end at the same time", _COUNT),
    Value(
        "serviceAccount.annotations",
        "the cloud's identity that may use the bucket: see values-aws.yaml and others",
        _STRINGS,
    ),
    Value("podLabels", "", _STRINGS),
    Value("podAnnotations", "", _STRINGS),
    Value("nodeSelector", "", _STRINGS),
    Value("tolerations", "", _LIST),
    Value("affinity", "", _MAPPING),
    Value("priorityClassName", "", _MAY_BE_EMPTY),
    Value("volumes", "further volumes of the pods, such as Secrets that `config` names", _LIST),
    Value("volumeMounts", "where the pods mount them", _LIST),
    Value("ingress.enabled", "without it, clients reach the service `mirror` at port 5000", _SWITCH),
    Value("ingress.className", "", _MAY_BE_EMPTY),
    Value("ingress.host", "the host in the names of your images", _NAME),
    Value("ingress.tlsSecret", "the Secret with its certificate", _NAME),
    Value(
        "ingress.annotations",
        "for ingress-nginx: bodies of any size, nothing is buffered, time-outs count seconds without a byte. Any\n"
        "other ingress must do the same",
        _STRINGS,
    ),
    Value("networkPolicy.enabled", "", _SWITCH),
    Value("networkPolicy.from", "nodes, pods and probes: put your own ranges here", _LIST),
    Value("networkPolicy.egress", "further rules, for your own Redis or a cloud's metadata service", _LIST),
    Value(
        "redis.mode",
        "deploy: a Redis for this release, which may be lost at any time; external: your own, whose address is in\n"
        "`secrets.redis` (allow it in `networkPolicy.egress`); none",
        {"enum": ["deploy", "external", "none"]},
    ),
    Value("redis.image", "", _STRING),
    Value("redis.resources", "", _MAPPING),
)

#: What is switched on by the overlay, and what it leaves empty.
_SET_HERE: Final[dict[str, Any]] = {
    "autoscaling.enabled": True,
    "ingress.enabled": True,
    "networkPolicy.enabled": True,
    "redis.mode": "deploy",
}


class Text(str):
    """A piece of template, in the place of a value or of an item."""


@dataclass(frozen=True)
class Only:
    """An item of a list, a value of a mapping or an object that is there only if a condition holds."""

    condition: str
    inner: Any


@dataclass(frozen=True)
class More:
    """What a user adds: to a mapping, in the place of a key, to a list, in that of an item. Nothing if the value is
    empty.
    """

    value: str
    key: str = ""


_REDIS: Final = 'ne .Values.redis.mode "none"'
_OWN_REDIS: Final = 'eq .Values.redis.mode "deploy"'
_POLICY: Final = ".Values.networkPolicy.enabled"
_POD: Final[Place] = ("spec", "template", "spec")
_CONTAINER: Final[Place] = (*_POD, "containers", "mirror")


class Chart:
    """The objects of the overlay, in which the edits put pieces of template; and the defaults that were there."""

    def __init__(self, objects: list[Object]) -> None:
        self.objects = {(one["kind"], _plain(one)): one for one in objects if one["kind"] != "Namespace"}
        self.conditions: dict[tuple[str, str], str] = {}
        self.defaults: dict[str, Any] = dict(_SET_HERE)
        for one in self.objects.values():
            # kustomize's suffix goes; a pod has an annotation instead
            one["metadata"]["name"] = _plain(one)
            for volume in one["spec"]["template"]["spec"]["volumes"] if one["kind"] == "Deployment" else ():
                if "configMap" in volume:
                    volume["configMap"]["name"] = _SUFFIX.sub("", volume["configMap"]["name"])
            one["metadata"]["namespace"] = Text("{{ .Release.Namespace }}")

    def put(self, kind: str, name: str, place: Place, value: str) -> None:
        """One value that is a string or a number."""
        quoted = isinstance(default := self._default(kind, name, place, value), str)
        self._set(kind, name, place, Text(f"{{{{ .Values.{value} {'| quote' if quoted else '| int'} }}}}"))
        self._keep(value, default)

    def block(self, kind: str, name: str, place: Place, value: str) -> None:
        """A mapping or a list."""
        self._keep(value, self._default(kind, name, place, value))
        self._set(kind, name, place, Text(f"{{{{- toYaml .Values.{value} | nindent @ }}}}"))

    def more(self, kind: str, name: str, place: Place, value: str, key: str = "", empty: Any = None) -> None:
        """What a user may add at this place: under a key of a mapping, or as items at the end of a list."""
        into = _at(self.objects[kind, name], place)
        if isinstance(into, list):
            into.append(More(value))
        else:
            into[More(value, key)] = None
        self._keep(value, empty)

    def only(self, kind: str, name: str, place: Place, condition: str) -> None:
        """A part that is there only if a condition holds; an empty place is the object."""
        if place:
            self._set(kind, name, place, Only(condition, _at(self.objects[kind, name], place)))
        else:
            self.conditions[kind, name] = condition

    def text(self, kind: str, name: str, place: Place, text: str) -> None:
        """A piece of template that is no value."""
        self._set(kind, name, place, Text(text))

    def _default(self, kind: str, name: str, place: Place, value: str) -> Any:
        return _at(self.objects[kind, name], place)

    def _keep(self, value: str, default: Any) -> None:
        # what stands in several places has the same default in all
        if self.defaults.setdefault(value, default) != default:
            raise ValueError(f"{value} stands for {self.defaults[value]!r}, and elsewhere for {default!r}")

    def _set(self, kind: str, name: str, place: Place, node: Any) -> None:
        into = _at(self.objects[kind, name], place[:-1])
        last = place[-1]
        if isinstance(into, list) and isinstance(last, str):
            last = _position(into, last)
        into[last] = node


def edit(chart: Chart) -> None:
    """Everything that the chart lets its users decide."""
    pods = ("Deployment", "mirror")
    chart.put(*pods, (*_CONTAINER, "image"), "image")
    chart.more(*pods, _POD, "imagePullSecrets", "imagePullSecrets", [])
    chart.more(*pods, _POD, "nodeSelector", "nodeSelector", {})
    chart.more(*pods, _POD, "tolerations", "tolerations", [])
    chart.more(*pods, _POD, "affinity", "affinity", {})
    chart.more(*pods, _POD, "priorityClassName", "priorityClassName", "")
    chart.block(*pods, (*_CONTAINER, "resources"), "resources")
    chart.put(*pods, (*_POD, "terminationGracePeriodSeconds"), "terminationGracePeriodSeconds")
    chart.put(*pods, (*_POD, "volumes", "store", "emptyDir", "sizeLimit"), "storeSize")
    chart.put(*pods, (*_POD, "volumes", "cluster", "secret", "secretName"), "secrets.cluster")
    chart.put(*pods, (*_POD, "volumes", "accounts", "secret", "secretName"), "secrets.accounts")
    chart.put(*pods, (*_POD, "volumes", "redis", "secret", "secretName"), "secrets.redis")
    chart.put(*pods, (*_CONTAINER, "env", "MIRROR__CLUSTER__ADDRESS", "value"), "address")
    chart.only(*pods, (*_CONTAINER, "env", "MIRROR__INDEX__URL_FILE"), _REDIS)
    chart.only(*pods, (*_CONTAINER, "volumeMounts", "redis"), _REDIS)
    chart.only(*pods, (*_POD, "volumes", "redis"), _REDIS)
    environment = _at(chart.objects[pods], (*_CONTAINER, "env"))
    environment.append(
        Text(
            "{{- range $name, $value := .Values.env }}\n- name: {{ $name }}\n  value: {{ $value | quote }}\n{{- end }}"
        )
    )
    chart.defaults["env"] = {}
    chart.more(*pods, (*_CONTAINER, "volumeMounts"), "volumeMounts", empty=[])
    chart.more(*pods, (*_POD, "volumes"), "volumes", empty=[])
    chart.objects[pods]["spec"]["replicas"] = Only(
        "not .Values.autoscaling.enabled", Text("{{ .Values.replicas | int }}")
    )
    labels = ("spec", "template", "metadata")
    chart.more(*pods, (*labels, "labels"), "podLabels", empty={})
    # pods are replaced when their configuration changes, as the name of a generated ConfigMap has it in the overlay
    chart.objects[pods]["spec"]["template"]["metadata"]["annotations"] = {
        "checksum/config": Text("{{ .Values.config | sha256sum }}"),
        More("podAnnotations"): None,
    }
    chart.defaults["podAnnotations"] = {}

    scaler = ("HorizontalPodAutoscaler", "mirror")
    chart.only(*scaler, (), ".Values.autoscaling.enabled")
    chart.put(*scaler, ("spec", "minReplicas"), "autoscaling.minReplicas")
    chart.put(*scaler, ("spec", "maxReplicas"), "autoscaling.maxReplicas")
    chart.put(*scaler, ("spec", "metrics", 0, "resource", "target", "averageUtilization"), "autoscaling.cpu")
    chart.defaults["replicas"] = chart.defaults["autoscaling.minReplicas"]
    chart.put("PodDisruptionBudget", "mirror", ("spec", "maxUnavailable"), "podDisruptionBudget.maxUnavailable")
    chart.more("ServiceAccount", "mirror", ("metadata",), "serviceAccount.annotations", "annotations", {})

    config = ("ConfigMap", "mirror-config")
    chart.defaults["config"] = chart.objects[config]["data"]["mirror.toml"]
    chart.text(*config, ("data", "mirror.toml"), "|\n{{ .Values.config | indent @ }}")

    ingress = ("Ingress", "mirror")
    chart.only(*ingress, (), ".Values.ingress.enabled")
    chart.put(*ingress, ("spec", "ingressClassName"), "ingress.className")
    chart.only(*ingress, ("spec", "ingressClassName"), ".Values.ingress.className")
    chart.put(*ingress, ("spec", "rules", 0, "host"), "ingress.host")
    chart.put(*ingress, ("spec", "tls", 0, "hosts", 0), "ingress.host")
    chart.put(*ingress, ("spec", "tls", 0, "secretName"), "ingress.tlsSecret")
    chart.block(*ingress, ("metadata", "annotations"), "ingress.annotations")

    for kind, name in list(chart.objects):
        if kind == "NetworkPolicy":
            chart.only(kind, name, (), _POLICY)
    policy = ("NetworkPolicy", "mirror")
    chart.block(*policy, ("spec", "ingress", 0, "from"), "networkPolicy.from")
    chart.more(*policy, ("spec", "egress"), "networkPolicy.egress", empty=[])

    redis = ("Deployment", "mirror-redis")
    for one in (redis, ("Service", "mirror-redis"), ("ConfigMap", "mirror-redis-config")):
        chart.only(*one, (), _OWN_REDIS)
    for name in ("mirror-redis", "mirror-to-redis"):
        chart.only("NetworkPolicy", name, (), f"and {_POLICY} ({_OWN_REDIS})")
    chart.put(*redis, (*_POD, "containers", "redis", "image"), "redis.image")
    chart.block(*redis, (*_POD, "containers", "redis", "resources"), "redis.resources")
    chart.put(*redis, (*_POD, "volumes", "secret", "secret", "secretName"), "secrets.redis")
    text = chart.objects["ConfigMap", "mirror-redis-config"]["data"]["redis.conf"]
    chart.objects[redis]["spec"]["template"]["metadata"]["annotations"] = {
        "checksum/config": Text(f"{{{{ {json.dumps(text)} | sha256sum }}}}")
    }


def _plain(one: Object) -> str:
    """The name without the suffix that kustomize gives to what it generates."""
    name: str = one["metadata"]["name"]
    return _SUFFIX.sub("", name) if one["kind"] == "ConfigMap" else name


def _at(node: Any, place: Place) -> Any:
    for step in place:
        node = node[_position(node, step)] if isinstance(node, list) and isinstance(step, str) else node[step]
        if isinstance(node, Only):
            node = node.inner
    return node


def _position(items: list[Any], name: str) -> int:
    [found] = [at for at, item in enumerate(items) if isinstance(item, dict) and item.get("name") == name]
    return found


# ----------------------------------------------------------------------------------------------------- the writing


def template(node: Object) -> str:
    """An object with pieces of template in it, as text."""
    return "\n".join(_lines(node, 0)) + "\n"


def _lines(node: Any, depth: int) -> Iterator[str]:
    """The lines of a mapping or a list, indented by so many blanks."""
    for key, value in node.items() if isinstance(node, dict) else ((None, item) for item in node):
        if isinstance(value, Only):
            yield f"{{{{- if {value.condition} }}}}"
            yield from _part(key, value.inner, depth)
            yield "{{- end }}"
        else:
            yield from _part(key, value, depth)


def _part(key: Any, value: Any, depth: int) -> Iterator[str]:
    """The lines of a key with its value, or of an item of a list, whose key is None."""
    blanks = " " * depth
    if isinstance(key, More) or isinstance(value, More):
        yield from _more(key if isinstance(key, More) else value, depth)
    elif key is not None:
        yield from _entry(f"{blanks}{_scalar(key)}:", value, depth)
    elif isinstance(value, Text) and value.startswith("{{-"):
        # items that a template makes: its own lines are not indented
        yield from (line if line.startswith("{{") else f"{blanks}{line}" for line in value.splitlines())
    elif isinstance(value, (dict, list)) and value:
        first, *rest = _lines(value, depth + 2)
        yield f"{blanks}- {first.lstrip()}"
        yield from rest
    else:
        yield from _entry(f"{blanks}-", value, depth)


def _entry(head: str, value: Any, depth: int) -> Iterator[str]:
    """The lines of a value that begins after `head`. In a piece of template, `@` is the number of blanks within it."""
    if isinstance(value, Text):
        first, *rest = value.replace("@", str(depth + 2)).splitlines()
        yield f"{head} {first}"
        yield from rest
    elif isinstance(value, (dict, list)) and value:
        yield head
        yield from _lines(value, depth + 2)
    elif isinstance(value, str) and "\n" in value:
        yield f"{head} |"
        yield from (f"{' ' * (depth + 2)}{line}".rstrip() for line in value.splitlines())
    else:
        yield f"{head} {_scalar(value)}"


def _more(more: More, depth: int) -> Iterator[str]:
    yield f"{{{{- with .Values.{more.value} }}}}"
    if more.key:
        yield f"{' ' * depth}{more.key}: {{{{- toYaml . | nindent {depth + 2} }}}}"
    else:
        yield f"{{{{- toYaml . | nindent {depth} }}}}"
    yield "{{- end }}"


def _scalar(value: Any) -> str:
    """As YAML has it on one line, and never taken for anything else."""
    return yaml.safe_dump(value, width=10_000, allow_unicode=True).removesuffix("...\n").strip()


def values_file(defaults: dict[str, Any]) -> str:
    """values.yaml: every value with what it is for, and its default."""
    lines = [f"# {_LEAVE} docs/cluster.md says how to begin."]
    group = ""
    for value in VALUES:
        section, _, name = value.name.rpartition(".")
        if section != group and section:
            lines.append(f"{section}:")
        group = section
        blanks = "  " if section else ""
        lines += [f"{blanks}# {line}" for line in value.about.splitlines()]
        default = defaults[value.name]
        lines += (f"{blanks}{line}" if line else "" for line in _entry(f"{name}:", default, 0))
    return "\n".join(lines) + "\n"


def schema_file() -> str:
    """values.schema.json: a value that the chart does not know is a mistake."""
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart of the mirror",
        "type": "object",
        "additionalProperties": False,
        # a chart that this one is a part of
        "properties": {"global": {"type": "object"}},
    }
    for value in VALUES:
        section, _, name = value.name.rpartition(".")
        into = root
        if section:
            empty = {"type": "object", "additionalProperties": False, "properties": {}}
            into = root["properties"].setdefault(section, empty)
        about = {"description": value.about.replace("\n", " ")} if value.about else {}
        into["properties"][name] = {**about, **value.schema}
    return json.dumps(root, indent=2, ensure_ascii=False) + "\n"


_CHART: Final = """\
# {leave}
apiVersion: v2
name: mirror
description: A pull-through caching mirror for container registries that hosts images of its own, in a bucket
type: application
version: {version}
appVersion: {version}
kubeVersion: ">=1.30.0-0"
"""

_NOTES: Final = """\
The mirror waits for these Secrets in {{ .Release.Namespace }}; docs/cluster.md says what is in them:

  {{ .Values.secrets.cluster }}, {{ .Values.secrets.accounts }}
{{- if ne .Values.redis.mode "none" }}, {{ .Values.secrets.redis }}{{ end }}
{{- if .Values.ingress.enabled }}, {{ .Values.ingress.tlsSecret }}{{ end }}

  kubectl -n {{ .Release.Namespace }} rollout status deployment/mirror
  kubectl -n {{ .Release.Namespace }} exec deployment/mirror -- mirror check --online --config /etc/mirror/mirror.toml
"""


def kustomize(folder: Path) -> list[Object]:
    """The objects of an overlay. The kubectl beside the interpreter, or the machine's."""
    beside = Path(sys.executable).with_name("kubectl")
    command = [str(beside) if beside.exists() else "kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own kubectl and folder
    return [one for one in yaml.safe_load_all(done.stdout) if one is not None]


def with_cloud(cloud: str) -> list[Object]:
    """The objects of the overlay with the component of a cloud."""
    with tempfile.TemporaryDirectory() as name:
        # kustomize wants relative paths
        place = os.path.relpath(_K8S, Path(name).resolve())
        lines = ["kind: Kustomization", f"resources: [{place}/cluster]", f"components: [{place}/clouds/{cloud}]"]
        (Path(name) / "kustomization.yaml").write_text("\n".join(lines) + "\n")
        return kustomize(Path(name).resolve())


def cloud_values(cloud: str, plain: list[Object]) -> str:
    """What the component of a cloud changes, as values of the chart."""
    changed = {(one["kind"], one["metadata"]["name"]): one for one in with_cloud(cloud)}
    before = {(one["kind"], one["metadata"]["name"]): one for one in plain}
    read: dict[str, Callable[[dict[tuple[str, str], Object]], Any]] = {
        "serviceAccount.annotations": lambda of: of["ServiceAccount", "mirror"]["metadata"].get("annotations", {}),
        "podLabels": lambda of: of["Deployment", "mirror"]["spec"]["template"]["metadata"]["labels"],
        "networkPolicy.egress": lambda of: of["NetworkPolicy", "mirror"]["spec"]["egress"],
    }
    values: dict[str, Any] = {}
    for name, part in read.items():
        old, new = part(before), part(changed)
        if old == new:
            continue
        more = new[len(old) :] if isinstance(new, list) else {key: new[key] for key in new if key not in old}
        section, _, last = name.rpartition(".")
        (values.setdefault(section, {}) if section else values)[last] = more
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    head = f"# {_LEAVE.replace('cluster', f'clouds/{cloud}')}\n#\n"
    return f"{head}# Copy it, change the identity, and add what else you change: docs/cluster.md\n{text}"


def chart_files() -> dict[str, str]:
    """Every file of the chart, by its path below k8s/chart."""
    objects = kustomize(_K8S / "cluster")
    made = Chart(kustomize(_K8S / "cluster"))
    edit(made)
    if unknown := set(made.defaults) ^ {value.name for value in VALUES}:
        raise ValueError(f"VALUES and the edits differ: {', '.join(sorted(unknown))}")
    [version] = re.findall(r'__version__ = "(.+)"', (_K8S.parent / "mirror/__init__.py").read_text())
    files = {
        "Chart.yaml": _CHART.format(leave=_LEAVE, version=version),
        "values.yaml": values_file(made.defaults),
        "values.schema.json": schema_file(),
        "templates/NOTES.txt": _NOTES,
        **{f"values-{cloud}.yaml": cloud_values(cloud, objects) for cloud in _CLOUDS},
    }
    for (kind, name), one in made.objects.items():
        text = template(one)
        if (kind, name) in made.conditions:
            text = f"{{{{- if {made.conditions[kind, name]} }}}}\n{text}{{{{- end }}}}\n"
        files[f"templates/{name}-{kind.lower()}.yaml"] = f"{{{{- /* {_LEAVE} */ -}}}}\n{text}"
    return files


def write(folder: Path) -> None:
    """Write the chart, and delete templates of objects that are no more."""
    files = chart_files()
    for old in folder.rglob("*"):
        if old.is_file() and str(old.relative_to(folder)) not in files:
            old.unlink()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    write(_K8S / "chart")
