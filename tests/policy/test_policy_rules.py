"""What no rule may say, and what a rule says by leaving something out."""

from __future__ import annotations

import pytest

from ringfence.policy import Effect, InvalidPolicy, Rule, parse_resource, parse_rule, rule_record, warnings

BASE = {"id": "r", "effect": "allow", "resources": ["a.test"]}
FILES = {"id": "r", "effect": "allow", "kind": "filesystem", "resources": ["/srv/**"]}

REFUSED = [
    ({"effect": None}, "effect", "is not text"),
    ({"effect": "alow"}, "effect", "`alow` is not one of `allow`, `deny`, `approval`"),
    ({"resources": []}, "resources", "an empty list"),
    ({"resources": None}, "resources", "is not a list"),
    ({"resources": "a.test"}, "resources", "is not a list"),
    ({"resources": ["a.test", ""]}, "resources[1]", "is empty"),
    ({"resources": ["a.test", 8080]}, "resources[1]", "is not text"),
    ({"resources": ["a.test", "*"]}, "resources[1]", "names no host"),
    ({"resources": [f"h{n}.test" for n in range(1001)]}, "resources", "more than 1000"),
    ({"resources": ["localhost"]}, "resources", "without a port"),
    ({"resources": ["localhost"], "effect": "approval"}, "resources", "without a port"),
    ({"surprise": 1}, "", "unknown key `surprise`"),
    ({"name": "x" * 201}, "name", "is not a rule name"),
    ({"name": "a\nb"}, "name", "is not a rule name"),
    ({"name": "a\x1b[31mb"}, "name", "is not a rule name"),
    ({"name": "abc\u202e"}, "name", "is not a rule name"),
    ({"name": " a"}, "name", "is not a rule name"),
    ({"name": 3}, "name", "is not text"),
    ({"id": "x" * 201}, "id", "is not an id"),
    ({"transports": ["icmp"]}, "transports[0]", "is not one of `tcp`, `udp`"),
    ({"transports": []}, "transports", "an empty list"),
    ({"methods": ["get"]}, "methods", "is not a method"),
    ({"methods": ["GET", "ANY"]}, "methods", "`ANY` beside other methods"),
    ({"methods": ["GET", "BAD METHOD"]}, "methods", "is not a method"),
    ({"paths": ["repos"]}, "paths[0]", "does not begin with `/`"),
    ({"paths": ["/a//b"]}, "paths[0]", "empty or dot segments"),
    ({"paths": ["/a/../b"]}, "paths[0]", "empty or dot segments"),
    ({"paths": ["/a/**b"]}, "paths[0]", "not a segment of its own"),
    ({"paths": ["/a%20b"]}, "paths[0]", "percent-encoding"),
    ({"paths": ["/a?x=1"]}, "paths[0]", "no path pattern has"),
    ({"paths": ["/" + "**/" * 9]}, "paths[0]", "more than eight"),
    ({"paths": ["/" + "x" * 5000]}, "paths[0]", "longer than 4096"),
    ({"methods": ["GET"], "resources": ["203.0.113.7"]}, "resources", "with methods or paths"),
    ({"paths": ["/x"], "resources": ["0.0.0.0/0"]}, "resources", "with methods or paths"),
    ({"inspect": "sometimes"}, "inspect", "is not one of"),
    ({"mode": "dry"}, "mode", "is not one of"),
    ({"budget": {}}, "budget", "without a limit"),
    ({"budget": {"requests_per_minute": -1}}, "budget.requests_per_minute", "not a count"),
    ({"budget": {"requests_per_minute": True}}, "budget.requests_per_minute", "not a count"),
    ({"budget": {"requests_per_hour": 1}}, "budget", "unknown key"),
    ({"budget": {"bytes_per_day": 1}, "effect": "deny"}, "budget", "a budget in a rule that says deny"),
    ({"teams": [""]}, "teams", "blank team"),
    ({"expires_at": "tomorrow"}, "expires_at", "is not a time"),
    ({"expires_at": "2026-01-01T00:00:00"}, "expires_at", "no time zone"),
    ({"expires_at": True}, "expires_at", "is not text"),
    ({"expires_at": -1}, "expires_at", "is not a time"),
    ({"expires_at": float("nan")}, "expires_at", "is not a time"),
    ({"actions": ["read"]}, "actions", "in a network rule"),
    ({"kind": "mcp"}, "kind", "is not one of"),
]

FILES_REFUSED = [
    ({"resources": ["srv"]}, "resources[0]", "neither absolute"),
    ({"resources": ["~user/x"]}, "resources[0]", "neither absolute"),
    ({"resources": ["$HOME/x"]}, "resources[0]", "neither absolute"),
    ({"resources": ["/home/$USER"]}, "resources[0]", "variable"),
    ({"resources": ["/a/../b"]}, "resources[0]", "empty or dot segments"),
    ({"resources": ["/a**"]}, "resources[0]", "not a segment of its own"),
    ({"actions": ["execute"]}, "actions[0]", "is not one of"),
    ({"transports": ["tcp"]}, "transports", "in a filesystem rule"),
    ({"methods": ["GET"]}, "methods", "in a filesystem rule"),
    ({"inspect": "never"}, "inspect", "in a filesystem rule"),
    ({"effect": "approval"}, "effect", "approval in a filesystem rule"),
]


@pytest.mark.parametrize(
    ("record", "where", "wrong"),
    [({**BASE, **change}, where, wrong) for change, where, wrong in REFUSED]
    + [({**FILES, **change}, where, wrong) for change, where, wrong in FILES_REFUSED],
)
def test_a_rule_that_cannot_be(record: dict, where: str, wrong: str) -> None:
    with pytest.raises(InvalidPolicy) as caught:
        parse_rule(record)
    assert wrong in caught.value.message
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("missing", "wrong"), [("effect", "without an effect"), ("resources", "without network")]
)
def test_a_rule_that_lacks_something(missing: str, wrong: str) -> None:
    with pytest.raises(InvalidPolicy, match=wrong):
        parse_rule({key: value for key, value in BASE.items() if key != missing})


@pytest.mark.parametrize("record", [None, [], "allow a.test", 3])
def test_what_is_no_rule(record: object) -> None:
    with pytest.raises(InvalidPolicy, match="not a mapping"):
        parse_rule(record)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, {"transports": ("tcp",)}),
        ({"effect": "approval"}, {"transports": ("tcp",)}),
        ({"effect": "deny"}, {"transports": ("tcp", "udp")}),
        ({"transports": ["udp", "tcp"]}, {"transports": ("tcp", "udp")}),
        ({"methods": ["POST", "GET", "GET"]}, {"methods": ("GET", "POST")}),
        ({"methods": ["GET"]}, {"paths": ("/**",)}),
        ({"paths": ["/x/"]}, {"methods": ("ANY",), "paths": ("/x",)}),
        ({"name": "n", "id": ""}, {"id": "n"}),
        ({"expires_at": "2026-01-31T12:00:00+01:00"}, {"expires_at": 1769857200.0}),
        ({"resources": ["A.test", "a.test."]}, {"texts": ("a.test",)}),
    ],
)
def test_what_is_left_out_is_understood(change: dict, said: dict) -> None:
    rule = parse_rule({**BASE, **change})
    for key, expected in said.items():
        found = getattr(rule, key)
        if key == "paths":
            found = tuple(path.text for path in found)
        assert found == expected


FULL = [
    BASE,
    {**BASE, "name": "n", "description": "d", "transports": ["udp"], "mode": "evaluate", "inspect": "never"},
    {**BASE, "methods": ["GET", "HEAD"], "paths": ["/repos/**", "/*"], "teams": ["a", "b"]},
    {**BASE, "budget": {"tokens_per_day": 1, "requests_per_minute": 0}, "expires_at": 1769857200},
    {**BASE, "expires_at": 1769857200.25},
    {**BASE, "resources": ["*.a.test:443", "10.0.0.0/8:22", "[2001:db8::/32]:443", "localhost:1", "**:25"]},
    FILES,
    {**FILES, "actions": ["read"], "resources": ["~", "~/x/*", "**"], "effect": "deny"},
]


@pytest.mark.parametrize("record", FULL)
def test_print_then_parse_is_the_identity(record: dict) -> None:
    rule = parse_rule(record)
    assert parse_rule(rule_record(rule)) == rule
    assert rule_record(parse_rule(rule_record(rule))) == rule_record(rule)


def test_an_unnamed_rule_is_called_by_its_id() -> None:
    assert parse_rule(BASE).title == "local:r"
    assert parse_rule({**BASE, "name": "n"}).title == "n"


@pytest.mark.parametrize(
    ("resource", "effect", "warned"),
    [
        ("**", "allow", "catch-all"),
        ("0.0.0.0/0", "allow", "catch-all"),
        ("128.0.0.0/1", "allow", "catch-all"),
        ("**", "deny", ""),
        ("*.com", "allow", "public suffix `com`"),
        ("**.co.uk", "allow", "public suffix `co.uk`"),
        ("a*.com", "deny", "public suffix `com`"),
        ("*.example.com", "allow", ""),
        ("a*.example.com", "allow", ""),
        ("169.254.169.254", "allow", "no rule reaches a cloud metadata address"),
        ("169.254.169.254", "deny", ""),
        ("10.0.0.0/8", "allow", ""),
        ("fc00::/7", "allow", ""),
    ],
)
def test_what_an_administrator_is_warned_of(resource: str, effect: str, warned: str) -> None:
    rule = Rule(id="r", effect=Effect(effect), resources=(parse_resource(resource),))
    found = warnings(rule, {"com", "co.uk"}.__contains__)
    assert (warned in found[0]) if warned else found == ()
