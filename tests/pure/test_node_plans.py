"""What `mirror configure` makes of each client's files: whole texts, merges, refusals, and that twice is once."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace

import pytest
import yaml

from mirror.errors import ConfigError
from mirror.nodes.clients import CLIENTS
from mirror.nodes.findings import Level, judge_client, judge_own_name
from mirror.nodes.plan import ClientLogin, FilePlan, MirrorUrl, NodeRefused, Wanted
from tests.support.node_files import GivenFiles

_MIRROR = MirrorUrl.parse("http://mirror.internal:5000")
_SECURE = MirrorUrl.parse("https://mirror.internal")
_PUBLIC = ("docker.io", "ghcr.io", "*.pkg.dev")
_WANTED = Wanted(_MIRROR, public=_PUBLIC)
_TRUSTING = Wanted(_SECURE, ("ghcr.io",), _PUBLIC, "PEM\n", ClientLogin("node", "s3cret"))

_DOCKER = "/etc/docker/daemon.json"
_CONFIG = "/etc/containerd/config.toml"
_ALL = "/etc/containerd/certs.d/_default/hosts.toml"
_DROP_IN = "/etc/containers/registries.conf.d/50-mirror.conf"
_BUILDKIT = "/etc/buildkit/buildkitd.toml"
_K3S = "/etc/rancher/k3s/registries.yaml"

_TWICE = ("mirrors: {}\nconfigs: {}\nmirrors: {}\n", r"mirrors is there twice \(line 3")
_LEADS = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/etc/containerd/certs.d"\n'


def _plan(client: str, texts: dict[str, str], wanted: Wanted = _WANTED) -> tuple[FilePlan, dict[str, str]]:
    """The plan, and the files after it; a plan made of those changes nothing."""
    plan = CLIENTS[client].plan(GivenFiles(texts), wanted)
    after = {**texts, **{change.path: change.content for change in plan.changes}}
    if not plan.conflicts:
        again = CLIENTS[client].plan(GivenFiles(after), wanted)
        assert {change.path: change.content for change in again.changes}.items() <= after.items()
    return plan, after


def _marker(client: str) -> str:
    return f"# Written by `mirror configure {client}`; `mirror configure {client} --undo` reverts it.\n"


# ------------------------------------------------------------------------------------------------------- the URL


@pytest.mark.parametrize(
    ("text", "shown", "address"),
    [
        ("http://mirror.internal:5000/", "http://mirror.internal:5000", "mirror.internal:5000"),
        ("https://Mirror.Internal", "https://mirror.internal", "mirror.internal"),
        ("http://[::1]:5000", "http://[::1]:5000", "[::1]:5000"),
        ("https://mirror", "https://mirror:443", "mirror:443"),
        ("http://mirror/", "http://mirror:80", "mirror:80"),
        ("http://localhost", "http://localhost", "localhost"),
    ],
)
def test_a_mirror_url(text: str, shown: str, address: str) -> None:
    """It is written in one way, without a slash at its end."""
    url = MirrorUrl.parse(text)
    assert (str(url), url.address) == (shown, address)
    assert url.is_at(text)
    assert url.is_at(address + "/docker.io")


@pytest.mark.parametrize(
    "text",
    [
        "mirror:5000",
        "ftp://mirror",
        "http://",
        "http://m:x",
        "http://mirror/v2/",
        "http://mirror?a=b",
        'http://a"b:1',
        "http://m:0",
    ],
)
def test_what_is_no_mirror_url(text: str) -> None:
    """A scheme, a host, perhaps a port, and nothing else."""
    with pytest.raises(ConfigError, match="MIRROR_URL"):
        MirrorUrl.parse(text)


@pytest.mark.parametrize("text", ["http://me:s3cret@mirror:5000", "me:s3cret@mirror:5000", "http:/me:s3cret@mirror"])
def test_a_password_in_the_url_is_refused_and_not_shown(text: str) -> None:
    """It would be in every process list and file; also where the scheme is missing or misspelled."""
    with pytest.raises(ConfigError, match="--password-file") as caught:
        MirrorUrl.parse(text)
    assert "s3cret" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------- containerd


def test_containerd_from_nothing() -> None:
    """One file for all registries, and the setting that leads to it."""
    plan, after = _plan("containerd", {})
    assert after[_ALL] == (
        _marker("containerd")
        + '[host."http://mirror.internal:5000"]\n  capabilities = ["pull", "resolve"]\n  dial_timeout = "3s"\n'
    )
    assert after[_CONFIG] == (
        _marker("containerd")
        + 'version = 2\n\n[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"\n'
    )
    assert [change.needs != "" for change in plan.changes] == [True, False]


def test_containerd_with_authority_and_account() -> None:
    """The certificate lies beside the file; the password is in a header, and others cannot read it."""
    plan, after = _plan("containerd", {_CONFIG: _LEADS}, _TRUSTING)
    path = "/etc/containerd/certs.d/ghcr.io/hosts.toml"
    host = tomllib.loads(after[path])["host"]["https://mirror.internal"]
    assert host["ca"] == "mirror-ca.pem"
    assert host["header"] == {"Authorization": "Basic bm9kZTpzM2NyZXQ="}
    assert after["/etc/containerd/certs.d/ghcr.io/mirror-ca.pem"] == "PEM\n"
    assert {change.path: change.secret for change in plan.changes}[path]
    assert _CONFIG not in [change.path for change in plan.changes]


def test_containerd_without_fallback() -> None:
    """The mirror is the only host, and the server that is asked after it."""
    _, after = _plan("containerd", {_CONFIG: _LEADS}, replace(_WANTED, fallback=False))
    meant = tomllib.loads(after[_ALL])
    assert meant["server"] == "http://mirror.internal:5000"
    assert meant["capabilities"] == ["pull", "resolve"]
    assert list(meant["host"]) == ["http://mirror.internal:5000"]
    plan, _ = _plan(
        "containerd", {_CONFIG: _LEADS, _ALL: 'server = "https://other"\n'}, replace(_WANTED, fallback=False)
    )
    assert "names other hosts" in plan.conflicts[0]


@pytest.mark.parametrize(
    ("text", "table"),
    [
        (
            "version = 3\n\n[plugins]\n  [plugins.'io.containerd.cri.v1.images']  # ours\n    snapshotter = 'native'\n"
            "    [plugins.'io.containerd.cri.v1.images'.registry]\n      config_path = ''  # none yet",
            ("plugins", "io.containerd.cri.v1.images", "registry"),
        ),
        ("version = 4\nimports = []\n", ("plugins", "io.containerd.cri.v1.images", "registry")),
        (
            '\ufeffversion = 2\r\n# the runtime\r\n[plugins."io.containerd.grpc.v1.cri"]\r\nx = """\r\n[a]\r\n"""\r\n',
            ("plugins", "io.containerd.grpc.v1.cri", "registry"),
        ),
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry] # r\n'
            '    max = [\n  "a#b", # [\n    ]\n[grpc]\n',
            ("plugins", "io.containerd.grpc.v1.cri", "registry"),
        ),
    ],
)
def test_containerd_adds_config_path_and_nothing_else(text: str, table: tuple[str, ...]) -> None:
    """In both layouts, whatever comments, quotes, line ends and missing line ends are there."""
    _, after = _plan("containerd", {_CONFIG: text})
    meant = tomllib.loads(after[_CONFIG].removeprefix("\ufeff"))
    for key in table:
        meant = meant[key]
    assert meant["config_path"] == "/etc/containerd/certs.d"
    left = after[_CONFIG].replace("'/etc/containerd/certs.d'", "''").replace('"/etc/containerd/certs.d"', "''")
    for line in text.splitlines():
        assert line in left.splitlines()
    assert ("\r\n" in text) == ("\r\n" in after[_CONFIG])
    assert "\n" not in after[_CONFIG].replace("\r\n", "") or "\r\n" not in text


def test_containerd_uses_the_folder_that_is_set() -> None:
    """`config_path` is not rewritten."""
    text = _LEADS.replace("/etc/containerd/certs.d", "/etc/hosts.d")
    _, after = _plan("containerd", {_CONFIG: text})
    assert after[_CONFIG] == text
    assert "/etc/hosts.d/_default/hosts.toml" in after


def test_containerd_names_one_folder_of_several() -> None:
    """Releases of containerd 2 read none of several; where the others hold nothing, nothing is lost."""
    text = _LEADS.replace('"/etc/containerd/certs.d"', "'/etc/containerd/certs.d:/etc/docker/certs.d'  # default")
    plan, after = _plan("containerd", {_CONFIG: text})
    assert after[_CONFIG] == _LEADS.replace('certs.d"', 'certs.d"  # default')
    assert {change.path: change.needs != "" for change in plan.changes} == {_CONFIG: True, _ALL: False}


def test_containerd_keeps_folders_that_hold_something() -> None:
    """It is said why that may not work, by `configure` and by the doctor."""
    text = _LEADS.replace('certs.d"', 'certs.d:/etc/docker/certs.d"')
    plan, after = _plan("containerd", {_CONFIG: text, "/etc/docker/certs.d/ours/ca.crt": "PEM"})
    assert after[_CONFIG] == text
    assert "/etc/docker/certs.d" in plan.notes[0]
    assert _ALL in after
    asked = CLIENTS["containerd"].asks(GivenFiles(after), "docker.io")
    found = judge_client("containerd", asked, "docker.io", _WANTED.mirror, demanded=True)
    assert found.level is Level.WARNING
    assert "several folders" in found.text


def test_containerd_looks_for_a_port_in_two_folders() -> None:
    """The one with underscores goes first, so what somebody left there is in the way."""
    wanted = Wanted(_MIRROR, ("ours.internal:5000",))
    _, after = _plan("containerd", {_CONFIG: _LEADS}, wanted)
    assert "/etc/containerd/certs.d/ours.internal:5000/hosts.toml" in after
    other = "/etc/containerd/certs.d/ours.internal_5000_/hosts.toml"
    texts = {**after, other: 'server = "https://other"\n'}
    plan, _ = _plan("containerd", texts, wanted)
    assert other in plan.conflicts[0]
    asked = CLIENTS["containerd"].asks(GivenFiles(texts), "ours.internal:5000")
    assert asked.endpoints == ("https://other",)


def test_containerd_imports_are_read() -> None:
    """What an imported file says of the plugin takes the place of the rest, so it is changed there."""
    drop_in = "/etc/containerd/conf.d/cri.toml"
    texts = {
        _CONFIG: 'version = 3\nimports = ["conf.d/*.toml"]\n',
        drop_in: 'version = 3\n[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "native"\n',
    }
    _, after = _plan("containerd", texts)
    assert after[_CONFIG] == texts[_CONFIG]
    assert "config_path" in after[drop_in]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry.mirrors."x"]\nendpoint = []\n',
            "registry.mirrors",
        ),
        (
            'version = 3\n[plugins."io.containerd.cri.v1.images".registry.configs."x".tls]\nca_file = "a"\n',
            "tls of registry.configs",
        ),
        ("[plugins.cri]\n", "has no version"),
    ],
)
def test_containerd_conflicts(text: str, reason: str) -> None:
    """What would stop containerd from loading, or would do nothing, is named and not done."""
    plan, _ = _plan("containerd", {_CONFIG: text})
    assert reason in plan.conflicts[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("version = 2\nversion = 2\n", r"not TOML.*line 2"),
        ("version = 9\n", "version 9 is not supported"),
        ('version = 2\nplugins = {"io.containerd.grpc.v1.cri" = {}}\n', r"by hand|lines are needed:\n\[plugins"),
    ],
)
def test_containerd_refuses(text: str, reason: str) -> None:
    """What cannot be changed safely is left alone, with the lines to add."""
    with pytest.raises(NodeRefused, match=reason):
        _plan("containerd", {_CONFIG: text})


def test_containerd_keeps_logins_of_its_own() -> None:
    """containerd takes `auth` beside `config_path`, other than `tls`."""
    text = _LEADS + '[plugins."io.containerd.grpc.v1.cri".registry.configs."x".auth]\nusername = "a"\n'
    plan, after = _plan("containerd", {_CONFIG: text})
    assert (plan.conflicts, after[_CONFIG]) == ((), text)


def test_containerd_without_the_runtime_interface() -> None:
    """Docker's own containerd needs no `config_path`."""
    plan, after = _plan("containerd", {_CONFIG: 'disabled_plugins = ["cri"]\n'})
    assert "disabled" in plan.notes[0]
    assert after[_CONFIG] == 'disabled_plugins = ["cri"]\n'


def test_containerd_puts_the_mirror_before_other_hosts() -> None:
    """Hosts are asked in the order in which they stand there; comments stay where they were."""
    text = 'server = "https://registry-1.docker.io"\n\n# the old one\n[host."https://old"]\n  capabilities = ["pull"]'
    plan, after = _plan("containerd", {_CONFIG: _LEADS, _ALL: text})
    meant = tomllib.loads(after[_ALL])
    assert list(meant["host"]) == ["http://mirror.internal:5000", "https://old"]
    assert meant["server"] == "https://registry-1.docker.io"
    assert after[_ALL].endswith(text[text.index("# the old one") :])
    assert not plan.conflicts


def test_containerd_with_the_mirror_there_otherwise() -> None:
    """A table of this host with other settings is somebody's decision."""
    text = '[host."http://mirror.internal:5000"]\n  capabilities = ["pull"]\n'
    plan, _ = _plan("containerd", {_CONFIG: _LEADS, _ALL: text})
    assert "with other settings" in plan.conflicts[0]


def test_containerd_names_what_goes_before_default() -> None:
    """A registry with a file of its own does not come by `_default`."""
    own = "/etc/containerd/certs.d/quay.io/hosts.toml"
    plan, _ = _plan("containerd", {_CONFIG: _LEADS, own: 'server = "https://quay.io"\n'})
    assert any("--registry quay.io" in note for note in plan.notes)


# --------------------------------------------------------------------------------------------------------- docker


@pytest.mark.parametrize(
    ("url", "authority", "said"),
    [
        ("https://mirror.internal", "PEM", "token endpoint"),
        ("https://mirror.internal", None, None),
        ("https://localhost:5000", None, "by http"),
        ("http://localhost:5000", None, None),
    ],
)
def test_what_docker_trips_over(url: str, authority: str | None, said: str | None) -> None:
    """With containerd's image store: what certs.d is not read for, and a name that means http."""
    plan = CLIENTS["docker"].plan(GivenFiles({}), Wanted(MirrorUrl.parse(url), authority=authority))
    trips = [note for note in plan.notes if "containerd's image store" in note]
    assert len(trips) == (said is not None)
    assert all(said is None or said in note for note in trips)


def test_docker_from_nothing() -> None:
    """Both keys; an empty file counts as none."""
    for texts in ({}, {_DOCKER: ""}, {_DOCKER: " \n"}):
        plan, after = _plan("docker", texts)
        assert after[_DOCKER] == (
            '{\n  "registry-mirrors": ["http://mirror.internal:5000"],\n'
            '  "insecure-registries": ["mirror.internal:5000"]\n}\n'
        )
        assert plan.changes[0].needs == "systemctl reload docker"
        assert "docker.io only" in plan.notes[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{}", '{\n  "registry-mirrors": ["M"],\n  "insecure-registries": ["A"]\n}'),
        (
            '{\n\t"z": 1,\n\t"a": {"registry-mirrors": 1}\n}',
            '{\n\t"z": 1,\n\t"a": {"registry-mirrors": 1},\n\t"registry-mirrors": ["M"],'
            '\n\t"insecure-registries": ["A"]\n}',
        ),
        ('{"b":[1,  2],"a":"}"}', '{"b":[1,  2],"a":"}", "registry-mirrors": ["M"], "insecure-registries": ["A"]}'),
        (
            '\ufeff{\r\n    "debug": true\r\n}\r\n',
            '\ufeff{\r\n    "debug": true,\r\n    "registry-mirrors": ["M"],\r\n'
            '    "insecure-registries": ["A"]\r\n}\r\n',
        ),
        (
            '{"registry-mirrors": ["https://old"], "insecure-registries": ["A"], "x": 1}',
            '{"registry-mirrors": ["M", "https://old"], "insecure-registries": ["A"], "x": 1}',
        ),
        (
            '{"registry-mirrors": ["https://old", "M/"], "insecure-registries": ["A"]}',
            '{"registry-mirrors": ["M", "https://old"], "insecure-registries": ["A"]}',
        ),
        (
            '{"registry-mirrors":["M/"],"insecure-registries":["A","b"]}',
            '{"registry-mirrors":["M/"],"insecure-registries":["A","b"]}',
        ),
    ],
)
def test_docker_merges(before: str, after: str) -> None:
    """Other keys, their order and how they are written stay; the mirror comes first; what is so already stays so."""

    def named(text: str) -> str:
        return text.replace('"M', '"http://mirror.internal:5000').replace('"A"', '"mirror.internal:5000"')

    _, found = _plan("docker", {_DOCKER: named(before)})
    assert found[_DOCKER] == named(after)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{\n  // a comment\n  "a": 1}', r"line 2, column 3"),
        ('{"a": 1,}', r"line 1, column 9"),
        ("[]", "not a JSON object"),
        ('{"registry-mirrors": "x"}', "not a list of strings"),
        ('{"debug": true, "debug": false}', "debug is there twice"),
    ],
)
def test_docker_refuses(text: str, reason: str) -> None:
    """What dockerd would not read, or somebody did not mean, is refused with its position."""
    with pytest.raises(NodeRefused, match=reason):
        _plan("docker", {_DOCKER: text})


def test_docker_on_the_command_line() -> None:
    """dockerd does not start with a setting in both places."""
    unit = "/etc/systemd/system/docker.service.d/mirror.conf"
    plan, _ = _plan("docker", {unit: "[Service]\nExecStart=\nExecStart=dockerd --registry-mirror=https://old\n"})
    assert unit in plan.conflicts[0]
    plan, _ = _plan("docker", {unit: "# --registry-mirror was here\n"})
    assert not plan.conflicts


def test_docker_over_tls() -> None:
    """No exception is needed, and the authority lies where dockerd looks."""
    _, after = _plan("docker", {}, replace(_TRUSTING, registries=("docker.io",), account=None))
    assert json.loads(after[_DOCKER]) == {"registry-mirrors": ["https://mirror.internal"]}
    assert after["/etc/docker/certs.d/mirror.internal/ca.crt"] == "PEM\n"


# --------------------------------------------------------------------------------------------------------- podman


def test_podman_from_nothing() -> None:
    """A block for each registry; wildcards are left out and named."""
    plan, after = _plan("podman", {})
    assert after[_DROP_IN] == _marker("podman") + "".join(
        f'\n[[registry]]\nprefix = "{name}"\nlocation = "{name}"\n'
        f'[[registry.mirror]]\nlocation = "mirror.internal:5000/{name}"\ninsecure = true\n'
        for name in ("docker.io", "ghcr.io")
    )
    assert "*.pkg.dev" in plan.notes[0]


def test_podman_without_fallback() -> None:
    """The registry's location is the mirror, and there is nobody after it."""
    _, after = _plan("podman", {}, Wanted(_SECURE, ("quay.io",), fallback=False))
    [block] = tomllib.loads(after[_DROP_IN])["registry"]
    assert block == {"prefix": "quay.io", "location": "mirror.internal/quay.io"}


@pytest.mark.parametrize(
    ("path", "more", "conflict"),
    [
        ("registries.conf", "", False),
        ("registries.conf", "blocked = true", True),
        ("registries.conf.d/10-old.conf", "", False),
        ("registries.conf.d/99-late.conf", "", True),
    ],
)
def test_podman_names_other_blocks(path: str, more: str, conflict: bool) -> None:
    """An earlier one counts no more and is told about; a later one, or one that forbids, is a conflict."""
    path = f"/etc/containers/{path}"
    plan, _ = _plan("podman", {path: f'[[registry]]\nlocation = "ghcr.io"\n{more}\n'})
    told = plan.conflicts if conflict else plan.notes
    assert any(path in one and "ghcr.io" in one for one in told)
    assert bool(plan.conflicts) == conflict


def test_podman_by_an_address_of_ipv6() -> None:
    """Old releases fail every pull then, so it is said."""
    plan, after = _plan("podman", {}, Wanted(MirrorUrl.parse("http://[fd00::1]:5000"), ("docker.io",)))
    assert "IPv6" in plan.notes[0]
    assert 'location = "[fd00::1]:5000/docker.io"' in next(iter(after.values()))


def test_crio_has_the_same_file_and_a_service() -> None:
    """It reads what podman reads, but once."""
    podman, crio = _plan("podman", {}), _plan("crio", {})
    assert podman[1] == crio[1]
    assert [plan.changes[0].needs for plan, _ in (podman, crio)] == ["", "systemctl reload crio"]


# ------------------------------------------------------------------------------------------------ buildkit and k3s


def test_buildkit_merges() -> None:
    """Tables that are there get the mirror in front, comments stay, the others are added."""
    text = 'debug = true # yes\n[registry."ghcr.io"]\n  mirrors = ["old"] # keep\n  insecure = true\n[worker.oci]\n'
    _, after = _plan("buildkit", {_BUILDKIT: text})
    assert after[_BUILDKIT] == (
        text.replace('["old"]', '["mirror.internal:5000/ghcr.io", "old"]')
        + '\n[registry."docker.io"]\n  mirrors = ["mirror.internal:5000/docker.io"]\n'
        + '\n[registry."mirror.internal:5000"]\n  http = true\n'
    )


def test_buildkit_refuses_what_it_cannot_change() -> None:
    """An inline table cannot be added to; the lines are told."""
    with pytest.raises(NodeRefused, match=r'\[registry."docker.io"\]\n  mirrors'):
        _plan("buildkit", {_BUILDKIT: "registry = {}\n"})


def test_k3s_from_nothing() -> None:
    """One entry for all."""
    plan, after = _plan("k3s", {})
    assert after[_K3S] == (_marker("k3s") + "mirrors:\n  '*':\n    endpoint:\n    - http://mirror.internal:5000\n")
    assert "restart k3s" in plan.changes[0].needs


def test_k3s_merges() -> None:
    """Other entries stay, in order; that comments go is told; what goes before `*` is named."""
    text = '# mine\nmirrors:\n  quay.io:\n    endpoint: ["https://old"]\nconfigs:\n  old: {auth: {password: x}}\n'
    plan, after = _plan("k3s", {_K3S: text})
    assert yaml.safe_load(after[_K3S]) == {
        "mirrors": {
            "quay.io": {"endpoint": ["https://old"]},
            "*": {"endpoint": ["http://mirror.internal:5000"]},
        },
        "configs": {"old": {"auth": {"password": "x"}}},
    }
    assert ["comments are lost" in note or "quay.io" in note for note in plan.notes] == [True, True]
    assert plan.changes[-1].secret


def test_k3s_names_that_are_numbers() -> None:
    """A registry is called as it is spelled, whatever YAML takes it for."""
    plan, after = _plan("k3s", {_K3S: "mirrors:\n  1_0:\n    endpoint: ['http://a']\n"})
    assert "1_0 have entries that override" in plan.notes[0]
    assert "\n  1_0:\n" in after[_K3S]


@pytest.mark.parametrize("word", ["0123", "no", "1_000", "1e3", "2026-01-02", "12:30", "'0123'"])
def test_k3s_keeps_passwords_as_they_are_spelled(word: str) -> None:
    """k3s reads the text of what YAML takes for a number or a truth."""
    _, after = _plan("k3s", {_K3S: f"configs:\n  x:\n    auth:\n      password: {word}\n"})
    assert f"      password: {word}\n" in after[_K3S]


def test_k3s_with_everything() -> None:
    """Trust, account, and no fallback for RKE2, in its own folder."""
    _, after = _plan("rke2", {}, replace(_TRUSTING, fallback=False))
    folder = "/etc/rancher/rke2"
    assert yaml.safe_load(after[f"{folder}/registries.yaml"])["configs"]["mirror.internal"] == {
        "tls": {"ca_file": f"{folder}/mirror-ca.pem"},
        "auth": {"username": "node", "password": "s3cret"},
    }
    assert after[f"{folder}/mirror-ca.pem"] == "PEM\n"
    setting = yaml.safe_load(after[f"{folder}/config.yaml.d/50-mirror.yaml"])
    assert setting == {"disable-default-registry-endpoint": True}


def test_k3s_rewrites_are_a_conflict() -> None:
    """The mirror would be asked for another name than the registry has."""
    text = "mirrors:\n  ghcr.io:\n    rewrite: {'^a': 'b'}\n"
    plan, _ = _plan("k3s", {_K3S: text}, replace(_WANTED, registries=("ghcr.io",)))
    assert "mirrors.ghcr.io.rewrite" in plan.conflicts[0]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("a: [", r"line 1|line 2"), ("- a", "not a mapping"), ("mirrors: 7", "mirrors is not a mapping"), _TWICE],
)
def test_k3s_refuses(text: str, reason: str) -> None:
    """What is no registries.yaml is left alone."""
    with pytest.raises(NodeRefused, match=reason):
        _plan("k3s", {_K3S: text})


# ------------------------------------------------------------------------------------- hosted and virtual registries


def test_the_mirrors_own_name_in_containerd() -> None:
    """A folder of its own, with the right to push and the login, and no other host; changed by hand, a conflict."""
    wanted = replace(_TRUSTING, own_name=True)
    path = "/etc/containerd/certs.d/mirror.internal/hosts.toml"
    plan, after = _plan("containerd", {_CONFIG: _LEADS}, wanted)
    meant = tomllib.loads(after[path])
    [host] = meant.pop("host").items()
    assert host == ("https://mirror.internal", {key: meant[key] for key in meant if key != "server"})
    assert meant["server"] == "https://mirror.internal"
    assert meant["capabilities"] == ["pull", "resolve", "push"]
    assert meant["header"] == {"Authorization": "Basic bm9kZTpzM2NyZXQ="}
    assert after["/etc/containerd/certs.d/mirror.internal/mirror-ca.pem"] == "PEM\n"
    assert {change.path: change.secret for change in plan.changes}[path]
    plan, _ = _plan("containerd", {_CONFIG: _LEADS, path: 'server = "https://mirror.internal"\n'}, wanted)
    assert "has other settings for the mirror itself" in plan.conflicts[0]


def test_the_mirrors_own_name_elsewhere() -> None:
    """Without TLS, podman and k3s need an entry; k3s has it beside the one for all registries."""
    wanted = replace(_WANTED, own_name=True)
    _, after = _plan("podman", {}, wanted)
    assert after[_DROP_IN].endswith('\n[[registry]]\nlocation = "mirror.internal:5000"\ninsecure = true\n')
    assert "mirror.internal" not in _plan("podman", {}, Wanted(_SECURE, own_name=True))[1].get(_DROP_IN, "")
    plan, after = _plan("k3s", {}, wanted)
    assert yaml.safe_load(after[_K3S])["mirrors"] == {
        "*": {"endpoint": ["http://mirror.internal:5000"]},
        "mirror.internal:5000": {"endpoint": ["http://mirror.internal:5000"]},
    }
    assert plan.notes == ()


def test_a_virtual_registry_for_all() -> None:
    """Each client asks below its path, whatever the registry; the mirror's own name stays what it is."""
    wanted = replace(_WANTED, virtual="all", own_name=True)
    _, after = _plan("containerd", {_CONFIG: _LEADS}, replace(wanted, fallback=False))
    meant = tomllib.loads(after[_ALL])
    assert (meant["server"], meant["override_path"]) == ("http://mirror.internal:5000/v2/all", True)
    assert meant["host"]["http://mirror.internal:5000/v2/all"]["override_path"] is True
    own = tomllib.loads(after["/etc/containerd/certs.d/mirror.internal:5000/hosts.toml"])
    assert (own["server"], "override_path" in own) == ("http://mirror.internal:5000", False)
    _, after = _plan("podman", {}, wanted)
    assert after[_DROP_IN].count('location = "mirror.internal:5000/all"\n') == 2
    _, after = _plan("buildkit", {}, wanted)
    assert tomllib.loads(after[_BUILDKIT])["registry"]["ghcr.io"] == {"mirrors": ["mirror.internal:5000/all"]}
    _, after = _plan("k3s", {}, wanted)
    assert yaml.safe_load(after[_K3S])["mirrors"]["*"] == {"endpoint": ["http://mirror.internal:5000/v2/all"]}
    with pytest.raises(ConfigError, match=r"--virtual.*default_registry"):
        CLIENTS["docker"].plan(GivenFiles({}), wanted)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("mirror", [_MIRROR, _SECURE, MirrorUrl.parse("http://127.0.0.1:5000")])
def test_whether_a_client_can_use_the_mirrors_own_name(client: str, mirror: MirrorUrl) -> None:
    """With what `--hosted` writes it can. Without it, TLS and nothing configured is good; no TLS is a problem, but for
    this machine's own addresses with some; and a client that takes it for another registry is warned about.
    """
    words = Wanted(mirror, public=_PUBLIC)

    def level(wanted: Wanted | None) -> Level:
        texts = _plan(client, {_CONFIG: _LEADS} if client == "containerd" else {}, wanted)[1] if wanted else {}
        asked = CLIENTS[client].asks(GivenFiles(texts), mirror.address)
        return judge_own_name(client, asked, mirror).level

    assert level(replace(words, own_name=True)) is Level.OK
    by_tls = not mirror.is_plain or (mirror.is_loopback and client not in ("podman", "crio"))
    assert level(None) is (Level.OK if by_tls else Level.PROBLEM)
    for_all = client in ("containerd", "k3s", "rke2")
    if for_all:
        assert level(words) is (Level.WARNING if by_tls else Level.PROBLEM)


# ----------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize(
    ("client", "wanted"),
    [
        ("docker", Wanted(_MIRROR, ("ghcr.io",))),
        ("docker", Wanted(_MIRROR, fallback=False)),
        ("docker", Wanted(_MIRROR, account=ClientLogin("a", "b"))),
        ("podman", Wanted(_MIRROR, account=ClientLogin("a", "b"))),
        ("crio", Wanted(_MIRROR, account=ClientLogin("a", "b"))),
        ("buildkit", Wanted(_MIRROR, account=ClientLogin("a", "b"))),
        ("buildkit", Wanted(_MIRROR, fallback=False)),
        *((name, Wanted(_MIRROR, ("*.pkg.dev",))) for name in CLIENTS),
    ],
)
def test_settings_that_a_client_lacks(client: str, wanted: Wanted) -> None:
    """It is said, rather than done in part."""
    with pytest.raises(ConfigError, match=r"--(registry|no-fallback|username)"):
        CLIENTS[client].plan(GivenFiles({}), wanted)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_configured_client_asks_the_mirror(client: str) -> None:
    """What is written is understood when it is read again, and without it nobody asks the mirror."""
    assert not CLIENTS[client].asks(GivenFiles({}), "docker.io").endpoints
    _, after = _plan(client, {})
    asked = CLIENTS[client].asks(GivenFiles(after), "docker.io")
    assert _MIRROR.is_at(asked.endpoints[0])
    assert not asked.trouble
