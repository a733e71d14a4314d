"""What a user can set, see or call is found in the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any, get_args, get_type_hints

from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.main import get_command
from typing_extensions import is_typeddict

import mirror
from mirror import telemetry
from mirror.cli import every_command
from mirror.config import Config, hints, load
from mirror.errors import ANSWERS, ConfigError, MirrorError, answer_for
from mirror.server.admin.mirror_status import StatusJson
from mirror.server.admin.operations import OPERATIONS, PREFIX

ROOT = Path(__file__).parents[2]


#: Settings that have no default, and need others or files beside them.
_ALONE = {
    "tls_certificate",
    "tls_key",
    "username",
    "password",
    "password_file",
    "docker_config",
    "cron",
    "provider",
    "key_file",
    "region",
    "role_arn",
    "tenant_id",
    "client_id",
    "client_secret",
    "client_secret_file",
    "token_file",
    "provider_url",
    "sts_url",
    "metadata_url",
    "ca_file",
    "client_certificate",
    "client_key",
    "proxy_file",
    "url_file",
    "htpasswd",
    "groups",
    "client_ca",
    "token_key_file",
    "realm",
    "audit_log",
    "bucket",
    "bucket_capacity",
}


def _inner(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections that a field holds; none where it is a setting itself."""
    kinds = [field.annotation]
    for kind in kinds:
        kinds += getattr(kind, "__args__", ())
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def settings(model: type[BaseModel]) -> set[str]:
    """Names of all settings, also within sections."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        found |= set().union(*map(settings, inner)) if (inner := _inner(field)) else {field.alias or name}
    return found


def by_section() -> dict[str, set[str]]:
    """The settings of each table of the file, with those of tables within it; "" are those that stand in none."""
    found: dict[str, set[str]] = {"": set()}
    for name, field in Config.model_fields.items():
        if inner := _inner(field):
            found[name] = set().union(*map(settings, inner))
        else:
            found[""].add(name)
    return found


def sections_of_page() -> dict[str, str]:
    """The text below each heading of the page about the configuration, by the table that it is about."""
    page = (ROOT / "docs/configuration.md").read_text()
    _, *parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    return {"" if name == "Top level" else name.strip("`[]"): text for name, text in found.items()}


def sections_of_example() -> dict[str, str]:
    """The lines of each table of the example file, of all tables of that name and of those within it together."""
    found: dict[str, str] = {}
    name = ""
    for line in (ROOT / "config/mirror.toml").read_text().splitlines():
        if heading := re.fullmatch(r"#?\[{1,2}(\w+)[\w.]*\]{1,2}", line):
            name = heading[1]
        found[name] = f"{found.get(name, '')}{line}\n"
    return found


def rows(page: str) -> list[str]:
    """The rows of all tables of a page, without their first column's bar."""
    return [line.removeprefix("| ") for line in (ROOT / page).read_text().splitlines() if line.startswith("| ")]


def every_error(root: type[MirrorError] = MirrorError) -> set[type[MirrorError]]:
    """The whole tree."""
    return {root}.union(*(every_error(child) for child in root.__subclasses__()))


def test_every_setting_is_documented_and_in_the_example() -> None:
    """Each setting stands in its section of the page about the configuration, and in its table of the example file."""
    page, example = sections_of_page(), sections_of_example()
    assert sum(map(len, by_section().values())) > 100
    for section, names in by_section().items():
        assert {name for name in names if f"`{name}`" not in page[section]} == set(), f"page: [{section}]"
        lines = example.get(section, "")
        missing = {name for name in names if not re.search(rf"^#?{name} = ", lines, re.MULTILINE)}
        assert missing == set(), f"example: [{section}]"


def test_the_example_configuration_is_good(tmp_path: Path) -> None:
    """As it stands, and with every commented default switched on that can stand alone."""
    assert load(ROOT / "config/mirror.toml").server.workers == 2
    text = (ROOT / "config/mirror.toml").read_text()
    # examples of whole tables are commented out together with their headings; those in `[bucket]` exclude each other
    paragraphs = [one for one in text.split("\n\n") if not re.search(r"^#\[(\[|bucket\]|cluster\])", one, re.MULTILINE)]
    lines = [
        line[1:] if (found := re.match(r"#(\w+) = ", line)) and found[1] not in _ALONE else line
        for line in "\n\n".join(paragraphs).splitlines()
    ]
    path = tmp_path / "mirror.toml"
    path.write_text("\n".join(lines))
    assert load(path).store.partials_max_age == 86400


def test_the_examples_of_sync_rules_are_good(tmp_path: Path) -> None:
    """The page's as they stand; the example file's with its heading, in each of the three ways to say which tags."""
    path = tmp_path / "mirror.toml"
    page = (ROOT / "docs/sync.md").read_text()
    [text] = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path.write_text(text)
    assert [rule.title for rule in load(path).sync] == ["docker.io/library/python", "nightly-tools"]
    [example] = [
        part for part in (ROOT / "config/mirror.toml").read_text().split("\n\n") if "#[[sync]]" in part.splitlines()
    ]
    ways = {"tags", "tags_regex", "tags_semver"}
    for way in ways:
        others = "|".join([*(ways - {way}), "cron", *(["prereleases"] if way != "tags_semver" else [])])
        lines = [line for line in example.splitlines() if not re.match(rf"#(?:{others}) = ", line)]
        path.write_text("\n".join(re.sub(r"^#(?=\[\[|\w+ = )", "", line) for line in lines))
        assert load(path).sync[0].title == "python"


def test_the_example_of_a_hosted_registry_is_good(tmp_path: Path) -> None:
    """As the page has it, but for the files that it names; somebody may pull and push."""
    page = (ROOT / "docs/hosted.md").read_text()
    example = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)[0]
    lines = [line for line in example.splitlines() if not re.match(r"tls_\w+ = |htpasswd = |audit_log = ", line)]
    path = tmp_path / "mirror.toml"
    # groups are those of accounts
    (tmp_path / "htpasswd").write_text("")
    text = "\n".join(lines).replace("[access]", f'[access]\nhtpasswd = "{tmp_path}/htpasswd"')
    path.write_text(text)
    loaded = load(path)
    assert [entry.name for entry in loaded.hosted] == ["corp"]
    assert hints(loaded) == []


def test_defaults_in_the_example_are_the_defaults(tmp_path: Path) -> None:
    """What the example shows as a default, commented out, is what a mirror without a file has."""
    path = tmp_path / "mirror.toml"
    text = (ROOT / "config/mirror.toml").read_text()
    sections = re.split(r"^(?=\[)", text, flags=re.MULTILINE)
    for section in sections:
        name = re.match(r"\[(\w+)\]", section)
        if name and name[1] in ("server", "store", "log", "access"):
            # without those that have no default, and without examples of tables
            section = re.split(r"^#\[", section, maxsplit=1, flags=re.MULTILINE)[0]
            shown = [
                line[1:]
                for line in section.splitlines()
                if (found := re.match(r"#(\w+) = ", line)) and found[1] not in _ALONE
            ]
            path.write_text(f"[{name[1]}]\n" + "\n".join(shown))
            assert getattr(load(path), name[1]) == getattr(load(None), name[1])


def test_every_metric_is_documented() -> None:
    """Each metric that is declared stands in the first column of a table of the page about running."""
    first = " ".join(row.partition(" |")[0] for row in rows("docs/running.md"))
    metrics = [one for one in vars(telemetry).values() if isinstance(one, MetricWrapperBase)]
    assert len(metrics) > 10
    for metric in metrics:
        for family in metric.describe():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            assert f"`{name}`" in first, name


def test_no_metric_is_told_that_is_none() -> None:
    """Each metric that a page, an alert or the dashboard names is declared, so that none outlives its renaming."""
    names = {"mirror_url", "mirror_robot_"}
    for one in vars(telemetry).values():
        if isinstance(one, MetricWrapperBase):
            for family in one.describe():
                ends = {"counter": ["_total"], "histogram": ["", "_bucket", "_sum", "_count"]}
                names |= {f"{family.name}{end}" for end in ends.get(family.type, [""])}
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("k8s/**/*.yaml"), *ROOT.glob("config/*.json")]
    assert len(files) > 30
    for file in files:
        # of the changelog, what was called so once
        if file.name != "CHANGELOG.md":
            assert set(re.findall(r"\bmirror_[a-z_]+", file.read_text())) <= names, file


def test_every_metric_is_named_as_prometheus_wants_it() -> None:
    """Units are whole ones and stand in the name, labels are few; counters have their suffix by the library."""
    for one in vars(telemetry).values():
        if not isinstance(one, MetricWrapperBase):
            continue
        for family in one.describe():
            assert re.fullmatch(r"mirror(_[a-z]+)+", family.name), family.name
            assert not re.search(r"_(ms|milliseconds|minutes|hours|kb|mb|total|count|sum|bucket)$", family.name)
            assert (family.type == "histogram") <= family.name.endswith("_seconds"), family.name
            assert family.name.endswith("_seconds") or "timestamp" not in family.name
            assert family.documentation
            assert len(one._labelnames) <= 3, family.name


def test_every_route_of_the_admin_api_is_documented() -> None:
    """Each has a row of its own in the page about it, as it is written there; each parameter stands in that row."""
    table = rows("docs/admin-api.md")
    for one in OPERATIONS:
        path = re.sub(r"\{(\w+)\}", lambda name: {"job": "ID", "rule": "NAME"}.get(name[1], name[1].upper()), one.path)
        [row] = [row for row in table if row.startswith(f"`{one.method} {PREFIX}{path}` |")]
        body = getattr(one.body, "__annotations__", {})
        for name in [*one.query, *body]:
            assert f"`{name}`" in row, (one.name, name)


def test_every_command_is_documented() -> None:
    """Each command that is not hidden has a row of its own in the page about running, which names its options."""
    table = rows("docs/running.md")
    group = get_command(every_command())
    commands = {name: one for name, one in group.commands.items() if not one.hidden}  # type: ignore[attr-defined]
    assert "serve" in commands
    for name, command in commands.items():
        [row] = [one for one in table if one.startswith(f"`mirror {name}` |")]
        for option in command.params:
            if option.name not in ("help", "config"):
                assert any(f"`{flag}`" in row for flag in option.opts), (name, option.name)


def test_commands_that_messages_and_pages_name_exist() -> None:
    """An operator is told in the night to run it."""
    group = get_command(every_command())
    texts = [*ROOT.glob("mirror/**/*.py"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md", *ROOT.glob("config/*")]
    named = {
        (found[1], str(file.relative_to(ROOT)))
        for file in texts
        for found in re.finditer(r"`mirror ([a-z]+)", file.read_text())
    }
    assert ("verify", "mirror/eviction/purge.py") in named
    assert sorted(one for one in named if one[0] not in group.commands) == []  # type: ignore[attr-defined]


def test_every_error_is_documented_and_has_an_answer() -> None:
    """Each error has a row of its own in the table of answers and in the page about errors."""
    page = (ROOT / "docs/errors.md").read_text()
    for error in every_error():
        if error.__module__ != "mirror.errors":
            continue  # an adapter's refinement is answered like its ancestor
        assert error in ANSWERS, error
        if error is not ConfigError:
            assert f"| {ANSWERS[error].status} | `{ANSWERS[error].code}` | `{error.__name__}` |" in page, error


def test_every_more_exact_name_of_an_error_is_documented() -> None:
    """Logs, metrics and answers show the name of the class: what an operator reads there stands on the page."""
    page = (ROOT / "docs/errors.md").read_text()
    for module in walk_packages(mirror.__path__, "mirror."):
        if not module.name.endswith("__main__"):
            import_module(module.name)
    exact = {
        error
        for error in every_error()
        # commands print messages, not names; an error with an underscore does not leave its file
        if error.__module__.startswith("mirror.")
        and not error.__module__.startswith(("mirror.errors", "mirror.cli", "mirror.nodes"))
        and not error.__name__.startswith("_")
    }
    assert len(exact) > 5
    assert {error.__name__ for error in exact if f"`{error.__name__}`" not in page} == set()
    for error in exact:
        (row,) = [line for line in page.splitlines() if line.startswith("|") and f"`{error.__name__}`" in line]
        assert f"`{error.__mro__[1].__name__}`" in row or error.__mro__[1] in exact, error


def test_an_unlisted_refinement_is_answered_like_its_ancestor() -> None:
    """Looked up along the class's ancestors, so that no error is without an answer."""

    class Finer(MirrorError):
        pass

    assert answer_for(Finer("x")) == ANSWERS[MirrorError]


def _fields(answer: Any) -> Iterator[str]:
    """The names of all fields of a `TypedDict`, also of those within it."""
    for kind in (answer, *get_args(answer)):
        if is_typeddict(kind):
            for name, inner in get_type_hints(kind).items():
                yield name
                yield from _fields(inner)
        elif kind is not answer:
            yield from _fields(kind)


def test_every_field_of_the_status_is_documented() -> None:
    """Each is named in the section about the status, whose tables have no others."""
    section = (ROOT / "docs/admin-api.md").read_text().partition("\n## Status\n")[2].partition("\n## ")[0]
    fields = set(_fields(StatusJson))
    assert {"hit_ratio", "records_listed", "first_byte", "quarantine_bytes"} < fields
    assert not [name for name in fields if f"`{name}`" not in section]
    named = re.findall(r"^\| (`.*?) \| ", section, re.MULTILINE)
    assert {name for cell in named for name in re.findall(r"`(\w+)`", cell)} <= fields
