"""NAM-06, NAM-15, NAM-16, REQ-15: what a rule says, and above all what it does not say."""

from __future__ import annotations

from typing import Any

import pytest
from tests.escapes.escape_stage import Lab, Outcome, allowed, forward, get, inside, policy, refused, rule

from ringfence.policy.document import parse_document, parse_rule
from ringfence.policy.effective import EffectivePolicy
from ringfence.policy.errors import InvalidPolicy
from ringfence.policy.patterns import parse_resource
from ringfence.policy.rule import warnings

# -- NAM-06 ---------------------------------------------------------------------------------------------------

PAIRS = [
    # pattern, host, whether it is allowed
    ("x.test", "x.test", True),
    ("x.test", "a.x.test", False),  # a bare name is itself alone
    ("x.test", "evil-x.test", False),
    ("x.test", "x.test.evil", False),
    ("x.test", "xx.test", False),
    ("x.test", "test", False),
    ("*.x.test", "a.x.test", True),
    ("*.x.test", "x.test", False),  # the apex is another name
    ("*.x.test", "b.a.x.test", False),  # one label
    ("*.x.test", "evil-x.test", False),
    ("*.x.test", "evilx.test", False),
    ("*.x.test", "a.evil-x.test", False),
    ("*.x.test", "a.x.test.evil", False),
    ("*.x.test", "a.xxtest", False),  # a dot is a dot
    ("*.x.test", "-.x.test", None),
    ("**.x.test", "x.test", True),
    ("**.x.test", "b.a.x.test", True),
    ("**.x.test", "evilx.test", False),
    ("**.x.test", "evil-x.test", False),
    ("**.x.test", "x.test.evil", False),
    ("api*.x.test", "api7.x.test", True),
    ("api*.x.test", "api.x.test", True),
    ("api*.x.test", "api.evil.x.test", False),  # a star stays in its label
    ("api*.x.test", "evilapi.x.test", False),
    ("a*z.x.test", "abcz.x.test", True),
    ("a*z.x.test", "a.z.x.test", False),
    ("api[12].x.test", "api1.x.test", True),
    ("api[12].x.test", "api3.x.test", False),
    ("api?.x.test", "apia.x.test", True),
    ("api?.x.test", "api.x.test", False),
    ("x.test:8080", "x.test", False),  # another port
    ("*.x.test", "xn--a-1ga.x.test", True),
    ("*.x.test", "xn--zz.x.test", None),  # punycode that no name has
    ("203.0.113.0/24", "x.test", False),  # no question is asked to find out
    ("localhost:80", "localhost.x.test", False),
]


@pytest.mark.parametrize(("pattern", "host", "matches"), PAIRS)
def test_nam_06_wildcards_end_at_labels(lab: Lab, pattern: str, host: str, matches: bool | None) -> None:
    lab.bind(rule("allow", pattern))
    lab.serve(host, port=80, tls=False)
    ask = forward(get(host, f"http://{host}/"))
    heard = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    outcomes = {True: allowed(heard, questions=(host,)), False: refused(), None: refused("failure", 400)}
    lab.expect(ask, outcomes[matches])
    if matches is False:  # the positive control
        lab.bind(rule("allow", host))
        lab.expect(ask, outcomes[True])


@pytest.mark.parametrize(("pattern", "host", "matches"), [each for each in PAIRS if each[2] is True])
def test_nam_06_a_deny_reaches_as_far_as_an_allow(lab: Lab, pattern: str, host: str, matches: bool) -> None:
    lab.bind(rule("allow", "**"), rule("deny", pattern))
    lab.expect(forward(get(host, f"http://{host}/")), refused("rule"))


@pytest.mark.parametrize(
    "written", ["*", "*.", "*.*.x.test", "", "***", "**x.test", "*.x.*", ".x.test", "x.*", "http://x.test"]
)
def test_nam_06_what_is_no_pattern_is_refused_when_it_is_written(written: str) -> None:
    assert parse_resource("*.x.test").text == "*.x.test"
    with pytest.raises(InvalidPolicy):
        parse_resource(written)


@pytest.mark.parametrize("written", ["*.com", "**.com", "*.co.uk", "**.github.io", "*cdn.com"])
def test_nam_06_a_wildcard_over_a_public_suffix_is_told_before_it_is_in_force(written: str) -> None:
    suffixes = {"com", "co.uk", "github.io"}
    told = warnings(rule("allow", written), suffixes.__contains__)
    assert "public suffix" in "".join(told)
    assert not warnings(rule("allow", "*.example.com"), suffixes.__contains__)


# -- NAM-15 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "in_force", [None, EffectivePolicy(revision=1, entries=())], ids=["none", "no rules"]
)
def test_nam_15_no_rules_allow_nothing(lab: Lab, in_force: EffectivePolicy | None) -> None:
    lab.serve("a.test", port=80, tls=False)
    ask = forward(get("a.test", "http://a.test/"))
    lab.bind(rule("allow", "a.test"))
    lab.expect(ask, allowed(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"))
    lab.stage.guest.subject.bind(in_force)
    lab.expect(ask, refused("failure" if in_force is None else "default"))
    lab.expect(inside("a.test", get("a.test")), refused("failure" if in_force is None else "default"))


EMPTY: list[tuple[str, dict[str, Any]]] = [
    ("resources: []", {"resources": []}),
    ("absent", {}),
    ("null", {"resources": None}),
    ("a blank one", {"resources": [""]}),
    ("blanks", {"resources": [" ", "a.test"]}),
    ("a null in the list", {"resources": [None]}),
    ("a word", {"resources": ""}),
    ("a mapping", {"resources": {}}),
]


@pytest.mark.parametrize("fields", [each[1] for each in EMPTY], ids=[each[0] for each in EMPTY])
@pytest.mark.parametrize("effect", ["allow", "deny"])
def test_nam_15_a_rule_about_nothing_is_no_rule(fields: dict[str, Any], effect: str) -> None:
    assert parse_rule({"id": "r", "effect": effect, "resources": ["a.test"]}).resources
    with pytest.raises(InvalidPolicy):
        parse_rule({"id": "r", "effect": effect, **fields})


@pytest.mark.parametrize("rules", [[], None], ids=["empty", "null"])
def test_nam_15_a_document_without_rules_allows_nothing(lab: Lab, rules: object) -> None:
    try:
        document = parse_document({"version": 1, "rules": rules})
    except InvalidPolicy:
        return
    lab.bind(*document.rules)
    lab.expect(forward(get("a.test", "http://a.test/")), refused())


def test_nam_15_a_list_of_wildcards_alone_allows_what_they_say(lab: Lab) -> None:
    lab.bind(rule("allow", "*.x.test"))
    lab.serve("a.x.test", port=80, tls=False)
    lab.expect(
        forward(get("a.x.test", "http://a.x.test/")), allowed(b"GET / HTTP/1.1\r\nHost: a.x.test\r\n\r\n")
    )
    lab.expect(forward(get("y.test", "http://y.test/")), refused())


# -- NAM-16 ---------------------------------------------------------------------------------------------------

PRECEDENCE: list[tuple[list[tuple[str, str]], str, str]] = [
    # rules, verdict, reason
    ([("allow", "*.x.test"), ("deny", "a.x.test")], "blocked", "rule"),
    ([("deny", "*.x.test"), ("allow", "a.x.test")], "blocked", "rule"),
    ([("allow", "a.x.test"), ("deny", "a.x.test")], "blocked", "rule"),
    ([("allow", "**"), ("deny", "a.x.test")], "blocked", "rule"),
    ([("deny", "**"), ("allow", "a.x.test")], "blocked", "rule"),
    ([("allow", "a.x.test"), ("deny", "**.test")], "blocked", "rule"),
    ([("allow", "a.x.test:80"), ("deny", "a.x.test")], "blocked", "rule"),
    ([("allow", "a.x.test"), ("deny", "a.x.test:443")], "allowed", "rule"),
    ([("approval", "a.x.test"), ("allow", "*.x.test")], "allowed", "rule"),
    ([("approval", "*.x.test"), ("deny", "a.x.test")], "blocked", "rule"),
    ([("approval", "a.x.test")], "approval", "rule"),
    ([("deny", "b.x.test")], "blocked", "default"),
    ([], "blocked", "default"),
]


@pytest.mark.parametrize("turned", [False, True], ids=["as written", "in the other order"])
@pytest.mark.parametrize(("rules", "verdict", "reason"), PRECEDENCE)
def test_nam_16_deny_wins_whatever_is_narrower_or_first(
    lab: Lab, rules: list[tuple[str, str]], verdict: str, reason: str, turned: bool
) -> None:
    made = [rule(*each) for each in rules]
    lab.bind(*(reversed(made) if turned else made))
    lab.serve("a.x.test", port=80, tls=False)
    ask = forward(get("a.x.test", "http://a.x.test/"))
    heard = b"GET / HTTP/1.1\r\nHost: a.x.test\r\n\r\n"
    no = Outcome(seen=(403,), verdict=verdict, reason=reason)
    lab.expect(ask, allowed(heard) if verdict == "allowed" else no)


def test_nam_16_an_organisations_deny_is_no_developers_to_lift(lab: Lab) -> None:
    lab.serve("a.x.test", port=80, tls=False)
    ask = forward(get("a.x.test", "http://a.x.test/"))
    mine, theirs = rule("allow", "a.x.test"), rule("deny", "**.x.test")
    lab.bind(mine)
    lab.expect(ask, allowed(b"GET / HTTP/1.1\r\nHost: a.x.test\r\n\r\n"))
    both = (*policy(mine).entries, *policy(theirs, origin="remote").entries)
    lab.stage.guest.bind(EffectivePolicy(revision=99, entries=both), 0.0)
    (record,) = lab.expect(ask, refused("rule"))
    assert record["origin"] == "remote"


# -- REQ-15 ---------------------------------------------------------------------------------------------------

INJECTIONS = [
    "a.test\nallow **",
    "a.test\r\n**",
    "a.test # comment",
    "a.test#",
    'a.test"',
    "a.test'; drop",
    "a.test$(id)",
    "a.test`id`",
    "a.test;evil.test",
    "a.test|evil.test",
    "a.test evil",
    "a.test\tevil.test",
    "a.test\0",
    "a.test{evil}",
    "a.test\\.evil.test",
    "user@a.test",
    "a.test/../**",
    "a.test%0a**",
    "(a|b).test",
    "a.test^",
    "a.test\u202e",
]


@pytest.mark.parametrize("written", INJECTIONS, ids=ascii)
def test_req_15_a_rule_is_typed_and_metacharacters_are_refused(written: str) -> None:
    assert parse_rule({"id": "r", "effect": "allow", "resources": ["a.test"]}).texts == ("a.test",)
    with pytest.raises(InvalidPolicy):
        parse_rule({"id": "r", "effect": "allow", "resources": [written]})


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a\u202eb", " a", "a\0"], ids=ascii)
def test_req_15_a_rules_name_cannot_write_lines(name: str) -> None:
    assert rule("allow", "a.test", name="a b").name == "a b"
    with pytest.raises(InvalidPolicy):
        rule("allow", "a.test", name=name)


@pytest.mark.parametrize(
    "path", ["/a\n/b", "/a?b", "/a#b", "/a;b", "/a%2fb", "a", "/a/../b", "//a", "/(a|b)[x]"]
)
def test_req_15_a_rules_path_is_a_plain_path(path: str) -> None:
    assert rule("allow", "a.test", paths=["/a/**"]).paths
    with pytest.raises(InvalidPolicy):
        rule("allow", "a.test", paths=[path])
