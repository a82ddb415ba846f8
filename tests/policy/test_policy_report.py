"""What people are told: the rows of the listing, why a rule did not count, and what would change a refusal."""

from __future__ import annotations

import pytest

from ringfence.documents import preset_document
from ringfence.policy import (
    Base,
    Decision,
    Delegation,
    EffectivePolicy,
    Kind,
    NetworkAccess,
    Sources,
    Statement,
    compose,
    decide,
    judge_address,
    parse_rule,
    parse_target,
)
from ringfence.policy.model import Transport
from ringfence.policy.report.explain import advice, consider, why_not
from ringfence.policy.report.listing import rows, totals

INACTIVE = (
    "inactive — corporate policy takes precedence and does not delegate this rule type to local policy."
)
GROUPS = [
    "default-ai-services",
    "default-package-managers",
    "default-code-and-containers",
    "default-cloud-infrastructure",
    "default-os-packages",
]


def made(*local: dict, **more: object) -> EffectivePolicy:
    rules = tuple(parse_rule(record) for record in local)
    return compose(Sources(local=rules, **more), revision=3, now=0.0)


def rule(name: str, effect: str, *resources: str, **more: object) -> dict:
    return {"id": f"id-{name}", "name": name, "effect": effect, "resources": list(resources), **more}


ACME = Statement(
    organisation="acme",
    delegation={Kind.NETWORK: Delegation.NONE},
    rules=(parse_rule(rule("org", "allow", "api.test:443")), parse_rule(rule("no", "deny", "paste.test"))),
)


def test_five_groups_and_what_was_added_at_the_bottom() -> None:
    policy = made(
        {"id": "9701dc6e", "effect": "deny", "resources": ["pypi.org"]},
        rule("z", "allow", "z.test"),
        rule("a", "allow", "a.test"),
        preset=preset_document("balanced").rules,
    )
    found = rows(policy)
    assert [row.name for row in found] == [*GROUPS, "local:9701dc6e", "z", "a"]
    assert {row.status for row in found} == {"active"}
    assert found[5].resources == ("pypi.org",)
    assert "pypi.org:443" in found[1].resources
    assert "**.amazonaws.com:443" in found[3].resources


def test_storage_is_called_what_it_is_while_it_is_on() -> None:
    balanced = preset_document("balanced").rules
    on = rows(made(preset=balanced))[3]
    assert "data can leave through it" in on.warnings[0]
    assert "sbx policy preset disable default-cloud-infrastructure/storage" in on.warnings[0]
    off = rows(made(preset=balanced, disabled=frozenset({"default-cloud-infrastructure/storage"})))[3]
    assert off.warnings == ()
    assert off.status == "active (switched off: storage)"
    assert off.active
    assert "**.amazonaws.com:443" not in off.resources


def test_a_group_that_is_off_stays_in_sight() -> None:
    row = rows(made(preset=preset_document("balanced").rules, disabled=frozenset({"default-os-packages"})))[4]
    assert (row.status, row.active) == ("inactive — switched off.", False)
    assert "**.debian.org:443" in row.resources


def test_under_an_organisation_its_rules_come_first_and_the_rest_says_why_not() -> None:
    policy = made(
        rule("mine", "allow", "mine.test"), preset=preset_document("balanced").rules, statement=ACME
    )
    found = rows(policy)
    assert [(row.name, row.entry.origin, row.status) for row in found] == [
        ("org", "remote", "active"),
        ("no", "remote", "active"),
        *((name, "preset", INACTIVE) for name in GROUPS),
        ("mine", "local", INACTIVE),
    ]


def test_a_catch_all_is_warned_of() -> None:
    found = rows(made(rule("all", "allow", "**"), preset=preset_document("open").rules))
    assert all("catch-all" in row.warnings[0] for row in found)
    assert rows(made(rule("all", "allow", "**"), statement=ACME))[-1].warnings == ()


def test_the_stable_form() -> None:
    policy = made(
        rule("web", "allow", "a.test", transports=["tcp", "udp"], inspect="never", expires_at=99),
        rule("http", "deny", "b.test", methods=["GET"], paths=["/x/**"]),
        rule("fs", "allow", "/srv/**", kind="filesystem", actions=["read"]),
        preset=preset_document("open").rules,
        sandbox="box",
        sandbox_rules=(parse_rule(rule("s", "allow", "s.test")),),
    )
    found = {row.name: row.record(sandbox_id="uuid") for row in rows(policy)}
    assert found["web"] == {
        "id": "id-web",
        "name": "web",
        "policy_id": "local-policy",
        "scope": "global",
        "applies_to": "all",
        "resource_type": "network",
        "decision": "allow",
        "resources": ["a.test"],
        "origin": "local",
        "layer": "local",
        "status": "active",
        "active": True,
        "editable": True,
        "provenance": {"created_via": "added"},
        "actions": ["net:connect:tcp", "net:connect:udp"],
        "transports": ["tcp", "udp"],
        "mode": "enforce",
        "methods": [],
        "paths": [],
        "http_targets": [],
        "expires_at": 99.0,
        "inspect": "never",
        "warnings": [],
    }
    http = found["http"]
    assert (http["resource_type"], http["actions"], http["paths"]) == (
        "http",
        ["http:request:get"],
        ["/x/**"],
    )
    assert http["http_targets"] == [{"host": "b.test"}]
    assert (found["fs"]["resource_type"], found["fs"]["actions"]) == ("filesystem", ["fs:mount:read"])
    preset = found["default-allow-all"]
    assert (preset["origin"], preset["editable"]) == ("preset", False)
    assert preset["provenance"] == {"created_via": "default"}
    sandboxed = found["s"]
    assert (sandboxed["scope"], sandboxed["applies_to"], sandboxed["sandbox_id"]) == (
        "sandbox:box",
        "sandbox:box",
        "uuid",
    )


def test_totals() -> None:
    policy = made(rule("a", "allow", "a.test"), rule("d", "deny", "b.test"), rule("e", "deny", "c.test"))
    assert totals(policy) == {"allow": 1, "deny": 2, "approval": 0}


def refused(policy: EffectivePolicy, asked: str, **more: object) -> tuple[Decision, NetworkAccess]:
    access = parse_target(asked, **more)
    return decide(policy, access, now=0.0), access


@pytest.mark.parametrize(
    ("asked", "command"),
    [
        ("example.com:443", "sbx policy allow network example.com:443"),
        ("[2001:db8::1]:80", "sbx policy allow network '[2001:db8::1]:80'"),
        ("localhost:11434", "sbx policy allow network localhost:11434"),
        ("10.0.0.5:443", "sbx policy allow network 10.0.0.5:443"),
        ("169.254.7.7:80", "sbx policy allow network 169.254.7.7:80"),
        ("169.254.169.254:80", ""),
        (
            "127.0.0.1:11434",
            "sbx policy allow network localhost:11434, and ask for host.docker.internal:11434",
        ),
        ("127.0.0.1.nip.test:80", "sbx policy allow network 127.0.0.1.nip.test:80"),
        ("denied.test", "sbx policy rm network --id id-mine"),
        ("asked.test", "sbx policy approval ls"),
        ("allowed.test", ""),
        ("requests.test", ""),
    ],
)
def test_what_would_change_it(asked: str, command: str) -> None:
    policy = made(
        rule("mine", "deny", "denied.test"),
        rule("ask", "approval", "asked.test"),
        rule("yes", "allow", "allowed.test"),
        rule("http", "allow", "requests.test", methods=["GET"]),
    )
    decision, access = refused(policy, asked)
    assert advice(decision, access, policy) == command


def test_advice_about_udp_and_scope_and_presets() -> None:
    decision, access = refused(made(), "example.com", transport=Transport.UDP)
    assert advice(decision, access) == "sbx policy allow network example.com:443 --protocol udp"
    boxed = made(sandbox="box", sandbox_rules=(parse_rule(rule("s", "deny", "s.test")),))
    assert advice(*refused(boxed, "s.test")) == "sbx policy rm network --id id-s --sandbox box"
    preset = made(preset=(parse_rule(rule("default-no", "deny", "p.test")),))
    assert advice(*refused(preset, "p.test")) == "sbx policy preset disable default-no"


def test_advice_under_an_organisation_is_whom_to_ask() -> None:
    policy = made(rule("mine", "allow", "mine.test"), statement=ACME)
    for asked in ("mine.test", "paste.test", "10.0.0.5"):
        decision, access = refused(policy, asked)
        assert advice(decision, access, policy) == "ask an administrator of acme"


def test_advice_about_an_address_that_was_not_dialled() -> None:
    policy = made(rule("name", "allow", "corp.test"))
    access = parse_target("corp.test")
    private = judge_address(policy, access, "10.0.0.5", now=0.0)
    assert advice(private, access, policy, address="10.0.0.5") == "sbx policy allow network 10.0.0.5:443"
    local = judge_address(policy, access, "169.254.7.7", now=0.0)
    assert advice(local, access, policy, address="169.254.7.7") == ""


def test_following_the_advice_helps() -> None:
    for asked in (
        "example.com:8443",
        "10.0.0.5:443",
        "[2001:db8::1]:80",
        "localhost:11434",
        "169.254.7.7:80",
    ):
        decision, access = refused(made(), asked)
        resource = advice(decision, access).removeprefix("sbx policy allow network ").strip("'")
        allowed = made({"id": "r", "effect": "allow", "resources": [resource]})
        assert decide(allowed, access, now=0.0).allowed


@pytest.mark.parametrize(
    ("record", "asked", "says"),
    [
        (rule("r", "allow", "a.test"), "a.test", ""),
        (rule("r", "allow", "a.test"), "b.test", "it names other hosts"),
        (
            rule("r", "allow", "*.a.test"),
            "a.test",
            "`*.a.test` leaves out its own base; `**.a.test` holds it",
        ),
        (
            rule("r", "allow", "*.a.test"),
            "y.x.a.test",
            "`*.a.test` holds one label; `**.a.test` holds every depth",
        ),
        (
            rule("r", "allow", "a.test"),
            "x.a.test",
            "`a.test` holds no subdomain; `**.a.test` holds every depth",
        ),
        (rule("r", "allow", "a.test:443"), "a.test:80", "port 80 is not among its ports"),
        (rule("r", "allow", "a.test"), "udp a.test", "it is about tcp alone"),
        (rule("r", "allow", "a.test", methods=["GET"]), "a.test", "it is about HTTP requests"),
        (
            rule("r", "allow", "a.test", methods=["GET"]),
            "POST https://a.test/",
            "POST is not among its methods",
        ),
        (rule("r", "allow", "a.test", paths=["/x/**"]), "GET https://a.test/y", "the path is another"),
        (rule("r", "allow", "a.test", paths=["/x/**"]), "GET https://a.test/x/../y", "the path is another"),
        (rule("r", "allow", "a.test", methods=["GET"], paths=["/x"]), "GET https://a.test/x", ""),
        (rule("r", "allow", "a.test", mode="evaluate"), "a.test", "it is only evaluated"),
        (rule("r", "allow", "a.test", teams=["ops", "dev"]), "a.test", "it is for ops, dev"),
        (rule("r", "allow", "a.test", expires_at=5), "a.test", "it has expired"),
        (rule("r", "allow", "10.0.0.0/8"), "10.0.0.1", ""),
        (rule("r", "allow", "10.0.0.0/8"), "11.0.0.1", "it names other hosts"),
        (rule("r", "allow", "localhost:80"), "localhost:81", "port 81 is not among its ports"),
        (rule("r", "allow", "a.test", budget={"bytes_per_day": 1}), "a.test:1", ""),
    ],
)
def test_why_a_rule_did_not_count(record: dict, asked: str, says: str) -> None:
    first, rest = asked.partition(" ")[::2]
    if first == "udp":
        access = parse_target(rest, transport=Transport.UDP)
    else:
        access = parse_target(rest, method=first) if rest else parse_target(first)
    policy = compose(Sources(local=(parse_rule(record),)), revision=1, now=0.0)
    assert why_not(policy.entries[0], access, now=10.0) == says


def test_a_rule_that_policy_made_inactive_says_so() -> None:
    policy = made(rule("mine", "allow", "mine.test"), statement=ACME)
    found = {
        considered.entry.rule.name: considered.says
        for considered in consider(policy, parse_target("mine.test"), now=0.0)
    }
    assert found == {"org": "it names other hosts", "no": "it names other hosts", "mine": INACTIVE}


def test_every_rule_is_considered_and_those_that_match_come_first() -> None:
    policy = made(rule("a", "allow", "a.test"), rule("b", "allow", "**.test"), rule("c", "deny", "c.test"))
    said = [(c.entry.rule.name, c.says) for c in consider(policy, parse_target("a.test"), now=0.0)]
    assert said == [("a", "matches"), ("b", "matches"), ("c", "it names other hosts")]


def test_the_next_expiry() -> None:
    policy = made(rule("a", "allow", "a.test", expires_at=50), rule("b", "allow", "b.test", expires_at=20))
    assert [policy.next_expiry(now) for now in (0, 20, 49, 50)] == [20, 50, 50, None]
    bundle = Statement(organisation="acme", delegation={Kind.NETWORK: Delegation.EXTEND}, expires_at=30.0)
    governed = made(rule("a", "allow", "a.test", expires_at=50), statement=bundle)
    assert [governed.next_expiry(now) for now in (0, 30, 50)] == [30, 50, None]
    ceiling = compose(
        Sources(
            statement=bundle,
            base=Base.OWN,
            sandbox="box",
            sandbox_rules=(parse_rule(rule("s", "allow", "s.test", expires_at=7)),),
        ),
        revision=1,
        now=0.0,
    )
    assert ceiling.next_expiry(0) == 7


def test_a_rule_ends_at_its_hour_in_a_snapshot_that_is_older() -> None:
    policy = made(
        rule("a", "allow", "a.test", expires_at=50),
        rule("b", "deny", "b.test", expires_at=50),
        rule("c", "allow", "b.test"),
    )
    said = [
        (decide(policy, parse_target(host), now=now).verdict)
        for host in ("a.test", "b.test")
        for now in (49.9, 50)
    ]
    assert said == ["allowed", "blocked", "blocked", "allowed"]


@pytest.mark.parametrize("method", ["get", "Get", "GE T", "GET ", "GÉT", "-GET", "A" * 40])
def test_a_method_in_another_spelling_is_refused_where_methods_matter(method: str) -> None:
    policy = made(rule("net", "allow", "a.test", "b.test"), rule("no", "deny", "a.test", methods=["GET"]))
    strict = decide(policy, NetworkAccess(host="a.test", port=443, method=method, path="/"), now=0.0)
    assert (strict.verdict, strict.reason) == ("blocked", "failure")
    assert decide(policy, NetworkAccess(host="b.test", port=443, method=method, path="/"), now=0.0).allowed


def test_where_requests_matter() -> None:
    policy = made(
        rule("net", "allow", "a.test", "b.test"),
        rule("carve", "deny", "a.test:443", methods=["DELETE"]),
        rule("quiet", "allow", "b.test", paths=["/x"]),
    )
    assert policy.http_sensitive("a.test", 443, Transport.TCP)
    assert not policy.http_sensitive("a.test", 80, Transport.TCP)
    assert not policy.http_sensitive("b.test", 443, Transport.TCP)
    assert not policy.http_sensitive("c.test", 443, Transport.TCP)


def test_no_policy_is_no_access() -> None:
    assert decide(None, parse_target("example.com"), now=0.0) == Decision()
    assert judge_address(None, parse_target("example.com"), "93.184.216.34", now=0.0) == Decision()
    assert not decide(EffectivePolicy(), parse_target("example.com"), now=0.0).allowed
