"""k8s/: Kubernetes accepts every object, and each object does what the documentation promises."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import kubernetes_validate
import promql_parser
import pytest
import redis
from prometheus_client.metrics import MetricWrapperBase
from redis.exceptions import AuthenticationError

from mirror import telemetry
from mirror.config import hints
from mirror.errors import MirrorError
from mirror.values.sizes import parse_capacity, parse_size
from tests.support import helm
from tests.support.kustomize import Object, only, render
from tests.support.nginx import in_http, nginx
from tests.support.pod_files import configuration, mirror_container
from tests.support.process import PATIENCE, ProgramProcess

_ROOT: Final = Path(__file__).resolve().parents[2]
_FOLDERS: Final = (
    "base",
    "single",
    "hosted",
    "hosted-app",
    "bucket",
    "cluster",
    "replicas",
    "replicas-front",
    "monitoring",
    "nodes",
    "nodes-undo",
)
#: The chart with its defaults, with as little as possible, and with everything that can be added.
_CHARTS: Final[dict[str, dict[str, Any]]] = {
    "chart": {},
    "chart, the least": {
        "autoscaling": {"enabled": False},
        "replicas": 5,
        "ingress": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "redis": {"mode": "none"},
    },
    "chart, the most": {
        "image": f"registry.example.com/mirror@sha256:{'0' * 64}",
        "imagePullSecrets": [{"name": "mirror-image"}],
        "env": {"MIRROR__STORE__BUCKET": "s3://others/mirror", "MIRROR__SERVER__WORKERS": "4"},
        "autoscaling": {"minReplicas": 4, "maxReplicas": 1000000, "cpu": 60},
        "resources": {"limits": {"memory": "4Gi"}, "requests": {"cpu": "2", "memory": "1Gi"}},
        "serviceAccount": {"annotations": {"example.com/account": "true"}},
        "podLabels": {"example.com/pod": "true"},
        "podAnnotations": {"example.com/pod": "1"},
        "nodeSelector": {"example.com/disk": "fast"},
        "tolerations": [{"key": "example.com/disk", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
        "priorityClassName": "platform",
        "volumes": [{"name": "hub", "emptyDir": {}}],
        "volumeMounts": [{"name": "hub", "mountPath": "/etc/mirror-hub"}],
        "ingress": {"className": "", "host": "images.example.com", "annotations": {"example.com/ingress": "yes"}},
        "networkPolicy": {
            "from": [{"ipBlock": {"cidr": "10.1.0.0/16"}}],
            "egress": [{"to": [{"ipBlock": {"cidr": "10.2.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 26379}]}],
        },
        "redis": {"mode": "external"},
    },
}
_NGINX_INGRESS: Final = "nginx.ingress.kubernetes.io"
#: Kinds that Kubernetes itself does not know; their shape is looked at here.
_OPERATOR: Final = {"ServiceMonitor", "PrometheusRule"}


def rendered(name: str) -> list[Object]:
    """The objects that a folder renders to, or the chart with some values."""
    if name in _CHARTS:
        return helm.render(_ROOT / "k8s/chart", _CHARTS[name])
    return render(_ROOT / "k8s" / name)


@pytest.fixture(scope="module", params=[*_FOLDERS, *_CHARTS])
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """Of each folder, and of the chart with some values."""
    return rendered(request.param)


@pytest.fixture(scope="module")
def single() -> list[Object]:
    """One node."""
    return render(_ROOT / "k8s/single")


@pytest.fixture(scope="module")
def hosted() -> list[Object]:
    """One node that hosts."""
    return render(_ROOT / "k8s/hosted")


@pytest.fixture(scope="module")
def replicas() -> list[Object]:
    """Several."""
    return render(_ROOT / "k8s/replicas")


@pytest.fixture(scope="module")
def monitoring() -> list[Object]:
    """For the Prometheus operator."""
    return render(_ROOT / "k8s/monitoring")


def pods(objects: list[Object]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names of workloads, with their pods' specifications."""
    for one in objects:
        if one["kind"] in ("StatefulSet", "Deployment", "DaemonSet"):
            yield one["metadata"]["name"], one["spec"]["template"]["spec"]
        elif one["kind"] == "CronJob":
            yield one["metadata"]["name"], one["spec"]["jobTemplate"]["spec"]["template"]["spec"]


# ----------------------------------------------------------------------------------------------- every object


@pytest.mark.parametrize("version", ["1.30", "latest"])
def test_every_object_is_valid(objects: list[Object], version: str) -> None:
    """By Kubernetes' own schemas, strictly: a field that does not exist is a mistake."""
    wanted = kubernetes_validate.latest_version() if version == "latest" else version
    for one in objects:
        if one["kind"] not in _OPERATOR:
            kubernetes_validate.validate(one, wanted, strict=True)
    assert objects


def test_a_wrong_field_is_noticed(single: list[Object]) -> None:
    """The check above is none that cannot fail."""
    one = copy.deepcopy(only(single, "StatefulSet", "mirror"))
    one["spec"]["template"]["spec"]["containers"][0]["redinessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="redinessProbe"):
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


def test_every_reference_leads_somewhere(objects: list[Object]) -> None:
    """ConfigMaps, services and accounts are there, in the same namespace; Secrets are documented ones."""
    there = {(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects}
    page = (_ROOT / "docs/cluster.md").read_text()
    claims = {one["metadata"]["name"] for one in objects if one["kind"] == "PersistentVolumeClaim"}
    claims |= {
        f"{claim['metadata']['name']}-{one['metadata']['name']}-{number}"
        for one in objects
        if one["kind"] == "StatefulSet"
        for claim in one["spec"]["volumeClaimTemplates"]
        for number in range(one["spec"]["replicas"])
    }
    for one in objects:
        namespace = one["metadata"].get("namespace")
        if one["kind"] == "Ingress":
            for rule in one["spec"]["rules"]:
                for path in rule["http"]["paths"]:
                    assert ("Service", namespace, path["backend"]["service"]["name"]) in there
            assert f"secret tls {one['spec']['tls'][0]['secretName']}" in page
        if one["kind"] == "StatefulSet":
            assert ("Service", namespace, one["spec"]["serviceName"]) in there
    for one in objects:
        namespace = one["metadata"].get("namespace")
        for _, spec in pods([one]):
            if "serviceAccountName" in spec:
                assert ("ServiceAccount", namespace, spec["serviceAccountName"]) in there
            for volume in spec["volumes"]:
                if "configMap" in volume:
                    assert ("ConfigMap", namespace, volume["configMap"]["name"]) in there
                if "secret" in volume:
                    assert re.search(f"secret (generic|tls) {volume['secret']['secretName']}", page)
                if "persistentVolumeClaim" in volume:
                    assert volume["persistentVolumeClaim"]["claimName"] in claims
            volumes = [volume["name"] for volume in spec["volumes"]]
            assert len(volumes) == len(set(volumes))
            mounted = {mount["name"] for mount in spec["containers"][0].get("volumeMounts", [])}
            templates = {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
            assert mounted == {volume["name"] for volume in spec["volumes"]} | templates


def test_every_selector_finds_its_pods(objects: list[Object]) -> None:
    """Services, budgets and policies select labels that some pod of the same installation has."""
    found = [*objects, *render(_ROOT / "k8s/single")]
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in found if "template" in one.get("spec", {})]
    for one in objects:
        spec = one.get("spec", {})
        selector = spec.get("podSelector", spec.get("selector"))
        if one["kind"] in _OPERATOR or selector is None:
            continue
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= has.items() for has in labels), one["metadata"]["name"]


def test_every_container_is_confined(objects: list[Object]) -> None:
    """A read-only root, no capability, no way to gain rights, seccomp, bounded memory; root only where the node's own
    folder is written.
    """
    for name, spec in pods(objects):
        assert spec["automountServiceAccountToken"] is False
        assert "hostNetwork" not in spec
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            both = {**spec.get("securityContext", {}), **container["securityContext"]}
            assert both["readOnlyRootFilesystem"] is True
            assert both["allowPrivilegeEscalation"] is False
            assert both["capabilities"] == {"drop": ["ALL"]}
            assert both["seccompProfile"] == {"type": "RuntimeDefault"}
            assert "privileged" not in both
            assert both.get("runAsNonRoot") is True or (name, both["runAsUser"]) == ("mirror-nodes", 0)
            assert container["resources"]["limits"]["memory"]
            assert set(container["resources"]["requests"]) >= {"cpu", "memory"}
            assert container.get("readinessProbe") or spec.get("restartPolicy") == "Never"
        paths = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
        assert paths <= {"/etc/containerd/certs.d"}
        assert not paths or name == "mirror-nodes"


# ------------------------------------------------------------------------------------------------- the mirror


@pytest.mark.parametrize("overlay", ["single", "hosted", "bucket", "replicas", "cluster", *_CHARTS])
def test_the_configuration_is_good_and_fits_the_pod(overlay: str, tmp_path: Path) -> None:
    """`mirror check` accepts it, without a hint; ports, store and the time for draining are those that the pod is made
    for.
    """
    objects = rendered(overlay)
    config = configuration(objects, tmp_path)
    assert hints(config) == []
    pod = mirror_container(objects)
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["volumeMounts"]}
    ports = {port["name"]: port["containerPort"] for port in pod["ports"]}
    assert config.server.listen == [f"0.0.0.0:{ports['http']}"]
    assert str(config.store.root) == mounts["store"]
    assert pod["args"][-1] == f"{mounts['config']}/mirror.toml"
    assert config.index.url.get_secret_value() == ("redis://:secret@mirror-redis:6379/0" if "redis" in mounts else "")
    before = int(pod["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = config.server.drain_timeout + (config.cluster.drain if config.cluster.has_members else 0)
    # beyond the drain the parent waits ten seconds for its workers
    [(_, spec)] = [one for one in pods(objects) if one[0] == "mirror"]
    assert spec["terminationGracePeriodSeconds"] > before + drain + 10
    assert (pod["startupProbe"]["httpGet"]["path"], pod["livenessProbe"]["httpGet"]["path"]) == ("/livez", "/livez")
    assert pod["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_what_is_hosted_is_not_lost(hosted: list[Object], tmp_path: Path) -> None:
    """One replica, whose disk stays when its claim is deleted; the cache leaves room for the quota; each night's backup
    runs as the mirror's user, beside it, into another volume, with its settings.
    """
    spec = only(hosted, "StatefulSet", "mirror")["spec"]
    assert spec["replicas"] == 1
    [claim] = spec["volumeClaimTemplates"]
    [kept] = [one for one in hosted if one["kind"] == "StorageClass"]
    assert claim["spec"]["storageClassName"] == kept["metadata"]["name"]
    assert kept["reclaimPolicy"] == "Retain"
    assert set(spec["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
    config = configuration(hosted, tmp_path)
    volume = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) << 30
    [registry] = config.hosted
    assert registry.quota
    assert parse_capacity(config.store.capacity).of(volume) + parse_size(registry.quota) < 0.9 * volume
    assert hints(config) == []
    job = only(hosted, "CronJob", "mirror-backup")["spec"]
    assert job["concurrencyPolicy"] == "Forbid"
    [(_, mirrors), (_, backups)] = sorted(pods(hosted), key=lambda one: one[0] != "mirror")
    assert backups["securityContext"]["runAsUser"] == mirrors["securityContext"]["runAsUser"]
    [near] = backups["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert near["labelSelector"]["matchLabels"] == spec["selector"]["matchLabels"]
    [container] = backups["containers"]
    assert container["image"] == mirrors["containers"][0]["image"]
    at = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert container["args"] == ["backup", f"{at['backup']}/mirror", "--config", f"{at['config']}/mirror.toml"]
    wanted = {mount["name"]: mount["mountPath"] for mount in mirrors["containers"][0]["volumeMounts"]}
    assert wanted.items() <= at.items()


def test_a_mirror_with_a_bucket_has_no_volume(tmp_path: Path) -> None:
    """One pod at a time, whose disk goes with it; its cache fits into that disk."""
    objects = render(_ROOT / "k8s/bucket")
    assert not {"StatefulSet", "PersistentVolumeClaim", "StorageClass", "CronJob"} & {one["kind"] for one in objects}
    spec = only(objects, "Deployment", "mirror")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    pod = spec["template"]["spec"]
    [disk] = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "store"]
    config = configuration(objects, tmp_path)
    assert config.store.bucket is not None
    assert hints(config) == []
    volume = int(disk["sizeLimit"].removesuffix("Gi")) << 30
    assert parse_capacity(config.store.capacity).of(volume) < 0.9 * volume
    [container] = pod["containers"]
    assert int(container["resources"]["limits"]["ephemeral-storage"].removesuffix("Gi")) << 30 > volume
    # the pod of the other overlays, but for the disk
    [other] = only(render(_ROOT / "k8s/hosted"), "StatefulSet", "mirror")["spec"]["template"]["spec"]["containers"]
    assert {**container, "resources": None, "volumeMounts": None} == {
        **other,
        "resources": None,
        "volumeMounts": None,
    }
    before = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > before + config.server.drain_timeout + 10


def test_replicas_over_a_bucket_find_and_replace_each_other(tmp_path: Path) -> None:
    """By the name of a service that has their ports, also of pods that are not ready; a new pod is ready before an old
    one ends; the autoscaler, and nobody else, decides how many there are.
    """
    objects = render(_ROOT / "k8s/cluster")
    config = configuration(objects, tmp_path)
    spec = only(objects, "Deployment", "mirror")["spec"]
    ports = {port["name"]: port["containerPort"] for port in mirror_container(objects)["ports"]}
    service = only(objects, "Service", "mirror-internal")["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert config.cluster.members == [f"dns+http://mirror-internal:{service['ports'][0]['port']}"]
    assert config.cluster.address == f"http://10.0.0.1:{ports['internal']}"
    assert config.cluster.listen == f"0.0.0.0:{ports[service['ports'][0]['targetPort']]}"
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    scaler = only(objects, "HorizontalPodAutoscaler", "mirror")["spec"]
    assert scaler["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "mirror"}
    assert scaler["maxReplicas"] > scaler["minReplicas"] >= 3
    assert "replicas" not in spec
    pod = spec["template"]["spec"]
    spread = {one["topologyKey"] for one in pod["topologySpreadConstraints"]}
    assert spread == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    [disk] = [volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if volume["name"] == "store"]
    volume = int(disk.removesuffix("Gi")) << 30
    assert parse_capacity(config.store.capacity).of(volume) < 0.9 * volume
    assert only(objects, "PodDisruptionBudget", "mirror")["spec"]["maxUnavailable"] == 1


def test_only_replicas_reach_an_internal_listener() -> None:
    """No policy lets anybody but the mirror's pods reach its port, and no service but the headless one has it."""
    for objects in map(rendered, ("cluster", "replicas", "replicas-front", "chart")):
        allowed = [
            (rule["from"], port["port"])
            for one in objects
            if one["kind"] == "NetworkPolicy" and one["metadata"]["name"].removeprefix("mirror") in ("", "-internal")
            for rule in one["spec"]["ingress"]
            for port in rule["ports"]
        ]
        mirrors = [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "mirror"}}}]
        assert [peers for peers, port in allowed if port == 5001] == [mirrors]
        assert [port for _, port in allowed] == [5000, 5001] or [port for _, port in allowed] == [5001, 5000]
        reached = {
            one["metadata"]["name"]
            for one in objects
            if one["kind"] == "Service"
            for port in one["spec"]["ports"]
            if port["targetPort"] in ("internal", 5001)
        }
        assert reached == {"mirror-internal"}


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
@pytest.mark.parametrize("overlay", ["bucket", "cluster"])
def test_a_cloud_gives_pods_an_identity(overlay: str, cloud: str, tmp_path: Path) -> None:
    """Its component annotates the service account, and opens no more of the metadata service than that cloud needs."""
    place = os.path.relpath(_ROOT / "k8s", tmp_path.resolve())
    lines = ["kind: Kustomization", f"resources: [{place}/{overlay}]", f"components: [{place}/clouds/{cloud}]"]
    (tmp_path / "kustomization.yaml").write_text("\n".join(lines))
    objects = render(tmp_path)
    for one in objects:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
    [(name, _)] = only(objects, "ServiceAccount", "mirror")["metadata"]["annotations"].items()
    assert name.startswith({"aws": "eks.amazonaws.com/", "gcp": "iam.gke.io/", "azure": "azure.workload"}[cloud])
    labels = only(objects, "Deployment", "mirror")["spec"]["template"]["metadata"]["labels"]
    assert (labels.get("azure.workload.identity/use") == "true") == (cloud == "azure")
    metadata = [
        peer["ipBlock"]["cidr"]
        for rule in only(objects, "NetworkPolicy", "mirror")["spec"]["egress"]
        for peer in rule.get("to", [])
        if peer["ipBlock"]["cidr"].startswith("169.254.")
    ]
    assert metadata == (["169.254.169.254/32", "169.254.169.252/32"] if cloud == "gcp" else [])


def test_an_app_is_pulled_with_the_secret_that_the_page_makes(hosted: list[Object]) -> None:
    """From the host of the Ingress, out of a registry that is hosted there."""
    objects = render(_ROOT / "k8s/hosted-app")
    page = (_ROOT / "docs/hosted.md").read_text()
    account = only(objects, "ServiceAccount", "shop")
    [(_, spec)] = pods(objects)
    assert spec["serviceAccountName"] == account["metadata"]["name"]
    [secret] = account["imagePullSecrets"]
    namespace = account["metadata"]["namespace"]
    assert f"kubectl -n {namespace} create secret docker-registry {secret['name']} " in page
    host = only(hosted, "Ingress", "mirror")["spec"]["rules"][0]["host"]
    assert f"--docker-server={host}" in page
    assert spec["containers"][0]["image"].startswith(f"{host}/corp/team-a/")


def test_several_replicas_have_a_disk_each(replicas: list[Object]) -> None:
    """Each has a claim of its own; they are spread over nodes and zones, and go one at a time."""
    spec = only(replicas, "StatefulSet", "mirror")["spec"]
    assert spec["replicas"] > 1
    assert spec["volumeClaimTemplates"][0]["spec"]["accessModes"] == ["ReadWriteOnce"]
    keys = {one["topologyKey"] for one in spec["template"]["spec"]["topologySpreadConstraints"]}
    assert keys == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    budget = only(replicas, "PodDisruptionBudget", "mirror")["spec"]
    assert (budget["maxUnavailable"], budget["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_the_network_policies_let_through_what_is_needed(replicas: list[Object]) -> None:
    """Out: names, 443 but no metadata service, Redis. In: 5000 from private addresses, Redis from the mirror."""
    policies = {one["metadata"]["name"]: one["spec"] for one in replicas if one["kind"] == "NetworkPolicy"}
    names, registries = policies["mirror"]["egress"]
    assert {(port["protocol"], port["port"]) for port in names["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert registries["ports"] == [{"protocol": "TCP", "port": 443}]
    assert [peer["ipBlock"] for peer in registries["to"]] == [
        {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]},
        {"cidr": "::/0", "except": ["fe80::/10", "fd00:ec2::/32"]},
    ]
    [rule] = policies["mirror"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [5000]
    assert all("ipBlock" in peer and peer["ipBlock"]["cidr"] != "0.0.0.0/0" for peer in rule["from"])
    [redis] = policies["mirror-redis"]["ingress"]
    assert redis["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "mirror"}}}]
    assert policies["mirror-redis"].get("egress", []) == []


def test_redis_takes_its_configuration(replicas: list[Object]) -> None:
    """A real one starts with it, asks for the Secret's password, keeps nothing and never evicts a key by itself."""
    text = only(replicas, "ConfigMap", "mirror-redis-config")["data"]["redis.conf"]
    # not pytest's directory: the path of a unix socket is short
    with tempfile.TemporaryDirectory(prefix="mt-") as name:
        directory = Path(name)
        (directory / "redis.conf").write_text("requirepass secret\n")
        file = directory / "of-configmap.conf"
        file.write_text(text.replace("/run/secrets/redis/", f"{directory}/"))
        place = directory / "r.sock"
        with ProgramProcess(["redis-server", file, "--port", "0", "--unixsocket", place]) as server:
            server.wait_for(lambda line: "ready to accept connections" in line, "it is ready")
            with redis.Redis(unix_socket_path=str(place)) as stranger, pytest.raises(AuthenticationError):
                stranger.ping()
            with redis.Redis(unix_socket_path=str(place), password="secret", decode_responses=True) as known:
                assert known.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
                assert known.config_get("save") == {"save": ""}


# ------------------------------------------------------------------------------------------------ the ingress

#: As ingress-nginx does it: a location for each path that is a regular expression, without regard to case, the longest
#: first; the key is evaluated when the backend is chosen.
_INGRESS: Final = """
{upstreams}
server {{ listen unix:{directory}/front; {locations} }}
{backends}
"""


def test_a_digest_always_goes_to_the_same_replica(replicas: list[Object]) -> None:
    """Whatever the repository, the kind of resource and the query; tags go by their path; all replicas get some."""
    with nginx(lambda directory: _nginx(replicas, directory)) as directory:
        chosen: Counter[str] = Counter()
        for number in range(30):
            digest = "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()
            answers = {
                _ask(directory, path)
                for path in (
                    f"/v2/library/alpine/blobs/{digest}",
                    f"/v2/a/very/deep/name/blobs/{digest}?ns=ghcr.io",
                    f"/v2/quay.io/org/app/manifests/{digest}",
                )
            }
            assert len(answers) == 1, (digest, answers)
            chosen.update(answers)
        assert {one.partition(" ")[0] for one in chosen} == {"mirror-by-digest"}
        assert len(chosen) == 3
        tags = {f"/v2/library/image-{number}/manifests/latest" for number in range(30)}
        by_path = {path: {_ask(directory, path), _ask(directory, f"{path}?ns=docker.io")} for path in tags}
        assert all(len(answers) == 1 for answers in by_path.values())
        assert {next(iter(answers)).partition(" ")[0] for answers in by_path.values()} == {"mirror"}
        assert len(set().union(*by_path.values())) == 3


def test_the_ingress_shows_what_clients_ask_for_and_no_more(replicas: list[Object]) -> None:
    """The API, logins and health; not what is counted."""
    with nginx(lambda directory: _nginx(replicas, directory)) as directory:
        for path in ("/v2/", "/v2/library/alpine/tags/list?n=1", "/token?service=mirror", "/livez", "/readyz"):
            assert _ask(directory, path).startswith("mirror ")
        for path in ("/metrics", "/", "/admin/v1/status", "/x/v2/"):
            assert _status(directory, path) == "404"


def _nginx(objects: list[Object], directory: Path) -> str:
    paths = [
        (path["path"], path["backend"]["service"]["name"], one["metadata"]["annotations"])
        for one in objects
        if one["kind"] == "Ingress"
        for rule in one["spec"]["rules"]
        for path in rule["http"]["paths"]
    ]
    assert all(said[f"{_NGINX_INGRESS}/use-regex"] == "true" for _, _, said in paths)
    upstreams, backends = [], []
    paths.sort(key=lambda one: -len(one[0]))
    locations = [f'location ~* "^{path}" {{ proxy_pass http://{service}; }}' for path, service, _ in paths]
    keys = {service: said[f"{_NGINX_INGRESS}/upstream-hash-by"] for _, service, said in paths}
    for service, key in keys.items():
        sockets = [f"{directory}/{service}-{number}" for number in range(3)]
        servers = " ".join(f"server unix:{socket};" for socket in sockets)
        upstreams.append(f"upstream {service} {{ hash {key} consistent; {servers} }}")
        backends += [
            f'server {{ listen unix:{socket}; location / {{ return 200 "{service} {number}"; }} }}'
            for number, socket in enumerate(sockets)
        ]
    text = _INGRESS.format(
        directory=directory, upstreams="\n".join(upstreams), locations=" ".join(locations), backends="\n".join(backends)
    )
    return in_http(directory, text)


def _ask(directory: Path, target: str) -> str:
    """Service and replica that answered."""
    answer = _answer(directory, target)
    assert " 200 " in answer.splitlines()[0], answer
    return answer.rpartition("\r\n")[2]


def _status(directory: Path, target: str) -> str:
    return _answer(directory, target).split(" ")[1]


def _answer(directory: Path, target: str) -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(directory / "front"))
        connection.sendall(f"GET {target} HTTP/1.0\r\nHost: mirror.example.com\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).decode()


# ---------------------------------------------------------------------------------------------- our own nginx

_POD: Final = re.compile(r"server (mirror-\d)\.mirror-pods\.mirror\.svc\.cluster\.local:5000 resolve ")


@pytest.fixture(scope="module")
def front() -> list[Object]:
    """Several, with an nginx instead of an ingress."""
    return render(_ROOT / "k8s/replicas-front")


@pytest.mark.parametrize("lost", [None, "mirror-1"])
def test_the_front_sends_a_digest_to_the_same_replica(front: list[Object], lost: str | None) -> None:
    """As the ingress does, tags by their path; what a replica that is lost was asked for, others answer."""
    with nginx(lambda directory: _front(front, directory, lost)) as directory:
        by_digest = set()
        for number in range(30):
            digest = "sha256:" + hashlib.sha256(str(number).encode()).hexdigest()
            paths = (f"/v2/library/alpine/blobs/{digest}", f"/v2/a/b/c/manifests/{digest}?ns=ghcr.io")
            [replica] = {_ask(directory, path) for path in paths}
            by_digest.add(replica)
        tags = [f"/v2/library/image-{number}/manifests/latest" for number in range(30)]
        by_path = [{_ask(directory, path), _ask(directory, f"{path}?ns=docker.io")} for path in tags]
        assert {len(answers) for answers in by_path} == {1}
        there = {"mirror-0", "mirror-1", "mirror-2"} - {lost}
        assert by_digest == set().union(*by_path) == there
        for path in ("/v2/", "/token?service=mirror", "/livez", "/readyz"):
            assert _ask(directory, path) in there
        for path in ("/metrics", "/", "/admin/v1/status", "/front", "/livez/x"):
            assert _status(directory, path) == "404"


def _front(objects: list[Object], directory: Path, lost: str | None) -> str:
    """The configuration with sockets in the place of addresses; without what this machine's nginx does not know yet
    (`resolve` of a server in the open source, 1.27.3), and without TLS.
    """
    text = only(objects, "ConfigMap", "mirror-front")["data"]["nginx.conf"]
    names = _POD.findall(text)
    assert names == [f"mirror-{n}" for n in range(only(objects, "StatefulSet", "mirror")["spec"]["replicas"])]
    text = _POD.sub(rf"server unix:{directory}/\1 ", text.replace("/tmp/", f"{directory}/"))
    text = re.sub(r"^ *(?:resolver|ssl_certificate|ssl_certificate_key) .*\n", "", text, flags=re.MULTILINE)
    text = text.replace("listen 8443 ssl;", f"listen unix:{directory}/front;")
    text = text.replace("listen 8081;", f"listen unix:{directory}/health;")
    backends = "".join(
        f'server {{ listen unix:{directory}/{name}; location / {{ return 200 "{name}"; }} }}\n'
        for name in names
        if name != lost
    )
    return "user root; daemon off;\n" + text[: text.rstrip().rindex("}")] + backends + "}\n"


def test_the_front_has_no_ingress_and_is_reached_by_what_it_serves(front: list[Object]) -> None:
    """Its service leads to its TLS port, its probes to a page of its own, its policy lets both in."""
    assert not [one for one in front if one["kind"] == "Ingress"]
    text = only(front, "ConfigMap", "mirror-front")["data"]["nginx.conf"]
    [container] = only(front, "Deployment", "mirror-front")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"https": 8443, "health": 8081}
    assert f"listen {ports['https']} ssl;" in text
    assert f"listen {ports['health']};" in text
    assert [port["targetPort"] for port in only(front, "Service", "mirror-front")["spec"]["ports"]] == ["https"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/front", "port": "health"}
    [rule] = only(front, "NetworkPolicy", "mirror-front")["spec"]["ingress"]
    assert {port["port"] for port in rule["ports"]} == set(ports.values())


# --------------------------------------------------------------------------------------------- the monitoring


def alerts(objects: list[Object]) -> list[dict[str, Any]]:
    """Every rule."""
    return [rule for group in only(objects, "PrometheusRule", "mirror")["spec"]["groups"] for rule in group["rules"]]


def selectors(expression: Any) -> list[Any]:
    """Every metric that an expression asks for, with its matchers."""
    found: list[Any] = []

    def look(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        elif isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        return True

    promql_parser.walk(expression, pre_visit=look)
    return found


def metrics() -> dict[str, set[str]]:
    """The labels of each sample of the mirror's metrics, by the sample's name."""
    found: dict[str, set[str]] = {}
    for one in vars(telemetry).values():
        if isinstance(one, MetricWrapperBase):
            for family in one.describe():
                endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
                found |= {f"{family.name}{ending}": set(one._labelnames) for ending in endings}
    return found


def _names_of_errors(root: type[MirrorError]) -> set[str]:
    """The error and all that are one: the values of the label `error`."""
    return {root.__name__}.union(*(_names_of_errors(child) for child in root.__subclasses__()))


def test_every_alert_asks_for_metrics_that_exist(monitoring: list[Object]) -> None:
    """Each expression can be read, and names metrics that are declared and labels that they have."""
    known = metrics()
    for rule in alerts(monitoring):
        asked = selectors(promql_parser.parse(rule["expr"]))
        assert asked, rule["alert"]
        for one in asked:
            if one.name == "up":
                assert [(matcher.name, matcher.value) for matcher in one.matchers.matchers] == [("job", "mirror")]
                continue
            assert one.name in known, (rule["alert"], one.name)
            assert {matcher.name for matcher in one.matchers.matchers} <= known[one.name], rule["alert"]
            errors = {
                name
                for matcher in one.matchers.matchers
                if matcher.name == "error"
                for name in matcher.value.split("|")
            }
            assert errors <= _names_of_errors(MirrorError), rule["alert"]
        by = set(re.findall(r"by \((\w+)\)", rule["expr"]))
        assert by <= {"pod"}.union(*(known.get(one.name, set()) for one in asked)), rule["alert"]


def test_every_alert_says_what_to_do(monitoring: list[Object]) -> None:
    """A name of its own, a severity, a summary and a description; its texts use labels that its expression keeps."""
    rules = alerts(monitoring)
    assert len({rule["alert"] for rule in rules}) == len(rules) > 10
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        labels = set(re.findall(r"by \((\w+)\)", rule["expr"]))
        # without an aggregation, a target's labels stay
        assert used <= (labels or {"pod"}), rule["alert"]


def test_the_service_monitor_finds_each_pod_once(monitoring: list[Object], replicas: list[Object]) -> None:
    """It selects one service, in its own namespace, by a port that is there; the job is called as the alerts say."""
    monitor = only(monitoring, "ServiceMonitor", "mirror")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    wanted = monitor["spec"]["selector"]["matchLabels"]
    services = [
        one
        for one in replicas
        if one["kind"] == "Service"
        and wanted.items() <= one["metadata"]["labels"].items()
        and one["metadata"]["namespace"] == monitor["metadata"]["namespace"]
    ]
    assert [one["metadata"]["name"] for one in services] == ["mirror-pods"]
    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in services[0]["spec"]["ports"]]
    assert endpoint["path"] == "/metrics"
    assert services[0]["metadata"]["labels"][monitor["spec"]["jobLabel"]] == "mirror"
