"""k8s/chart and k8s/cluster say the same: the chart is made from the overlay, and renders to it."""

from __future__ import annotations

import copy
import json
import os
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.support import helm
from tests.support.kustomize import Object, only, render
from tests.support.pod_files import mirror_container, mirror_toml, variables
from tests.support.process import CommandFailed

_K8S: Final = Path(__file__).resolve().parents[2] / "k8s"
_CHART: Final = _K8S / "chart"
_MAKER: Final = runpy.run_path(str(_K8S / "make_chart.py"))
_chart_files: Final[Callable[[], dict[str, str]]] = _MAKER["chart_files"]
_with_cloud: Final[Callable[[str], list[Object]]] = _MAKER["with_cloud"]
_CHECKSUM: Final = "checksum/config"
_CLOUDS: Final = ("aws", "gcp", "azure")


def _alike(objects: list[Object]) -> dict[tuple[str, str], Object]:
    """Objects by kind and name, without what only one of the two ways has: the namespace as an object, suffixes of
    generated names, and annotations in their place.
    """
    found = {}
    for one in copy.deepcopy(objects):
        if one["kind"] == "Namespace":
            continue
        if one["kind"] == "ConfigMap":
            one["metadata"]["name"] = re.sub(r"-[0-9a-z]{10}$", "", one["metadata"]["name"])
        if one["kind"] == "Deployment":
            template = one["spec"]["template"]
            annotations = template["metadata"].pop("annotations", {})
            template["metadata"]["annotations"] = {key: annotations[key] for key in annotations if key != _CHECKSUM}
            for volume in template["spec"]["volumes"]:
                if "configMap" in volume:
                    volume["configMap"]["name"] = re.sub(r"-[0-9a-z]{10}$", "", volume["configMap"]["name"])
        found[one["kind"], one["metadata"]["name"]] = one
    assert len(found) >= len([one for one in objects if one["kind"] != "Namespace"])
    return found


def _cloud_values(cloud: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((_CHART / f"values-{cloud}.yaml").read_text())
    return values


def test_the_chart_is_made_from_the_overlay() -> None:
    """Every file is what k8s/make_chart.py writes now, and there is no other one."""
    there = {str(path.relative_to(_CHART)): path.read_text() for path in _CHART.rglob("*") if path.is_file()}
    assert there == _chart_files(), "run: python3 k8s/make_chart.py"


def test_the_chart_renders_to_the_overlay() -> None:
    """With its defaults, field by field."""
    assert _alike(helm.render(_CHART, {})) == _alike(render(_K8S / "cluster"))


@pytest.mark.parametrize("cloud", _CLOUDS)
def test_the_chart_renders_to_the_overlay_in_a_cloud(cloud: str) -> None:
    """With the values of a cloud, as the overlay with that cloud's component; each changes the service account."""
    objects = _with_cloud(cloud)
    assert _alike(helm.render(_CHART, _cloud_values(cloud))) == _alike(objects)
    assert only(objects, "ServiceAccount", "mirror")["metadata"]["annotations"]


def test_helm_finds_nothing_wrong() -> None:
    """As `helm lint` says."""
    assert helm.lint(_CHART) == []


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"imagge": "x"}, "imagge"),
        ({"redis": {"mode": "cluster"}}, "/redis/mode"),
        ({"image": ""}, "/image"),
        ({"autoscaling": {"minReplicas": 0}}, "/autoscaling/minReplicas"),
        ({"storeSize": "55 GB"}, "/storeSize"),
        ({"address": "http://10.0.0.1:5001"}, "/address"),
        ({"networkPolicy": {"cidrs": []}}, "cidrs"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(values: dict[str, Any], named: str) -> None:
    """By the schema; the message names it."""
    with pytest.raises(CommandFailed, match=named):
        helm.render(_CHART, values)


def test_the_chart_may_be_a_part_of_another_one() -> None:
    """Helm then gives it the values that all parts share."""
    assert helm.render(_CHART, {"global": {"anything": 1}})


def test_every_value_is_explained_and_has_a_type() -> None:
    """In the schema as in values.yaml, which have the same names."""

    def names(values: dict[str, Any], schema: dict[str, Any]) -> set[str]:
        found = set()
        for name, inner in schema["properties"].items():
            assert inner.keys() & {"type", "enum"}, name
            if "properties" in inner:
                found |= {f"{name}.{one}" for one in names(values[name], inner)}
            elif name != "global":
                assert name in values
                found.add(name)
        return found

    values = yaml.safe_load((_CHART / "values.yaml").read_text())
    found = names(values, json.loads((_CHART / "values.schema.json").read_text()))
    known = {value.name for value in _MAKER["VALUES"]}
    assert found == known
    assert len(known) > 30


def test_a_release_has_a_namespace_of_its_own() -> None:
    """Every object is there, and nothing in it names another namespace."""
    objects = helm.render(_CHART, {}, namespace="images")
    assert {one["metadata"]["namespace"] for one in objects} == {"images"}
    assert ".mirror.svc" not in json.dumps(objects)


def test_pods_are_replaced_when_the_configuration_changes() -> None:
    """And only then; a value that is added takes precedence over the file."""
    before, same, after = (
        only(helm.render(_CHART, values), "Deployment", "mirror")["spec"]["template"]["metadata"]["annotations"]
        for values in ({}, {"autoscaling": {"maxReplicas": 20}}, {"config": "[server]\nworkers = 4"})
    )
    assert before == same != after


def test_a_configuration_of_ones_own_stays_as_it_is() -> None:
    """Byte for byte, also what looks like a template, and without a last line break."""
    text = "# {{ .Values.image }} \u2192 \"'\n\n[server]\n\tworkers = 2"
    assert mirror_toml(helm.render(_CHART, {"config": text})).rstrip("\n") == text


def test_a_redis_of_ones_own_is_the_same_in_both(tmp_path: Path) -> None:
    """`external` in the chart, `redis-client` in the overlay."""
    _write_kustomization(tmp_path, "redis-client")
    assert _alike(helm.render(_CHART, {"redis": {"mode": "external"}})) == _alike(render(tmp_path.resolve()))


def test_no_redis_is_the_same_in_both(tmp_path: Path) -> None:
    """`none` in the chart, no component in the overlay."""
    _write_kustomization(tmp_path, None)
    assert _alike(helm.render(_CHART, {"redis": {"mode": "none"}})) == _alike(render(tmp_path.resolve()))


def _write_kustomization(folder: Path, instead_of_redis: str | None) -> None:
    """The overlay with another component in the place of `../redis`, or none."""
    text = (_K8S / "cluster/kustomization.yaml").read_text()
    assert "  - ../redis\n" in text
    text = text.replace("  - ../redis\n", f"  - ../{instead_of_redis}\n" if instead_of_redis else "")
    place = os.path.relpath(_K8S, folder.resolve())
    (folder / "kustomization.yaml").write_text(text.replace("- ../", f"- {place}/"))
    for file in (_K8S / "cluster").iterdir():
        if file.name != "kustomization.yaml":
            (folder / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("mode", ["deploy", "external", "none"])
def test_redis_is_deployed_used_or_neither(mode: str) -> None:
    """Without one, pods need no Secret of it; the network lets through what is used."""
    objects = helm.render(_CHART, {"redis": {"mode": mode}})
    deployed = {(one["kind"], one["metadata"]["name"]) for one in objects if "redis" in one["metadata"]["name"]}
    assert deployed == (
        set()
        if mode != "deploy"
        else {
            ("ConfigMap", "mirror-redis-config"),
            ("Deployment", "mirror-redis"),
            ("NetworkPolicy", "mirror-redis"),
            ("NetworkPolicy", "mirror-to-redis"),
            ("Service", "mirror-redis"),
        }
    )
    assert ("MIRROR__INDEX__URL_FILE" in variables(objects)) == (mode != "none")
    assert ("redis" in {mount["name"] for mount in mirror_container(objects)["volumeMounts"]}) == (mode != "none")


def test_the_number_of_replicas_is_decided_by_one() -> None:
    """The autoscaler, or the value; never both."""
    scaled = helm.render(_CHART, {"replicas": 7})
    assert "replicas" not in only(scaled, "Deployment", "mirror")["spec"]
    assert [one for one in scaled if one["kind"] == "HorizontalPodAutoscaler"]
    fixed = helm.render(_CHART, {"replicas": 7, "autoscaling": {"enabled": False}})
    [deployment] = [one for one in fixed if (one["kind"], one["metadata"]["name"]) == ("Deployment", "mirror")]
    assert deployment["spec"]["replicas"] == 7
    assert not [one for one in fixed if one["kind"] == "HorizontalPodAutoscaler"]
