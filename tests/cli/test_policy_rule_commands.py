"""Rules on the command line: listed, added, removed, asked about, explained, as documents."""

from __future__ import annotations

import json
import sys
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
from fake_daemon import CREATED, FakeDaemon, rule, sandbox
from stage import OpenTerminal, Sbx

ID = "9701dc6e-0000-4000-8000-000000000001"
INACTIVE = (
    "inactive — corporate policy takes precedence and does not delegate this rule type to local policy."
)


def balanced() -> list[dict[str, Any]]:
    return [
        rule("default-ai-services", "api.anthropic.com:443", "**.openai.com:443", origin="preset"),
        rule("default-package-managers", "pypi.org:443", "files.pythonhosted.org:443", origin="preset"),
    ]


def test_ls_has_four_columns_and_ones_own_rules_at_the_bottom(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.rules = [rule(ID, "pypi.org", decision="deny"), *balanced()]
    ran = sbx("policy", "ls")
    assert ran.out.splitlines() == [
        f"{'NAME':<42}   TYPE      DECISION   RESOURCES",
        f"{'default-ai-services':<42}   network   allow      api.anthropic.com:443, **.openai.com:443",
        f"{'default-package-managers':<42}   network   allow      pypi.org:443, files.pythonhosted.org:443",
        f"local:{ID}   network   deny       pypi.org",
    ]
    assert ran.err == ""


def test_parts_stand_in_the_row_of_their_group_and_storage_is_named(sbx: Sbx, daemon: FakeDaemon) -> None:
    storage = "default-cloud-infrastructure/storage"
    daemon.rules = [
        rule("default-cloud-infrastructure", "fastly.com:443", origin="preset"),
        rule(storage, "**.amazonaws.com:443", origin="preset"),
        rule("default-os-packages", "ubuntu.com:443", origin="preset"),
        rule("default-os-packages/cert-validation", "r3.o.lencr.org:80", origin="preset", active=False),
    ]
    ran = sbx("policy", "ls")
    assert ran.out.splitlines()[1:] == [
        "default-cloud-infrastructure   network   allow      fastly.com:443, **.amazonaws.com:443",
        "default-os-packages            network   allow      ubuntu.com:443",
    ]
    assert ran.err == (
        f"Warning: data can leave through `{storage}`, where anybody can own a bucket; "
        f"switch it off with `sbx policy preset disable {storage}`\n"
    )
    assert storage in sbx("policy", "ls", "--wide").out


def test_seed_lesson_deny_see_remove(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.rules = balanced()
    assert sbx("policy", "deny", "network", "pypi.org").out == (
        f"Rule added to policy local (scope: global): {ID} (pypi.org [tcp,udp])\n"
    )
    last = sbx("policy", "ls").out.splitlines()[-1]
    assert last.split() == [f"local:{ID}", "network", "deny", "pypi.org"]
    assert (
        sbx("policy", "rm", "network", "--id", ID).out == f"Rule removed from policy local: {ID} (pypi.org)\n"
    )
    assert "local:" not in sbx("policy", "ls").out
    again = sbx("policy", "rm", "network", "--id", ID)
    assert (again.code, again.err.splitlines()[0]) == (3, "Error: rule not found")
    assert sbx("policy", "rm", "network", "--id", ID, "-f").code == 0


def test_rm_takes_the_id_with_its_prefix_and_the_resource(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.rules = [rule(ID, "pypi.org", decision="deny"), rule("other", "a.org", "b.org")]
    assert sbx("policy", "rm", "network", "--id", f"local:{ID}").code == 0
    assert sbx("policy", "rm", "network", "--resource", "a.org", "--resource", "b.org").code == 0
    assert daemon.rules == []


def test_a_rule_of_the_preset_is_not_removed(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.rules = balanced()
    ran = sbx("policy", "rm", "network", "--id", "default-ai-services")
    assert ran.code == 2
    assert "Hint: sbx policy preset disable default-ai-services" in ran.err
    assert len(daemon.rules) == 2


def test_ls_shows_what_narrows_a_rule(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.sandboxes["lab"] = sandbox("lab")
    daemon.rules = [
        rule("1", "api.github.com", methods=["GET", "HEAD"], paths=["/repos/**"], expires_at=CREATED + 60),
        rule("2", "**", decision="deny", transports=["udp"], mode="evaluate", name="no udp"),
        rule("3", "a.org", origin="sandbox:lab"),
        rule("4", "git.example.com", inspect="never"),
    ]
    assert sbx("policy", "ls", "lab").out == (
        "NAME      TYPE      DECISION   RESOURCES\n"
        "local:3   network   allow      a.org (sandbox lab)\n"
        "local:1   network   allow      api.github.com (GET,HEAD /repos/**; until 2026-04-30 13:05:05)\n"
        "no udp    network   deny       ** (udp; evaluate only)\n"
        "local:4   network   allow      git.example.com (inspect never)\n"
    )
    assert "a.org" not in sbx("policy", "ls").out


def test_a_catch_all_is_never_passed_over_in_silence(sbx: Sbx, daemon: FakeDaemon) -> None:
    storage = "data can leave through `**.amazonaws.com:443`; `sbx policy preset disable …/storage`"
    daemon.rules = [
        rule("1", "**", "::/0"),
        rule("2", "**", decision="deny"),
        rule("default-cloud", "**.amazonaws.com:443", origin="preset", warnings=[storage]),
    ]
    switches = "in rule `local:1` switches default deny off: everything it covers is allowed but for denies"
    assert sbx("policy", "ls").err == (
        f"Warning: `**` {switches}\nWarning: `::/0` {switches}\nWarning: {storage}\n"
    )
    assert sbx("policy", "ls", "--json").err == ""


def test_ls_under_an_organisation(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.governance = {"organization": "acme", "last_synced": CREATED, "enforcement": "advisory"}
    daemon.rules = [
        rule("default-ai-services", "api.anthropic.com:443", origin="preset", status=INACTIVE, active=False),
        rule(
            "r1", "api.anthropic.com:443", "*.googleapis.com:443", origin="remote", name="allow AI services"
        ),
        rule("r2", "paste.ee", "pastebin.com", decision="deny", origin="remote", name="deny exfiltration"),
    ]
    span = len(INACTIVE)
    before = " " * len("default-ai-services   network   preset   allow      ")
    assert sbx("policy", "ls").out.splitlines() == [
        "Governance: managed by acme",
        "last synced 2026-04-30 13:04:05",
        "enforcement: advisory",
        f"NAME                  TYPE      ORIGIN   DECISION   {'STATUS':<{span}}   RESOURCES",
        f"allow AI services     network   remote   allow      {'active':<{span}}   api.anthropic.com:443",
        f"{before}{'':<{span}}   *.googleapis.com:443",
        f"deny exfiltration     network   remote   deny       {'active':<{span}}   paste.ee",
        f"{before}{'':<{span}}   pastebin.com",
        f"default-ai-services   network   preset   allow      {INACTIVE}   api.anthropic.com:443",
    ]


@pytest.mark.parametrize(
    ("governance", "head"),
    [
        (
            {"organization": "acme", "state": "expired", "last_synced": 0},
            "Governance: expired (acme)\nnever synced\n",
        ),
        (
            {"organization": "a\x1b[2J", "last_synced": "13:54:21"},
            "Governance: managed by a\\x1b[2J\nlast synced 13:54:21\n",
        ),
    ],
)
def test_the_governance_header(sbx: Sbx, daemon: FakeDaemon, governance: dict[str, Any], head: str) -> None:
    daemon.governance = governance
    assert sbx("policy", "ls").out.startswith(head)


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        ([], {"default-ai-services", "default-package-managers", "a", "b"}),
        (["--source", "local"], {"a", "b"}),
        (["--source", "preset", "--decision", "allow"], {"default-ai-services", "default-package-managers"}),
        (["--decision", "deny"], {"b"}),
        (["--type", "filesystem"], set()),
        (["--type", "network", "--source", "org"], set()),
    ],
)
def test_ls_filters(sbx: Sbx, daemon: FakeDaemon, filters: list[str], ids: set[str]) -> None:
    daemon.rules = [*balanced(), rule("a", "a.org"), rule("b", "b.org", decision="deny")]
    found = json.loads(sbx("policy", "ls", "--json", *filters).out)
    assert {listed["id"] for listed in found["rules"]} == ids
    if not ids:
        assert sbx("policy", "ls", *filters).out == "No policies match the selected filters.\n"


def test_ls_hides_what_does_not_count_unless_asked(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.rules = [rule("1", "a.org"), rule("2", "b.org", active=False, status="expired")]
    assert "b.org" not in sbx("policy", "ls").out
    assert sbx("policy", "ls", "--include-inactive").out == (
        "NAME      TYPE      DECISION   STATUS    RESOURCES\n"
        "local:1   network   allow      active    a.org\n"
        "local:2   network   allow      expired   b.org\n"
    )


def test_ls_before_anything_was_chosen(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.preset = None
    assert sbx("policy", "ls").out == (
        "No policy has been chosen yet: nothing is allowed. Choose one with `sbx policy init`.\n"
    )


def test_on_a_terminal_resources_are_wrapped_to_it(terminal: OpenTerminal, daemon: FakeDaemon) -> None:
    daemon.rules = [rule("default-x", *(f"host{n}.example.com:443" for n in range(9)), origin="preset")]
    screen = terminal("policy", "ls")
    assert screen.end() == 0
    lines = screen.screen.splitlines()
    assert len(lines) > 4
    assert all(line.startswith(" " * 30) for line in lines[2:])


ADDED: list[tuple[list[str], dict[str, Any]]] = [
    (["allow", "network", "a.org", "b.org"], {"effect": "allow", "resources": ["a.org", "b.org"]}),
    (["allow", "network", "a.org,b.org"], {"effect": "allow", "resources": ["a.org,b.org"]}),
    (["deny", "network", "a.org\nb.org\n"], {"effect": "deny", "resources": ["a.org\nb.org\n"]}),
    (["allow", "network", "--resource", "a.org"], {"effect": "allow", "resources": ["a.org"]}),
    (["allow", "network", "-g", "a.org"], {"effect": "allow", "resources": ["a.org"]}),
    (["allow", "network", "localhost:11434"], {"effect": "allow", "resources": ["localhost:11434"]}),
    (
        ["deny", "network", "a.org", "--protocol", "tcp", "--protocol=udp", "--name", "deny exfiltration"],
        {"effect": "deny", "resources": ["a.org"], "transports": ["tcp", "udp"], "name": "deny exfiltration"},
    ),
    (
        [
            *("allow", "network", "--method", "GET,HEAD", "--path", "/repos/**"),
            *("--for", "1h30m", "--mode=evaluate", "--inspect", "never", "a.org"),
        ],
        {
            "effect": "allow",
            "resources": ["a.org"],
            "methods": ["GET", "HEAD"],
            "paths": ["/repos/**"],
            "expires_in": 5400,
            "mode": "evaluate",
            "inspect": "never",
        },
    ),
]


@pytest.mark.parametrize(("arguments", "body"), ADDED)
def test_what_is_typed_is_what_is_asked(
    sbx: Sbx, daemon: FakeDaemon, arguments: list[str], body: Any
) -> None:
    assert sbx("policy", *arguments).code == 0
    assert daemon.asked("POST /v1/policy/rules") == [body]


def test_a_rule_for_one_sandbox_says_so(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.sandboxes["lab"] = sandbox("lab")
    assert sbx("policy", "allow", "network", "--sandbox", "lab", "a.org").out == (
        f"Rule added to policy local (scope: sandbox:lab): {ID} (a.org [tcp])\n"
    )


def test_ten_thousand_resources_are_one_request(sbx: Sbx, daemon: FakeDaemon) -> None:
    names = [f"host{n}.example.com" for n in range(10_000)]
    assert sbx("policy", "deny", "network", ",".join(names)).code == 0
    assert daemon.asked("POST /v1/policy/rules")[0]["resources"] == [",".join(names)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["allow", "network"], "name what the rule is about"),
        (["allow"], "Usage"),
        (["allow", "web", "x"], "no such command `web`"),
        (["allow", "network", "a b"], "`a b` has a space"),
        (["allow", "network", ""], "has a space"),
        (["allow", "network", "--for", "soon", "a.org"], "`soon` is no duration; write for example 30m"),
        (["allow", "network", "--for", "0s", "a.org"], "a duration of nothing"),
        (["allow", "network", "--mode", "maybe", "a.org"], "'maybe' is not one of 'enforce', 'evaluate'"),
        (["allow", "network", "-g", "--sandbox", "x", "a.org"], "--sandbox and --global contradict"),
        (["rm", "network"], "say which rule with --id or --resource"),
        (["check", "network"], "missing argument 'TARGET'"),
        (["import", "/nowhere"], "the document `/nowhere` cannot be read: No such file or directory"),
        (["fmt", "-w", "-"], "--write needs a file"),
        (["init", "most"], "`most` is no preset; there are allow-all, balanced and deny-all"),
    ],
)
def test_bad_input_adds_nothing(sbx: Sbx, daemon: FakeDaemon, arguments: list[str], says: str) -> None:
    ran = sbx("policy", *arguments)
    assert ran.code == 2
    assert says in ran.err
    assert daemon.rules == []


CHECKED = {
    "allowed": False,
    "verdict": "blocked",
    "reason": "rule",
    "text": "denied by local rule `deny exfiltration`",
    "target": "paste.ee",
    "host": "paste.ee",
    "port": 443,
    "rules": [{"id": "local:1", "name": "deny exfiltration", "origin": "local", "effect": "deny"}],
    "revision": 12,
    "context": "global",
    "deny_kind": "explicit",
    "would": [],
    "why_not": ["remove the rule with `sbx policy rm network --id 1`"],
}


def test_check_says_yes_or_no_and_why(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.checked = CHECKED
    ran = sbx("policy", "check", "network", "paste.ee")
    assert ran.code == 4
    assert ran.out == (
        "Denied: paste.ee:443\n"
        "  Reason:    denied by local rule `deny exfiltration`\n"
        "  Rule:      deny exfiltration (local)\n"
        "  Scope:     global\n"
        "  Revision:  12\n"
        "  - remove the rule with `sbx policy rm network --id 1`\n"
    )
    daemon.checked = CHECKED | {"allowed": True, "verdict": "allowed", "text": "allowed", "why_not": []}
    ran = sbx(
        "policy", "check", "network", "https://x/y", "--method", "GET", "--path", "/y", "--protocol", "udp"
    )
    assert ran.code == 0
    assert ran.out.startswith("Allowed: paste.ee:443\n")
    assert daemon.asked("POST /v1/policy/check")[-1] == {
        "target": "https://x/y",
        "transport": "udp",
        "method": "GET",
        "path": "/y",
    }


@pytest.mark.parametrize(
    ("verdict", "word"),
    [("undetermined", "Depends on the request"), ("approval", "Approval required"), ("novel", "Denied")],
)
def test_anything_but_allowed_leaves_with_4(sbx: Sbx, daemon: FakeDaemon, verdict: str, word: str) -> None:
    daemon.checked = CHECKED | {"verdict": verdict}
    ran = sbx("policy", "check", "network", "paste.ee")
    assert ran.code == 4
    assert ran.out.startswith(f"{word}: ")


def test_check_in_json_answers_in_both_vocabularies(sbx: Sbx, daemon: FakeDaemon) -> None:
    daemon.checked = CHECKED
    ran = sbx("policy", "check", "network", "paste.ee", "--json")
    assert (ran.code, ran.err) == (4, "")
    found = json.loads(ran.out)
    assert found["allowed"] is False
    assert found["action"] == "net:connect:tcp"
    assert found["resource_value"] == "paste.ee:443"
    assert found["rule"] == "local:1"
    assert found["governance"]["active"] is False
    assert found["revision"] == 12


def test_explain_tells_the_story_of_a_decision(sbx: Sbx, daemon: FakeDaemon) -> None:
    opened = {
        "id": "01J",
        "step": "opened",
        "time": CREATED,
        "sandbox": "i",
        "sandbox_name": "lab",
        "agent": "shell",
        "verdict": "blocked",
        "via": "connect",
        "host": "paste.ee",
        "port": 443,
        "method": "GET",
        "path": "/",
        "text": "denied",
        "rule": "deny exfiltration",
        "origin": "local",
        "revision": 7,
    }
    daemon.explained["01J"] = {"records": [opened], "advice": "sbx policy rm network --id 1"}
    assert sbx("policy", "explain", "01J").out == (
        "Denied: paste.ee:443\n"
        "  Decision:    01J\n"
        "  Time:        2026-04-30 13:04:05\n"
        "  Sandbox:     lab\n"
        "  Agent:       shell\n"
        "  Request:     GET /\n"
        "  Arrived by:  connect\n"
        "  Protocol:    tcp\n"
        "  Reason:      denied\n"
        "  Rule:        deny exfiltration (local)\n"
        "  Revision:    7\n"
        "\n"
        "sbx policy rm network --id 1\n"
    ).replace("  Protocol:    tcp\n", "")
    assert sbx("policy", "explain", "zz").code == 3
    assert json.loads(sbx("policy", "explain", "01J", "--json").out) == daemon.explained["01J"]


def test_a_document_goes_out_and_comes_in(sbx: Sbx, daemon: FakeDaemon, tmp_path: Path) -> None:
    assert sbx("policy", "export").out == "# mine\nrules: []\n"
    file = tmp_path / "policy.yaml"
    assert sbx("policy", "export", "-o", str(file)).out == ""
    assert file.read_text() == "# mine\nrules: []\n"
    daemon.documents["import"] = {"added": [rule("1", "a.org")], "removed": ["b.org"], "warnings": ["wide"]}
    ran = sbx("policy", "import", str(file), "--dry-run")
    assert ran.out == "+ allow a.org (1)\n- b.org\nWould change: 1 added, 1 removed\n"
    assert ran.err == "Warning: wide\n"
    assert sbx("policy", "import", str(file)).out.endswith("Policy imported: 1 added, 1 removed\n")
    assert daemon.asked("PUT /v1/policy/document") == [b"# mine\nrules: []\n"] * 2


def test_a_document_on_standard_input(sbx: Sbx, daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(b"rules:  []\n")))
    assert sbx("policy", "fmt", "-").out == "rules: []\n"


def test_fmt_prints_writes_or_checks(sbx: Sbx, daemon: FakeDaemon, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("rules:  []\n")
    assert sbx("policy", "fmt", "--check", str(file)).code == 1
    assert sbx("policy", "fmt", str(file)).out == "rules: []\n"
    assert file.read_text() == "rules:  []\n"
    assert sbx("policy", "fmt", "-w", str(file)).out == ""
    assert file.read_text() == "rules: []\n"
    assert sbx("policy", "fmt", "--check", str(file)).code == 0


def test_validate_points_at_the_place(sbx: Sbx, daemon: FakeDaemon, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("x")
    error = {"line": 3, "column": 5, "message": "`*` is no resource", "hint": "write `**`"}
    daemon.documents["validate"] = {"ok": False, "errors": [error], "warnings": []}
    ran = sbx("policy", "validate", str(file))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"Error: {file}:3:5: `*` is no resource\nHint: write `**`\n"
    daemon.documents["validate"] = {"ok": True, "errors": [], "warnings": [], "tests": [{}, {}]}
    ran = sbx("policy", "validate", str(file))
    assert (ran.code, ran.out) == (0, f"{file} is valid, 2 tests pass\n")


def test_a_documents_tests_fail_with_asked_expected_got(sbx: Sbx, daemon: FakeDaemon, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("x")
    daemon.documents["test"] = {
        "passed": 4,
        "failed": [{"asked": "paste.ee:443", "expected": "blocked", "got": "allowed"}],
    }
    ran = sbx("policy", "test", str(file))
    assert ran.code == 1
    assert ran.out == "FAILED paste.ee:443: expected blocked, got allowed\n4 passed, 1 failed\n"
    daemon.documents["test"] = {"passed": 4, "failed": []}
    assert sbx("policy", "test", str(file)).code == 0
