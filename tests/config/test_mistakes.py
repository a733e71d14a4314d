"""A configuration with mistakes: all of them are named, each by its setting, before anything is started."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from mirror.config import hints, load, virtual_rules
from mirror.config.settings import Config
from mirror.config.wording import in_plain_words
from mirror.errors import ConfigError
from tests.support.certificates import Certificate

_DOCKER = '[[upstream]]\nname = "docker.io"\n'


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Free of settings."""
    for name in os.environ:
        if name.upper().startswith("MIRROR__"):
            monkeypatch.delenv(name)
    return monkeypatch


def _mistakes(directory: Path, text: str) -> list[str]:
    file = directory / "mirror.toml"
    file.write_text(text)
    try:
        load(file)
    except ConfigError as error:
        return list(error.mistakes)
    return []


def _expect(mistakes: list[str], *beginnings: str) -> None:
    """Each of these, and no other."""
    assert len(mistakes) == len(beginnings), mistakes
    for beginning in beginnings:
        assert [one for one in mistakes if one.startswith(beginning)], (beginning, mistakes)


def test_a_wrong_setting_hides_no_other_mistake(tmp_path: Path) -> None:
    """What is wrong by itself, what does not go together, and what only files can tell: at once."""
    _expect(
        _mistakes(
            tmp_path,
            f"""
            default_registry = "nowhere.example"
            unknown = 1
            [server]
            drain_timeout = "soon"
            tls_key = "{tmp_path}/key.pem"
            [store]
            capacity = "lots"
            low_water = 0.99
            [index]
            url = "redis+sentinel://redis/"
            timeout = "never"
            [[upstream]]
            name = "docker.io"
            username = "user"
            max_concurrent_downloads = 0
            [[upstream]]
            name = "ghcr.io"
            aliases = ["docker.io"]
            ca_file = "{tmp_path}/none.pem"
            [[route]]
            match = "**"
            tag_ttl = "soon"
            """,
        ),
        "default_registry: nowhere.example",
        "unknown: no such setting",
        "server.drain_timeout: ",
        "server: tls_certificate and tls_key belong together",
        "store.capacity: ",
        "store: low_water (0.99) is above",
        "index.url: ",
        "index.timeout: ",
        "upstream[1]: username and password",
        "upstream[1].max_concurrent_downloads: ",
        "upstream[2]: docker.io is already the name of upstream[1]",
        "upstream[2].ca_file: ",
        "route[1].tag_ttl: ",
    )


def test_hosted_registries_and_upstreams_share_no_name(tmp_path: Path) -> None:
    """Neither a name nor a `Host` header leads to two registries; a sync brings nothing to where it comes from."""
    _expect(
        _mistakes(
            tmp_path,
            """
            [[hosted]]
            name = "*.corp.example"
            """,
        ),
        "hosted[1].name: not the name of a registry",
    )
    _expect(
        _mistakes(
            tmp_path,
            """
            default_registry = "corp"
            [[upstream]]
            name = "docker.io"
            host_headers = ["hub.corp.example"]
            [[hosted]]
            name = "corp"
            aliases = ["docker.io"]
            host_headers = ["HUB.corp.example"]
            [[hosted]]
            name = "corp"
            [[sync]]
            from = "corp/app"
            every = "1h"
            """,
        ),
        "hosted[1]: docker.io is already the name of upstream[1]",
        "hosted[1].host_headers: HUB.corp.example already belongs to upstream[1]",
        "hosted[2]: corp is already the name of hosted[1]",
        "sync[1].from: corp is hosted here",
    )


def test_patterns_of_a_hosted_registry_are_names(tmp_path: Path) -> None:
    """A pattern that no repository can match is a mistake, and hides no other setting of its entry."""
    _expect(
        _mistakes(
            tmp_path,
            """
            default_registry = "corp"
            [[hosted]]
            name = "corp"
            repositories = ["team-*/**", "Team/**"]
            quotas = { "/team/**" = "5GB", "team/**" = "much" }
            """,
        ),
        "hosted[1].repositories[2]: 'Team/**' matches no repository",
        "hosted[1].quotas./team/**",
        "hosted[1].quotas.team/**",
    )


def test_patterns_of_immutable_tags_match_tags(tmp_path: Path) -> None:
    """A pattern that no repository or no tag can match is a mistake; one that `except` takes back is a warning."""
    _expect(
        _mistakes(
            tmp_path,
            """
            [[hosted]]
            name = "corp"
            [[hosted.immutable]]
            tags = ["v*", "*/v*"]
            except = ["-*"]
            [[hosted.immutable]]
            repositories = ["corp/Team"]
            tags = []
            """,
        ),
        "hosted[1].immutable[1].tags[2]: '*/v*' matches no tag",
        "hosted[1].immutable[1].except[1]: '-*' matches no tag",
        "hosted[1].immutable[2].repositories[1]: 'corp/Team' matches no repository",
        "hosted[1].immutable[2].tags: ",
    )
    file = tmp_path / "mirror.toml"
    file.write_text(
        """
        [[hosted]]
        name = "corp"
        [[hosted.immutable]]
        tags = ["v*", "latest"]
        except = ["latest"]
        [[access.rule]]
        effect = "allow"
        callers = ["*"]
        actions = ["pull", "push"]
        """
    )
    assert hints(load(file)) == [
        "hosted[1].immutable[1].tags: latest makes no tag immutable, because of except",
    ]


def test_rules_of_retention(tmp_path: Path) -> None:
    """Each says what is wrong with it; those that do nothing, or more than was meant, are warned of."""
    _expect(
        _mistakes(
            tmp_path,
            """
            [[hosted]]
            name = "corp"
            [[hosted.retention]]
            repositories = ["**"]
            keep = [{}, { newest = 0 }, { by = "pulled" }, { prereleases = true }, { tags = ["a"], tags_regex = "b" }]
            delete = [{}, { tags = ["*"], newest = 3 }, { tags_regex = "(" }, { tags = ["/"] }]
            [[hosted.retention]]
            delete = []
            [hosting.retention]
            every = "1h"
            cron = "0 3 * * *"
            """,
        ),
        "hosted[1].retention[1].keep[1]: a keep rule needs a condition",
        "hosted[1].retention[1].keep[2].newest",
        "hosted[1].retention[1].keep[3]: by belongs to newest",
        "hosted[1].retention[1].keep[4]: prereleases belongs to newest_of_each_minor",
        "hosted[1].retention[1].keep[5]: tags and tags_regex exclude each other",
        "hosted[1].retention[1].delete[1]: needs tags or tags_regex",
        "hosted[1].retention[1].delete[2]: newest: what is to stay; write it in keep",
        "hosted[1].retention[1].delete[3]: not a regular expression: '('",
        "hosted[1].retention[1].delete[4].tags[1]: '/' matches no tag",
        "hosted[1].retention[2].repositories",
        "hosting.retention: every and cron exclude each other",
    )
    file = tmp_path / "mirror.toml"
    rule = '[[access.rule]]\neffect = "allow"\ncallers = ["*"]\nactions = ["pull", "push"]\n'
    file.write_text(
        f"""
        [[hosted]]
        name = "one"
        repositories = ["team/**"]
        keep_deleted = 0
        [[hosted.retention]]
        repositories = ["app"]
        delete = [{{ tags = ["*"] }}]
        [[hosted]]
        name = "two"
        [[hosted.retention]]
        repositories = ["**"]
        keep = [{{ tags = ["*"] }}]
        [[hosted]]
        name = "three"
        read_only = true
        [[hosted.retention]]
        repositories = ["**"]
        delete_untagged_after = "1d"
        {rule}
        """
    )
    assert hints(load(file)) == [
        "hosted[1].retention[1].delete[1]: deletes all tags *, of any age: there is no keep rule",
        "hosted[1].retention[1]: what it deletes cannot be undeleted, because of keep_deleted = 0",
        "hosted[1].retention[1].repositories: app is no repository that may be pushed to",
        "hosted[2].retention[1]: deletes nothing: it has neither delete nor delete_untagged_after",
        "hosted[2].retention[1].keep[1]: keeps every tag of these repositories, whatever delete says",
        "hosted[3].retention[1]: deletes nothing, because of read_only",
    ]


def test_hints_name_registries_that_are_pushed_to_and_open_to_all(tmp_path: Path) -> None:
    """The credentials of the pushes would serve every caller; a rule about pulls from there ends that."""
    file = tmp_path / "mirror.toml"
    rule = '[[access.rule]]\neffect = "allow"\ncallers = ["authenticated"]\nrepositories = ["{}/**"]\n'
    target = '[[upstream]]\nname = "b.example.com"\npush = true\n'
    login = 'username = "robot"\npassword = "secret"\n'
    for text, is_warned in (
        (target + login, True),
        (target + login + rule.format("docker.io"), True),
        (target + login + rule.format("b.example.com"), False),
        (target + login + rule.format("*"), False),
        (target, False),
        (target.replace("push = true\n", "") + login, False),
    ):
        file.write_text('[store]\nroot = "/x"\ncapacity = "1GB"\n[[upstream]]\nname = "docker.io"\n' + text)
        found = [
            hint for hint in hints(load(file)) if hint.startswith("upstream[2]: everybody may pull from b.example.com")
        ]
        assert bool(found) == is_warned, text


def test_hints_name_hosted_registries_that_no_rule_opens(tmp_path: Path) -> None:
    """Each action that nobody may do is named; a registry that is read-only needs no rule for pushes."""
    file = tmp_path / "mirror.toml"
    file.write_text(
        """
        [[hosted]]
        name = "corp"
        [[hosted]]
        name = "lab"
        [[hosted]]
        name = "archive"
        read_only = true
        [[access.rule]]
        effect = "allow"
        callers = ["*"]
        repositories = ["corp/**", "arch*/**", "la/**"]
        [[access.rule]]
        effect = "allow"
        callers = ["*"]
        actions = ["pull", "push"]
        repositories = ["*/team/**"]
        [[access.rule]]
        effect = "deny"
        callers = ["*"]
        actions = ["push"]
        """
    )
    # `la/**` is about no registry here, and so not about `lab` either
    assert hints(load(file)) == [
        "access.rule[1].repositories[3]: la/** matches no registry that is configured here",
    ]
    file.write_text(file.read_text().replace("*/team/**", "lab*/team/**").replace(', "la/**"', ""))
    assert [hint.partition(";")[0] for hint in hints(load(file))] == [
        "hosted[1]: no [[access.rule]] allows anybody to push"
    ]
    file.write_text(file.read_text().partition("[[access.rule]]")[0])
    assert [hint.partition(";")[0] for hint in hints(load(file))] == [
        "hosted[1]: no [[access.rule]] allows anybody to pull or push",
        "hosted[2]: no [[access.rule]] allows anybody to pull or push",
        "hosted[3]: no [[access.rule]] allows anybody to pull",
    ]


def test_no_mistake_is_made_up(tmp_path: Path) -> None:
    """A setting that is wrong by itself is not said to be missing as well."""
    _expect(_mistakes(tmp_path, '[server]\ntls_key = "/nowhere"\ntls_certificate = 5'), "server.tls_certificate: ")
    _expect(_mistakes(tmp_path, "[store]\nlow_water = 0.9\nhigh_water = 5"), "store.high_water: ")
    _expect(
        _mistakes(tmp_path, f'{_DOCKER}username = "me"\npassword_file = 5\n[[upstream]]\nurl = "http://x"'),
        "upstream[1].password_file: ",
        "upstream[2].name: must be set",
    )


@pytest.mark.parametrize("text", ["server = 5", "store = []", 'upstream = "x"', "upstream = [5]", "route = [5]"])
def test_of_another_shape(tmp_path: Path, text: str) -> None:
    """What is no section at all is one mistake."""
    name = text.partition(" ")[0]
    assert [one for one in _mistakes(tmp_path, text) if one.startswith(name)]


def test_what_would_only_show_later(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """What is well written and would fail at start, or at the first pull of an upstream."""
    plain = tmp_path / "plain"
    plain.write_text("neither JSON nor PEM")
    _expect(
        _mistakes(
            tmp_path,
            f"""
            [server]
            listen = ["127.0.0.1:5000", "127.0.0.1:0", "127.0.0.1:5000", "127.0.0.1:0"]
            tls_certificate = "{plain}"
            tls_key = "{plain}"
            [store]
            root = "{plain}"
            low_water = 0
            [[upstream]]
            name = "docker.io"
            url = "https://registry.example:99999"
            host_headers = ["Hub.example:5000", "[::1]:5000", "a host", ""]
            [[upstream]]
            name = "ghcr.io"
            host_headers = ["hub.example:5000"]
            docker_config = "{plain}"
            ca_file = "{plain}"
            token_hosts = ["https://tokens.example", "tokens.example:444", "of whom?"]
            [[upstream]]
            name = "*.gcr.io"
            host_headers = ["gcr.example"]
            [[route]]
            match = "docker.io"
            """,
        ),
        "server.listen: 127.0.0.1:5000 is there more than once",
        "server.tls_certificate, tls_key: ",
        f"store.root: {plain} is not a folder",
        "store.low_water: ",
        "upstream[1].url: ",
        "upstream[1].host_headers[3]: ",
        "upstream[1].host_headers[4]: ",
        f"upstream[2].docker_config: {plain}: not a docker config.json",
        f"upstream[2].ca_file: {plain} contains no certificate",
        "upstream[2].token_hosts[3]: ",
        "upstream[3]: host_headers: not possible for a wildcard",
        "route[1].match: 'docker.io' matches nothing",
    )
    hosts = '[[upstream]]\nname = "{}"\nhost_headers = ["hub.example"]\n'
    _expect(
        _mistakes(tmp_path, hosts.format("docker.io") + hosts.format("ghcr.io").replace("hub", "Hub")),
        "upstream[2].host_headers: Hub.example already belongs to upstream[1]",
    )
    _expect(_mistakes(tmp_path, "[server]\nlisten = []"), "server.listen: ")


def test_files_of_secrets(tmp_path: Path) -> None:
    """One that is gone, is empty or is no text is named, at an upstream and at a mirror of it; nothing is quoted."""
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("\n")
    binary.write_bytes(b"canary\xff")
    login = 'username = "me", password_file'
    text = f'{_DOCKER}username = "me"\npassword_file = "{empty}"\nproxy_file = "{tmp_path}/none"\n'
    text += f'endpoints = [{{url = "https://near.test", {login} = "{binary}"}}]'
    assert _mistakes(tmp_path, text) == [
        f"upstream[1].endpoints[1].password_file: {binary}: not text",
        f"upstream[1].password_file: {empty}: empty",
        f"upstream[1].proxy_file: {tmp_path}/none: No such file or directory",
    ]


def test_good_files(tmp_path: Path) -> None:
    """A certificate with its key, and a docker `config.json`."""
    certificate = Certificate(tmp_path)
    docker = tmp_path / "config.json"
    docker.write_text(json.dumps({"auths": {"https://index.docker.io/v1/": {"auth": "dTpw"}}}))
    text = f'[server]\ntls_certificate = "{certificate.certificate}"\ntls_key = "{certificate.key}"\n'
    text += f'{_DOCKER}docker_config = "{docker}"\nca_file = "{certificate.certificate}"'
    assert _mistakes(tmp_path, text) == []


def test_environment(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    """A list may be written without JSON; a name that means nothing is a mistake, like one in the file."""
    environment.setenv("MIRROR__SERVER__LISTEN", "127.0.0.1:7000, unix:/run/mirror.sock")
    assert load(None).server.listen == ["127.0.0.1:7000", "unix:/run/mirror.sock"]
    environment.setenv("MIRROR__SERVER__LISTEN", '["127.0.0.1:7000"]')
    assert load(None).server.listen == ["127.0.0.1:7000"]
    environment.setenv("MIRROR__SERVER__LISTEN", "7000")
    environment.setenv("MIRROR__STOR__CAPACITY", "5GB")
    environment.setenv("MIRROR__STORE__CAPACTY", "5GB")
    environment.setenv("MIRROR__UPSTREAM", "docker.io")
    _expect(
        _mistakes(tmp_path, "[store]\nlow_water = 7"),
        "server.listen",
        "MIRROR__STOR__CAPACITY: no such setting",
        "store.capacty: no such setting",
        "upstream: ",
        "store.low_water: ",
    )


def test_a_rule_about_a_registry_that_is_not_there(tmp_path: Path) -> None:
    """Most likely misspelled: the registry that it should close stays open. Wildcards and hosted names are known."""
    file = tmp_path / "mirror.toml"
    file.write_text(
        '[[hosted]]\nname = "corp"\n[[upstream]]\nname = "docker.io"\n[[upstream]]\nname = "*.pkg.dev"\n'
        '[[access.rule]]\neffect = "allow"\ncallers = ["authenticated"]\nactions = ["pull", "write"]\n'
        'repositories = ["dokcer.io/**", "docker.io/**", "corp/**", "eu.pkg.dev/a/**", "*.dev/x", "ghcr.io/a", '
        '"*/team/**"]\n'
    )
    assert hints(load(file)) == [
        "access.rule[1].repositories[1]: dokcer.io/** matches no registry that is configured here",
        "access.rule[1].repositories[6]: ghcr.io/a matches no registry that is configured here",
    ]


_VIRTUAL = """
[[upstream]]
name = "docker.io"
aliases = ["index.docker.io"]
[[upstream]]
name = "quay.io"
username = "mirror"
password = "word"
[[upstream]]
name = "*.gcr.io"
[[upstream]]
name = "private.example"
access = "verify"
[[hosted]]
name = "corp"
aliases = ["company"]
[[hosted]]
name = "base"
repositories = ["base/*"]
"""


def test_a_virtual_registry_that_can_work(tmp_path: Path) -> None:
    """Members by their aliases, and hosts below a wildcard; as the default registry."""
    more = """
        [[virtual]]
        name = "all"
        host_headers = ["images.example.com"]
        members = ["company", "index.docker.io", "quay.io", "eu.gcr.io"]
        writable = "company"
        reserved = ["team-*/**"]
        refusal_means_absent = ["quay.io"]
        """
    assert _mistakes(tmp_path, f'default_registry = "all"\n{_VIRTUAL}{more}') == []
    rules = virtual_rules(load(tmp_path / "mirror.toml"))["all"]
    assert [(one.registry, one.hosted, one.library, one.hides) for one in rules.members] == [
        ("corp", True, False, False),
        ("docker.io", False, True, False),
        ("quay.io", False, False, False),
        ("eu.gcr.io", False, False, False),
    ]
    assert rules.writable == "corp"
    assert _mistakes(tmp_path, f"{_VIRTUAL}{more}".replace('refusal_means_absent = ["quay.io"]', "")) == []
    assert virtual_rules(load(tmp_path / "mirror.toml"))["all"].member("quay.io").hides


def test_virtual_registries_that_cannot_work(tmp_path: Path) -> None:
    """Members that are not there, twice, virtual, or asked about every caller; names that are taken; a sync rule."""
    _expect(
        _mistakes(
            tmp_path,
            f"""
            {_VIRTUAL}
            [[virtual]]
            name = "all"
            members = ["corp", "nowhere.example", "company", "private.example"]
            writable = "docker.io"
            refusal_means_absent = ["corp", "quay.io"]
            [[virtual]]
            name = "more"
            aliases = ["corp"]
            members = ["all", "base"]
            writable = "corp"
            [[sync]]
            from = "all/team/app"
            every = "1h"
            """,
        ),
        "virtual[1].members[2]: nowhere.example is neither",
        "virtual[1].members[3]: company is there more than once",
        "virtual[1].members[4]: private.example has access = verify",
        "virtual[1].writable: docker.io is not one of its members",
        "virtual[1].refusal_means_absent[1]: corp",
        "virtual[1].refusal_means_absent[2]: quay.io",
        "virtual[2]: corp is already the name of hosted[1]",
        "virtual[2].members[1]: all is virtual itself",
        "virtual[2].writable: corp is not one of its members",
        "sync[1].from: all/team/app: all is virtual; name the image of a member",
    )
    for wrong in ("members = []", 'members = ["*.gcr.io"]', 'members = ["corp"]\nreserved = ["UP/**"]'):
        assert _mistakes(tmp_path, f'{_VIRTUAL}[[virtual]]\nname = "all"\n{wrong}\n')


def test_the_first_upstream_replaces_the_public_registries(tmp_path: Path) -> None:
    """Whoever adds one to push to it loses the others; the mistake says why."""
    mistakes = _mistakes(
        tmp_path,
        """
        [[upstream]]
        name = "site-b.example.com"
        push = true
        username = "site-a"
        password = "secret"
        [[hosted]]
        name = "corp"
        [[virtual]]
        name = "all"
        members = ["corp", "quay.io"]
        """,
    )
    _expect(mistakes, "default_registry: docker.io", "virtual[1].members[2]: quay.io")
    assert all("the public registries need one each, too" in mistake for mistake in mistakes)


def test_hints_about_virtual_registries(tmp_path: Path) -> None:
    """Patterns that are about nothing, a hosted member that stands late, and one in which every name can be taken."""
    file = tmp_path / "mirror.toml"
    file.write_text(
        f"""
        {_VIRTUAL}
        [content]
        deny = ["all/bad/**"]
        allow = ["**", "every/**"]
        [[virtual]]
        name = "all"
        aliases = ["every"]
        members = ["docker.io", "corp"]
        writable = "corp"
        [[virtual]]
        name = "good"
        members = ["base", "quay.io"]
        writable = "base"
        [[route]]
        match = "all/**"
        [[pin]]
        match = "all/team/app:*"
        [[access.rule]]
        effect = "allow"
        callers = ["*"]
        actions = ["pull", "push"]
        repositories = ["corp/**", "base/**", "all/**"]
        """
    )
    about = [hint for hint in hints(load(file)) if "virtual" in hint]
    _expect(
        about,
        "content.deny[1]: all/bad/**",
        "content.allow[2]: every/**",
        "route[1].match: all/**",
        "pin[1].match: all/team/app:*",
        "access.rule[1].repositories[3]: all/**",
        "virtual[1].members[2]: corp is hosted here",
        "virtual[1].writable: whoever may push to corp",
    )


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("[server]\nworkers = 'two'", "server.workers: must be a whole number"),
        ("[server]\nworkers = 0", "server.workers: must be 1 or more"),
        ("[server]\nworkers = 65", "server.workers: must be 64 or less"),
        ("[server]\nlisten = []", "server.listen: must not be empty"),
        ("[store]\nroot = 5", "store.root: must be a path in quotes"),
        ("[store]\nhigh_water = 'high'", "store.high_water: must be a number"),
        ("[store]\nhigh_water = 0", "store.high_water: must be more than 0"),
        ("[access]\nanonymous = 'perhaps'", "access.anonymous: must be true or false"),
        ("[access]\ntoken_lifetime = '5s'", "access.token_lifetime: must be 1m or more"),
        ("default_registry = 5", "default_registry: must be a text in quotes"),
        ("server = 5", "server: must be a table: write [server]"),
        ("[[server]]", "server: must be a table: write [server]"),
        ("[access]\ngroups = 5", "access.groups: must be a table: write [access.groups]"),
        ("[upstream]\nname = 'docker.io'", "upstream: must be a list: write [[upstream]]"),
        ("[route]\nmatch = '**'", "route: must be a list: write [[route]]"),
        ("[access.rule]\neffect = 'allow'", "access.rule: must be a list: write [[access.rule]]"),
        ("[[route]]\nmatch = '**'\nranges = 'early'", "route[1].ranges: must be 'verified' or 'lazy'"),
    ],
)
def test_a_wrong_value_is_told_in_words_of_the_file(tmp_path: Path, text: str, mistake: str) -> None:
    _expect(_mistakes(tmp_path, text), mistake)


def test_no_setting_answers_in_words_of_the_program() -> None:
    """Whatever a setting is set to, its mistakes speak of neither inputs nor dictionaries nor classes."""
    wrong: list[object] = ["no?", "", -1, 10**9, 1.5, float("nan"), True, [], ["x"], [{}], {}, {"a": 1}, [[1]]]
    words = re.compile(r"[Ii]nput|<class|Value error|dictionary|instance of|boolean|integer|valid (string|list|number)")
    said = set()
    for path in _settings(Config):
        for value in wrong:
            content = _nested(path, value)
            try:
                Config.model_validate(content)
            except ValidationError as error:
                said |= {in_plain_words(detail, detail["loc"], content) for detail in error.errors()}
    assert len(said) > 50
    assert [text for text in said if words.search(text)] == []


@pytest.mark.parametrize("address", ["https://joe:sec/ret@host:1", "s3://joe:secret@host", "dns+http://joe:secret@h:1"])
def test_no_setting_answers_with_the_password_of_an_address(address: str) -> None:
    """Also where no address is expected, or none with a password."""
    for path in _settings(Config):
        for value in (address, [address]):
            content = _nested(path, value)
            try:
                Config.model_validate(content)
            except ValidationError as error:
                said = [in_plain_words(detail, detail["loc"], content) for detail in error.errors()]
                assert [text for text in said if re.search("sec(/|ret[^_])", text)] == []


def _settings(table: type[BaseModel], *above: str) -> Iterator[tuple[str, ...]]:
    """The path of each setting; tables and lists of tables are settings as well. `[]` stands for an entry of a list."""
    for name, field in table.model_fields.items():
        yield (*above, name)
        for below in _tables(field.annotation):
            is_listed = get_origin(field.annotation) not in (None, dict)
            yield from _settings(below, *above, name, *(["[]"] if is_listed else []))


def _nested(path: Sequence[str], value: object) -> dict[str, Any]:
    for part in reversed(path):
        value = [value] if part == "[]" else {part: value}
    assert isinstance(value, dict)
    return value


def _tables(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _tables(part)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "mirror.toml"
    file.write_bytes(b"[server]\n\xa4")
    with pytest.raises(ConfigError, match="not TOML: not UTF-8 at byte 9"):
        load(file)


_FILE_SETTINGS = """
    [server]
    tls_certificate = {file}
    tls_key = {file}
    [access]
    htpasswd = {file}
    client_ca = {file}
    token_key_file = {file}
    [[access.issuer]]
    name = "ci"
    issuer = "https://ci.example"
    audience = "mirror"
    keys_file = {file}
    [[upstream]]
    name = "docker.io"
    ca_file = {file}
    docker_config = {file}
    client_certificate = {file}
    client_key = {file}
    [[events.endpoint]]
    name = "ci"
    url = "https://ci.example"
    secret_file = {file}
    ca_file = {file}
    """


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent", "No such file or directory"),
        ("folder", "it is a folder"),
        ("file/below", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("zero\0", "embedded null byte"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    """Every file that the configuration names, not only secrets."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    file = str(tmp_path / name)
    written = _FILE_SETTINGS.format(file=json.dumps(file))
    said = [one for one in _mistakes(tmp_path, written) if "cannot be read" in one]
    assert len(said) == 12, said
    assert [one for one in said if f"{file} cannot be read: {reason}" not in one] == []


def test_what_was_meant(tmp_path: Path) -> None:
    """A slip of the keys, and a setting below the wrong heading; nothing is guessed about others."""
    text = """
        endpoints = []
        [servr]
        [server]
        listn = ["127.0.0.1:0"]
        capacity = "5GB"
        frobnicate = 1
        [[upstream]]
        name = "docker.io"
        user_name = "me"
        [[upstream.endpoints]]
        url = "https://near.example"
        cafile = "ca.pem"
        """
    assert sorted(_mistakes(tmp_path, text)) == [
        "endpoints: no such setting; there is one in [[upstream]]",
        "server.capacity: no such setting; there is one in [store]",
        "server.frobnicate: no such setting",
        "server.listn: no such setting; did you mean listen?",
        "servr: no such setting; did you mean server?",
        "upstream[1].endpoints[1].cafile: no such setting; did you mean ca_file?",
        "upstream[1].user_name: no such setting; did you mean username?",
    ]


@pytest.mark.parametrize("pattern", ["nginx", "nginx:1.27", "*", f"nginx@sha256:{'0' * 64}", "docker.io:**"])
def test_images_that_no_repository_has(tmp_path: Path, pattern: str) -> None:
    """A list that denies nothing is not taken silently."""
    [mistake] = _mistakes(tmp_path, f'[content]\ndeny = ["{pattern}"]')
    assert mistake == (
        f"content.deny[1]: '{pattern}' matches nothing: write registry/name (* matches within one part, ** anything)"
    )
    assert _mistakes(tmp_path, f'[content]\ndeny = ["**@sha256:{"0" * 64}", "**", "**:1", "docker.io/**:1"]') == []


def test_addresses_and_names_that_are_nearly_right(tmp_path: Path) -> None:
    """The message says what is wrong with them."""
    text = """
        [server]
        listen = ["0.0.0.0:70000", ":5000", "5000"]
        [[hosted]]
        name = "Corp"
        [[upstream]]
        name = "https://registry-1.docker.io"
        """
    mistakes = _mistakes(tmp_path, text)
    for beginning in (
        "server.listen[1]: 70000 is no port: the highest is 65535",
        "server.listen[2]: no address: ':5000'; all addresses of this machine are 0.0.0.0:5000",
        "server.listen[3]: no address: '5000'; all addresses of this machine are 0.0.0.0:5000",
        "hosted[1].name: not the name of a registry: 'Corp'; write it in small letters",
        "upstream[1].name: not the name of a registry: 'https://registry-1.docker.io'; write the name alone",
    ):
        assert [one for one in mistakes if one.startswith(beginning)], mistakes


def test_a_url_with_the_path_of_the_api(tmp_path: Path) -> None:
    """Every pull would be 404, because the mirror asks below /v2/ by itself."""
    file = tmp_path / "mirror.toml"
    file.write_text('[[upstream]]\nname = "docker.io"\nurl = "https://registry-1.docker.io/v2/"\n')
    assert hints(load(file)) == ["upstream[1].url: leave out /v2 at its end: the mirror adds it itself"]


@pytest.mark.parametrize("value", ["5GB", "lots", "80%", "10m"])
def test_a_value_without_quotes(tmp_path: Path, value: str) -> None:
    """The most frequent mistake in TOML; other errors of its syntax have nothing to do with quotes."""
    [mistake] = _mistakes(tmp_path, f"[store]\ncapacity = {value}\n")
    assert mistake.endswith("; sizes, durations and texts are in quotes")
    [mistake] = _mistakes(tmp_path, "[store\n")
    assert "are in quotes" not in mistake
