"""Documents as text: what they say survives, comments stay, and a mistake has a line."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_worlds import policies

from ringfence import documents
from ringfence.policy import (
    FilesystemAccess,
    InvalidPolicy,
    NetworkAccess,
    PolicyDocument,
    Rule,
    Sources,
    compose,
    document_record,
    parse_document,
)
from ringfence.policy.report.checks import run_checks
from ringfence.policy.report.presets import PRESETS, find_preset, groups, switch
from ringfence.policy.report.schema import json_schema

SCHEMA = Path(__file__).parents[2] / "docs" / "policy.schema.json"
PRESET_FILES = sorted(resources.files("ringfence").joinpath("presets").iterdir(), key=lambda path: path.name)

WRITTEN = """\
# who wrote this, and why
version: 1
name: team
rules:
  - name: registry   # the one we use
    effect: allow
    # both spellings were asked for
    resources:
      - Registry.NPMJS.org.:443 # packages
      - '*.example.com' # quoted by hand
    transports: [tcp]
  - effect: deny
    resources: ["**:25"]
    expires_at: 2026-01-31T12:00:00+01:00
tests:
  must_allow:
    - registry.npmjs.org # a target without a port
  must_block:
    - target: mail.test:25
      rule: rule-2
"""

FORMATTED = """\
# who wrote this, and why
version: 1
name: team
rules:
  - name: registry   # the one we use
    effect: allow
    # both spellings were asked for
    resources:
      - registry.npmjs.org:443  # packages
      - '*.example.com' # quoted by hand
  - effect: deny
    resources: ["**:25"]
    expires_at: '2026-01-31T11:00:00Z'
tests:
  must_allow:
    - registry.npmjs.org:443 # a target without a port
  must_block:
    - target: mail.test:25
      rule: rule-2
"""


def test_formatting_makes_canonical_and_keeps_comments() -> None:
    assert documents.format_text(WRITTEN) == FORMATTED
    assert documents.format_text(FORMATTED) == FORMATTED
    assert documents.load(FORMATTED) == documents.load(WRITTEN)


@pytest.mark.parametrize(
    "text",
    [
        "rules:\n  - {effect: allow, resources: [A.test, a.test]} # doubled\n",
        "rules: []\n",
        "{}\n",
        "",
        "name: x\n",
        'rules:\n  - effect: allow\n    resources:\n      - "[2001:db8::1]:443"\n      - "::/0"\n',
        "rules:\n  - {effect: deny, kind: filesystem, resources: [~/.ssh/**, '~/x']}\n",
        "tests: {must_block: [{path: /x, action: write}]}\n",
    ],
)
def test_formatting_says_the_same_and_is_idempotent(text: str) -> None:
    once = documents.format_text(text)
    assert documents.load(once) == documents.load(text)
    assert documents.format_text(once) == once


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies)
def test_print_then_parse_is_the_identity(rules: list[Rule]) -> None:
    document = PolicyDocument(name="n", rules=tuple(rules))
    assert documents.load(documents.dump(document)) == document
    assert parse_document(json.loads(json.dumps(document_record(document)))) == document


MISTAKES = [
    ("rules:\n  - effect: allow\n    resources: [*.x.com]\n", 3, 17, "in quotes"),
    (
        "rules:\n  - effect: allow\n    resources:\n      - a.com\n      - b c.com\n",
        5,
        9,
        "`b c.com` has a space",
    ),
    ("rules: [\n", 2, 1, ""),
    ("rules:\n - effect: alow\n   resources: [a.com]", 2, 12, "`alow` is not one of"),
    ("name: a\nname: b", 2, 1, "duplicate key"),
    ("rules:\n - {effect: allow, resources: [8080]}", 2, 32, "`8080` is not text"),
    ("rules:\n - {effect: allow, resources: [a.com], budget: {bytes_per_day: x}}", 2, 64, "not a count"),
    ("rules:\n - a.com\n", 2, 4, "is not a mapping"),
    ("rules: a.com\n", 1, 8, "`rules` is not a list"),
    ("version: 2\n", 1, 10, "is not known"),
    ("version: true\n", 1, 10, "is not known"),
    ("- a\n", 0, 0, "is not a mapping"),
    ("policies: []\n", 0, 0, "unknown key `policies`"),
    (
        "rules:\n - {name: a, effect: deny, resources: [a.b]}\n - {name: a, effect: deny, resources: [a.c]}",
        3,
        4,
        "a second rule",
    ),
    ("tests: {must_allow: [a.com, 'a b']}", 1, 29, "`a b` holds a character"),
    ("tests: {must_have: [a.com]}", 1, 8, "unknown key"),
    ("tests: {must_allow: [{rule: x}]}", 1, 22, "neither a target nor a path"),
    ("tests: {must_allow: [{target: a.com, path: /x}]}", 1, 22, "neither a target nor a path"),
    ("a: &x [1]\nb: *x\n", 2, 4, "alias"),
    ("\x00", 0, 0, "not YAML"),
    ("a: b: c", 1, 5, ""),
    ("[" * 5000, 0, 0, "nested too deep"),
    ("- " * 3000, 0, 0, "not YAML"),
]


@pytest.mark.parametrize(("text", "line", "column", "wrong"), MISTAKES)
def test_a_mistake_has_a_place_and_a_message(text: str, line: int, column: int, wrong: str) -> None:
    with pytest.raises(documents.InvalidDocument) as caught:
        documents.load(text)
    assert wrong in caught.value.message
    assert (caught.value.line, caught.value.column) == (line, column)
    assert "\n" not in caught.value.message


def test_a_document_of_any_size_is_too_large() -> None:
    with pytest.raises(documents.InvalidDocument, match="more than 32 MiB"):
        documents.load("#" * (documents.DOCUMENT_BYTES + 1))


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="rules:-{}[]&*!#'\"\n effctalowdny.,|>", max_size=200))
def test_any_text_is_a_document_or_refused(text: str) -> None:
    with suppress(documents.InvalidDocument):
        documents.load(text)


def test_comments_are_not_lost_when_values_change() -> None:
    text = "rules:\n  - effect: allow # why\n    resources:\n      - A.test # one\n      - B.test # two\n"
    formatted = documents.format_text(text)
    for comment in ("# why", "# one", "# two"):
        assert comment in formatted


def test_differences() -> None:
    old = """\
rules:
  - {name: a, effect: allow, resources: [a.test, b.test]}
  - {name: b, effect: deny, resources: [c.test]}
"""
    new = """\
rules:
  - {name: a, effect: allow, resources: [b.test, d.test], inspect: never}
  - {name: n, effect: allow, resources: [e.test], methods: [GET]}
"""
    found = documents.diff(old, new)
    assert found.lines() == (
        "- b: deny c.test",
        "~ a: resources without a.test",
        "~ a: resources with d.test",
        "~ a: inspect unset → `never`",
        "+ n: allow e.test GET /**",
    )
    assert not documents.diff(old, "# comment\n" + old)
    assert found


def test_validation_tells_what_an_administrator_should_know() -> None:
    text = """\
rules:
  - {name: all, effect: allow, resources: ["**"]}
  - {name: uk, effect: allow, resources: ["*.co.uk"]}
"""
    warned = documents.validate(text, is_public_suffix={"co.uk"}.__contains__)
    assert [line.partition(":")[0] for line in warned] == ["all", "uk"]


CHECKED = """\
rules:
  - {name: ai, effect: allow, resources: [api.test:443]}
  - {name: gh, effect: allow, resources: [gh.test], methods: [GET], paths: ["/repos/**"]}
  - {name: no, effect: deny, resources: [paste.test]}
  - {name: keys, effect: deny, kind: filesystem, resources: [/keys/**]}
tests:
  must_allow:
"""


@pytest.mark.parametrize(
    ("check", "failure"),
    [
        ("must_allow: [api.test]", ""),
        ("must_allow: [{target: api.test, rule: ai}]", ""),
        (
            "must_allow: [{target: api.test, rule: gh}]",
            "asked api.test:443, expected allowed by `gh`, got allowed",
        ),
        (
            "must_allow: ['api.test:80']",
            "asked api.test:80, expected allowed, got blocked (no matching allow rule",
        ),
        (
            "must_allow: [{target: api.test, transport: udp}]",
            "asked udp api.test:443, expected allowed, got blocked",
        ),
        ("must_allow: [https://gh.test/repos/x]", ""),
        (
            "must_allow: [{target: https://gh.test/repos/x, method: POST}]",
            "asked POST https://gh.test:443/repos/x",
        ),
        ("must_allow: [gh.test]", "asked gh.test:443, expected allowed, got undetermined"),
        ("must_block: [gh.test]", "asked gh.test:443, expected blocked, got undetermined"),
        ("must_block: [example.com]", ""),
        ("must_block: [{target: paste.test, rule: no}]", ""),
        (
            "must_block: [{target: example.com, rule: no}]",
            "expected blocked by `no`, got blocked (no matching",
        ),
        (
            "must_block: [api.test]",
            "asked api.test:443, expected blocked, got allowed (allowed by rule `ai` (local))",
        ),
        ("must_block: [{path: /keys/x}]", ""),
        (
            "must_allow: [{path: /keys/x, action: write}]",
            "asked write /keys/x, expected allowed, got blocked",
        ),
        ("must_block: [169.254.169.254]", ""),
    ],
)
def test_a_documents_own_tests(check: str, failure: str) -> None:
    document = documents.load(CHECKED.replace("tests:\n  must_allow:\n", f"tests: {{{check}}}\n"))
    policy = compose(Sources(local=document.rules), revision=1, now=0.0)
    failures = run_checks(policy, document.checks, now=0.0)
    assert [str(found).startswith(failure) or failure in str(found) for found in failures] == (
        [True] if failure else []
    )


def test_checks_are_printed_and_read_back() -> None:
    text = """\
tests:
  must_allow: [a.test, {target: https://a.test/x, method: PUT, rule: r}, {target: a.test, transport: udp}]
  must_block: [{path: /x}, {path: /y, action: write, rule: q}, "[2001:db8::1]:80"]
"""
    document = documents.load(text)
    assert documents.load(documents.dump(document)) == document
    assert [type(check.access) for check in document.checks] == [NetworkAccess] * 3 + [
        FilesystemAccess
    ] * 2 + [NetworkAccess]


@pytest.mark.parametrize("file", PRESET_FILES, ids=lambda file: file.name)
def test_a_preset_is_a_document_in_canonical_form(file) -> None:
    text = file.read_text(encoding="utf-8")
    document = documents.load(text)
    assert documents.format_text(text) == text
    assert f"{document.name}.yaml" == file.name
    policy = compose(Sources(preset=document.rules), revision=1, now=0.0)
    assert run_checks(policy, document.checks, now=0.0) == ()
    assert all(rule.name.startswith("default-") for rule in document.rules)


@pytest.mark.parametrize("file", PRESET_FILES, ids=lambda file: file.name)
def test_every_entry_of_a_preset_has_its_reason_beside_it(file) -> None:
    entries = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("      - ")]
    assert [line for line in entries if " # " not in line] == []
    assert len(entries) == sum(len(rule.resources) for rule in documents.load(file.read_text()).rules)


def test_every_preset_has_its_file() -> None:
    assert {file.name for file in PRESET_FILES} == {f"{preset.value}.yaml" for preset in PRESETS}
    assert documents.preset_document("open") is documents.preset_document("open")
    assert documents.ShippedPresets().rules("deny-all") == ()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("balanced", "balanced"),
        ("Balanced", "balanced"),
        ("open", "allow-all"),
        ("allow-all", "allow-all"),
        ("Locked Down", "deny-all"),
        ("locked-down", "deny-all"),
        ("deny-all", "deny-all"),
    ],
)
def test_presets_by_every_name(text: str, value: str) -> None:
    assert find_preset(text).value == value


def test_a_preset_that_is_none() -> None:
    with pytest.raises(InvalidPolicy, match="is no preset") as caught:
        find_preset("strict")
    assert "`balanced`" in caught.value.hint


def test_balanced_has_five_groups_and_two_parts() -> None:
    found = groups(documents.preset_document("balanced").rules, frozenset({"default-os-packages"}))
    assert [group.name for group in found] == [
        "default-ai-services",
        "default-package-managers",
        "default-code-and-containers",
        "default-cloud-infrastructure",
        "default-os-packages",
    ]
    parts = [part for group in found for part in group.parts]
    assert [(part.name, part.enabled) for part in parts] == [
        ("default-cloud-infrastructure/storage", True),
        ("default-os-packages/cert-validation", False),
    ]
    assert [group.enabled for group in found] == [True, True, True, True, False]
    assert all(group.description for group in [*found, *parts])


def test_only_storage_has_wildcards_that_anybody_can_own() -> None:
    rented = (
        "amazonaws.com",
        "googleapis.com",
        "core.windows.net",
        "cloudflarestorage.com",
        "vercel.app",
        "cloudfront.net",
    )
    for rule in documents.preset_document("balanced").rules:
        wild = [r.text for r in rule.resources if r.shape != "exact" and r.host.endswith(rented)]
        assert not wild or rule.name == "default-cloud-infrastructure/storage"


def test_switching() -> None:
    rules = documents.preset_document("balanced").rules
    off = switch(rules, frozenset(), "default-cloud-infrastructure/storage", on=False)
    assert off == {"default-cloud-infrastructure/storage"}
    assert switch(rules, off, "default-os-packages", on=False) == off | {"default-os-packages"}
    assert switch(rules, off, "default-cloud-infrastructure/storage", on=True) == frozenset()
    with pytest.raises(InvalidPolicy, match="no group `default-nothing`"):
        switch(rules, off, "default-nothing", on=False)


def test_the_published_schema_is_fresh() -> None:
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json_schema(), (
        "write what `ringfence.documents.schema_text()` returns to docs/policy.schema.json"
    )


def test_the_schema_knows_what_the_parser_knows() -> None:
    rule = json_schema()["properties"]["rules"]["items"]["properties"]
    with pytest.raises(InvalidPolicy) as caught:
        parse_document({"rules": [{"unheard": 1}]})
    assert all(f"`{key}`" in caught.value.hint for key in rule)
