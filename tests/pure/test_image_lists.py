"""Images out of plain lists, Kubernetes manifests and Compose files, nasty ones among them."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.policy.routing import Registry, RoutingTable
from mirror.prefetch.documents import ListMalformed
from mirror.prefetch.lists import (
    Listed,
    Named,
    interpolate,
    read_compose,
    read_env,
    read_kubernetes,
    read_plain,
    resolve_images,
)

_TABLE = RoutingTable.build([Registry("docker.io", library=True), Registry("ghcr.io")], "docker.io")


def _texts(listed: Listed) -> list[str]:
    return [image.text for image in listed.images]


# --------------------------------------------------------------------------------------------------- plain lists


def test_a_plain_list() -> None:
    """One a line; comments, blank lines, blanks and Windows line ends are passed over; each knows its line."""
    text = "# ours\nalpine:3.20\r\n\n  ghcr.io/owner/app:v1   # the app\n\t\n#alpine\ndocker.io/a/b@sha256:x#y\n"
    assert read_plain(text, "images.txt").images == (
        Named("alpine:3.20", "images.txt:2"),
        Named("ghcr.io/owner/app:v1", "images.txt:4"),
        Named("docker.io/a/b@sha256:x#y", "images.txt:7"),
    )


def test_two_images_on_a_line() -> None:
    """It is not guessed what is meant; file and line are said."""
    with pytest.raises(ListMalformed, match=r"^images\.txt:2: more than one image on a line: 'alpine busybox'$"):
        read_plain("alpine\nalpine busybox\n", "images.txt")


def test_what_images_mean() -> None:
    """Each once, with every place; every mistake names the image, and file and line."""
    named = [
        Named("alpine", "a:1"),
        Named("docker.io/library/alpine:latest", "b:2"),
        Named("quay.io/x/y", "b:3"),
        Named("quay.io/x/y", "b:3"),
        Named("ghcr.io/owner/app:", "b:4"),
        Named("UPPER", ""),
    ]
    found, mistakes = resolve_images(named, _TABLE)
    assert {str(image): places for image, places in found.items()} == {
        "docker.io/library/alpine:latest": ["a:1", "b:2"]
    }
    assert mistakes == [
        "b:3: quay.io/x/y: the registry quay.io is not configured in this mirror",
        "b:4: ghcr.io/owner/app:: not a tag: ''",
        "not a repository name: 'library/UPPER'",
    ]


def test_names_without_a_registry() -> None:
    """In manifests and Compose files they are Docker Hub's, elsewhere the mirror's default registry's; where the mirror
    has no Docker Hub its default stands for it.
    """
    registries = [Registry("docker.io", library=True), Registry("ghcr.io")]
    named = [
        Named("app", "", hub=True),
        Named("a/b:1", "", hub=True),
        Named("ghcr.io/a/b", "", hub=True),
        Named("a/b", ""),
    ]

    def means(table: RoutingTable) -> list[str]:
        found, mistakes = resolve_images(named, table)
        return [*map(str, found), *mistakes]

    whole = ["docker.io/library/app:latest", "docker.io/a/b:1", "ghcr.io/a/b:latest"]
    assert means(RoutingTable.build(registries, "docker.io")) == [*whole, "docker.io/a/b:latest"]
    assert means(RoutingTable.build(registries, "ghcr.io")) == whole
    assert means(RoutingTable.build(registries, None)) == [
        *whole,
        "a/b: no registry is named, and there is no default one",
    ]
    assert means(RoutingTable.build(registries[1:], "ghcr.io"))[:2] == ["ghcr.io/app:latest", "ghcr.io/a/b:1"]


# ---------------------------------------------------------------------------------------------------- Kubernetes

_POD_SPEC = {
    "initContainers": [{"name": "i", "image": "init:1"}],
    "containers": [{"name": "c", "image": "main:1"}, {"name": "none"}],
    "ephemeralContainers": [{"name": "e", "image": "debug:1"}],
    "volumes": [{"name": "v", "image": {"reference": "data:1"}}, {"name": "w", "emptyDir": {}}],
}
_TEMPLATE = {"spec": _POD_SPEC}


@pytest.mark.parametrize(
    "document",
    [
        {"apiVersion": "v1", "kind": "Pod", "spec": _POD_SPEC},
        *(
            {"apiVersion": "x", "kind": kind, "spec": {"template": _TEMPLATE}}
            for kind in (
                "Deployment",
                "StatefulSet",
                "DaemonSet",
                "ReplicaSet",
                "ReplicationController",
                "Job",
                "Rollout",
            )
        ),
        {"apiVersion": "batch/v1", "kind": "CronJob", "spec": {"jobTemplate": {"spec": {"template": _TEMPLATE}}}},
        {"apiVersion": "v1", "kind": "PodTemplate", "template": _TEMPLATE},
        {"apiVersion": "v1", "kind": "List", "items": [{"kind": "Pod", "apiVersion": "v1", "spec": _POD_SPEC}]},
        {"apiVersion": "v1", "kind": "PodList", "items": [{"spec": _POD_SPEC}]},
        {"apiVersion": "x/v1", "kind": "TrainingJob", "spec": {"workers": {"Chief": {"template": _TEMPLATE}}}},
        {"apiVersion": "x/v1", "kind": "Composed", "spec": {"parts": [{"a": [[{"podSpec": _POD_SPEC}]]}]}},
    ],
    ids=lambda document: document["kind"],
)
@pytest.mark.parametrize("name", ["all.yaml", "all.json"])
def test_every_kind(document: dict[str, object], name: str) -> None:
    """All containers and image volumes, wherever a kind keeps its pods; the same out of YAML and JSON."""
    assert sorted(_texts(read_kubernetes(json.dumps(document, indent="\t" if "json" in name else None), name))) == [
        "data:1",
        "debug:1",
        "init:1",
        "main:1",
    ]


def test_documents_and_lines() -> None:
    """Several documents in a file, empty ones among them; each image knows its line."""
    text = """\
---
# nothing here
---
apiVersion: v1
kind: Pod
spec:
  containers:
  - name: a
    image: "a:1"
---
apiVersion: v1
kind: ConfigMap
data:
  containers: "no"
---
kind: Pod
spec:
  containers:
  - image: >-
      folded:1
  - {name: b, image: b@sha256:00}
...
"""
    assert read_kubernetes(text, "x.yaml").images == (
        Named("a:1", "x.yaml:9", hub=True),
        Named("folded:1", "x.yaml:19", hub=True),
        Named("b@sha256:00", "x.yaml:21", hub=True),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# only a comment",
        "just text",
        "- a\n- list",
        "containers: [{image: values-of-a-chart}]",
        "kind: Pod\nspec: {containers: {image: x}}",
        "kind: Pod\nspec: {containers: [x, [y], {image: [z]}, {image: }, {image: ~}, {image: ''}, {image: null}]}",
        "kind: Pod\nspec: {containers: null, volumes: [{image: x}, {image: {reference: }}, 3]}",
        "kind: ConfigMap\ndata: {deploy: 'kind: Pod'}",
        "kind: CustomResourceDefinition\nspec: {containers: [{image: an-example}]}",
        "kind: List\nitems: [{kind: CustomResourceDefinition, spec: {containers: [{image: an-example}]}}]",
        "kind: [Pod]\ncontainers: [{image: x}]",
        "? [a, b]\n: c\n? {d: e}\n: f\n",
    ],
)
def test_what_names_no_image(text: str) -> None:
    """Nothing is found, nothing is complained about."""
    assert read_kubernetes(text, "x.yaml") == Listed()


def test_merged_and_aliased_containers() -> None:
    """Anchors, aliases and merge keys mean what YAML says; a shared container is told once."""
    text = """
kind: List
items:
- &pod
  kind: Pod
  spec:
    containers:
    - &base {image: base:1, name: x}
    - {<<: *base, name: y}
    - {<<: [{name: z}, *base], image: other:1}
- *pod
"""
    assert _texts(read_kubernetes(text, "x.yaml")) == ["base:1", "base:1", "other:1"]


def test_tags_make_no_objects() -> None:
    """A tag that would call a function elsewhere is only a text here."""
    text = "kind: Pod\nx: !!python/object/apply:os.abort []\nspec: {containers: [{image: !custom 'a:1'}]}"
    assert _texts(read_kubernetes(text, "x.yaml")) == ["a:1"]


def test_an_alias_bomb_is_read_in_no_time() -> None:
    """A billion containers by aliases of aliases are one; merges of merges likewise."""
    lines = ["kind: List", "a0: &a0 {containers: [{image: boom:1}]}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 20)}]" for n in range(1, 60)]
    lines += ["m0: &m0 {image: merged:1}"]
    lines += [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 20)}]}}" for n in range(1, 60)]
    lines += ["spec: {containers: [*m59]}"]
    assert _texts(read_kubernetes("\n".join(lines), "x.yaml")) == ["boom:1", "merged:1"]


def test_a_value_within_itself() -> None:
    """It is looked at once, with a kind and without."""
    assert _texts(read_kubernetes("&a\nkind: Pod\nself: [*a]\ncontainers: [{image: x}]", "x.yaml")) == ["x"]
    assert read_kubernetes("&a\nself: [*a]\nb: {<<: *a}", "x.yaml") == Listed()
    assert read_compose("services: &s\n  web: &w {<<: [*w, *s]}", "c.yaml", {}) == Listed()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind: Pod\n  bad: indent", r"^x\.yaml:2: not YAML: mapping values are not allowed"),
        ("a: b\nc: *nothing", r"^x\.yaml:2: the alias \*nothing stands for nothing"),
        ("a: &x 1\n---\nc: *x", r"^x\.yaml:3: the alias \*x stands for nothing"),
        ("a: [1, 2", r"^x\.yaml:\d: not YAML"),
        ("a: 1\n\x00", r"^x\.yaml: not YAML"),
        ("a: 1\n\tb: 2", r"^x\.yaml:2: not YAML"),
        ("[" * 5000, r"^x\.yaml:1: more than 100 levels"),
        ("{a: " * 5000, r"^x\.yaml:1: more than 100 levels"),
        ("\n".join(f"{' ' * n}a:" for n in range(200)), r"more than 100 levels"),
        ("[" + "1," * 1_100_000 + "]", r"more than 1000000 values"),
    ],
)
def test_what_is_not_yaml(text: str, says: str) -> None:
    """File, line and reason; no crash, however deep or long."""
    with pytest.raises(ListMalformed, match=says):
        read_kubernetes(text, "x.yaml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1,\n "b": }', r"^x\.json:2: not JSON"),
        ("[" * 100_000, r"^x\.json: too deep"),
        ("", r"^x\.json:1: not JSON"),
    ],
)
def test_what_is_not_json(text: str, says: str) -> None:
    """A file called JSON is read as that."""
    with pytest.raises(ListMalformed, match=says):
        read_kubernetes(text, "x.json")


def test_a_deep_json_is_walked() -> None:
    """As deep as it could be parsed."""
    text = '{"kind": "Pod", "x": ' + "[" * 400 + '{"containers": [{"image": "deep:1"}]}' + "]" * 400 + "}"
    assert _texts(read_kubernetes(text, "x.json")) == ["deep:1"]


def test_what_kubectl_prints_as_json() -> None:
    """JSON is known without a file's name, too, and may have more values than YAML. What only begins so is YAML."""
    pods = [{"spec": {"containers": [{"image": f"app:{n}"}], "x": [0] * 300}} for n in range(4000)]
    text = json.dumps({"kind": "List", "items": pods})
    assert _texts(read_kubernetes(text, "standard input")) == [f"app:{n}" for n in range(4000)]
    assert _texts(read_kubernetes(" {kind: Pod, containers: [{image: x}]}", "standard input")) == ["x"]


def test_a_chart_that_is_not_rendered() -> None:
    """What is no YAML because it is a template, and an image that is one, are warnings that name the file."""
    template = "kind: Pod\n{{- if .Values.x }}\nspec: {}\n{{- end }}\n"
    assert read_kubernetes(template, "t.yaml").images == ()
    [warning] = read_kubernetes(template, "t.yaml").warnings
    assert warning.startswith("t.yaml:3: not YAML")
    assert "helm template" in warning
    quoted = (
        'kind: Pod\nspec:\n  containers: [{image: "{{ .Values.image }}"}, {image: "${REGISTRY}/app"}, {image: fine:1}]'
    )
    listed = read_kubernetes(quoted, "t.yaml")
    assert _texts(listed) == ["fine:1"]
    assert listed.warnings == (
        "t.yaml:3: {{ .Values.image }} is a template: render it first",
        "t.yaml:3: ${REGISTRY}/app is a template: render it first",
    )


def test_a_kustomization_that_replaces_images() -> None:
    """The files beside it name other images than those that will run; that is said."""
    text = "kind: Kustomization\nimages: [{name: nginx, newTag: '2'}]"
    assert read_kubernetes(text, "k.yaml").warnings == (
        "k.yaml: replaces images: render it first, with kubectl kustomize",
    )


@given(st.text(alphabet="ab:-*&<>|{}[],'\"#!%@`? \n\t{}$kindcontainersimage", max_size=200))
def test_no_text_crashes_it(text: str) -> None:
    """Any text is read or refused."""
    for read in (read_plain, read_kubernetes, lambda text, name: read_compose(text, name, {})):
        with suppress(ListMalformed):
            read(text, "x.yaml")


# ------------------------------------------------------------------------------------------------------- Compose


def test_a_compose_file() -> None:
    """Images of services, also by merges; not what is built, nor what is never pulled; image volumes too."""
    text = """\
x-common: &common
  image: common:1
  restart: always
services:
  web: {<<: *common, ports: ["80:80"]}
  db:
    image: db:$TAG
    build: .
  built: {build: .}
  local: {image: local:1, pull_policy: never}
  made: {image: made:1, build: ., pull_policy: build}
  empty:
  data:
    image: data:1
    volumes: ["a:/b", {type: image, source: files:1, target: /c}, {type: volume, source: v}]
"""
    assert read_compose(text, "c.yaml", {"TAG": "7"}).images == (
        Named("common:1", "c.yaml:2", hub=True),
        Named("db:7", "c.yaml:7", hub=True),
        Named("data:1", "c.yaml:14", hub=True),
        Named("files:1", "c.yaml:15", hub=True),
    )


def test_what_a_compose_file_does_not_say_itself() -> None:
    """Other files that it needs are named; a variable without a value is blank, and said."""
    text = "include: [other.yaml]\nservices:\n  a: {extends: {file: base.yaml, service: b}}\n  c: {image: 'c${X}'}\n"
    listed = read_compose(text, "c.yaml", {})
    assert _texts(listed) == ["c"]
    assert listed.warnings == (
        "c.yaml: includes other files: give these, too",
        "c.yaml: a extends base.yaml: give that file, too",
        "c.yaml:4: X is not set, so it is blank",
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kind: Pod", r"^c\.yaml: not a Compose file: it has no services$"),
        ("services: [a]", r"no services"),
        ("- x", r"no services"),
        ("services:\n  a: {image: '${X:?say which}'}", r"^c\.yaml:2: X must be set: say which$"),
        ("services:\n  a: {image: '${X'}", r"^c\.yaml:2: a \$\{ that is not closed"),
        ("services:\n  a: {image: '$1'}", r"^c\.yaml:2: a single \$"),
    ],
)
def test_what_is_no_compose_file(text: str, says: str) -> None:
    """File, line where there is one, and reason."""
    with pytest.raises(ListMalformed, match=says):
        read_compose(text, "c.yaml", {})


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("plain", "plain"),
        ("$SET", "s"),
        ("a-${SET}-b", "a-s-b"),
        ("$SET:1", "s:1"),
        ("$$SET $$", "$SET $"),
        ("${UNSET}", ""),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${UNSET:-d}", "d"),
        ("${UNSET-d}", "d"),
        ("${SET:-d}", "s"),
        ("${SET:+r}", "r"),
        ("${EMPTY:+r}", ""),
        ("${EMPTY+r}", "r"),
        ("${UNSET+r}", ""),
        ("${SET:?no}", "s"),
        ("${EMPTY?no}", ""),
        ("${UNSET:-${EMPTY:-${SET}}}", "s"),
        ("${UNSET:-ghcr.io/a:1}x", "ghcr.io/a:1x"),
        ("${UNSET:-a$$b}", "a$b"),
        ("${UNSET:-}", ""),
    ],
)
def test_variables(text: str, means: str) -> None:
    """As Compose puts them in."""
    assert interpolate(text, {"SET": "s", "EMPTY": ""}) == means


@pytest.mark.parametrize("text", ["${", "${}", "${1}", "${A!}", "$", "$-", "${UNSET:?no}", "${A:-" * 11 + "}" * 11])
def test_variables_that_are_none(text: str) -> None:
    """Refused, not guessed."""
    with pytest.raises(ValueError, match=r"\w"):
        interpolate(text, {})


def test_variables_out_of_a_file() -> None:
    """Quotes, comments and `export` are understood; the environment goes before; what sets nothing is passed over."""
    text = """
# comment
A=1
export B = two words   # comment
C='lit$A # x' # comment
D="dou\\"ble $A" # comment
E=${A}-${OUTER}
F
1G=x
H=${
OUTER=inner
"""
    assert read_env(text, {"OUTER": "o"}) == {
        "A": "1",
        "B": "two words",
        "C": "lit$A # x",
        "D": 'dou"ble 1',
        "E": "1-o",
        "OUTER": "o",
    }
