"""An allow that is called shadowed can never be heard; the table says which ones are noticed."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_worlds import accesses, policies, rules

from ringfence.policy import Effect, Mode, NetworkAccess, Rule, Sources, Verdict, compose, decide, parse_rule
from ringfence.policy.shadow import Coverage


def rule(effect: str, *resources: str, **more: object) -> Rule:
    return parse_rule(
        {"id": f"{effect}-{resources[0]}", "effect": effect, "resources": list(resources), **more}
    )


@pytest.mark.parametrize(
    ("deny", "allow", "shadowed"),
    [
        (["a.test"], ["a.test"], True),
        (["a.test"], ["a.test:443"], True),
        (["a.test:443"], ["a.test"], False),
        (["a.test:400-500"], ["a.test:443-444"], True),
        (["a.test:400-500"], ["a.test:443-501"], False),
        (["a.test"], ["b.test"], False),
        (["a.test"], ["a.test", "b.test"], False),
        (["a.test", "b.test"], ["a.test", "b.test"], True),
        (["*.test"], ["a.test"], True),
        (["*.test"], ["b.a.test"], False),
        (["*.test"], ["*.test"], True),
        (["*.test"], ["**.test"], False),
        (["*.test"], ["a*.test"], True),
        (["*.test"], ["x.a*.test"], False),
        (["**.test"], ["test"], True),
        (["**.test"], ["*.b.a.test"], True),
        (["**.test"], ["**.test"], True),
        (["**.a.test"], ["**.test"], False),
        (["**.a.test"], ["x*.a.test"], True),
        (["**.a.test"], ["x*.y.a.test"], True),
        (["**.a.test"], ["xa.test"], False),
        (["a*.test"], ["ab.test"], True),
        (["a*.test"], ["ab*.test"], False),
        (["a*.test"], ["b.test"], False),
        (["**"], ["a.test", "**.b.test", "10.0.0.1", "**"], True),
        (["**"], ["localhost:80"], False),
        (["**:25"], ["a.test:25"], True),
        (["localhost"], ["localhost:80"], True),
        (["localhost:80"], ["localhost:80-81"], False),
        (["0.0.0.0/0"], ["a.test"], True),
        (["0.0.0.0/0"], ["10.0.0.1"], True),
        (["0.0.0.0/0"], ["::1:2"], False),
        (["0.0.0.0/0"], ["**"], False),
        (["10.0.0.0/8"], ["10.1.0.0/16"], True),
        (["10.1.0.0/16"], ["10.0.0.0/8"], False),
        (["10.0.0.0/8"], ["a.test"], False),
        (["10.0.0.0/8"], ["10.0.0.1:443"], True),
    ],
)
def test_what_is_noticed(deny: list[str], allow: list[str], shadowed: bool) -> None:
    coverage = Coverage([rule("deny", resource) for resource in deny])
    assert bool(coverage.of(rule("allow", *allow))) is shadowed


@pytest.mark.parametrize(
    "change",
    [
        {"transports": ["tcp"]},
        {"methods": ["GET"]},
        {"teams": ["x"]},
        {"expires_at": 5},
        {"mode": "evaluate"},
    ],
)
def test_a_deny_with_conditions_shadows_nothing(change: dict) -> None:
    allow = rule("allow", "a.test", transports=["tcp", "udp"])
    assert Coverage([rule("deny", "a.test")]).of(allow) == "local:deny-a.test"
    assert Coverage([rule("deny", "a.test", **change)]).of(allow) == ""


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    policies,
    rules(effect=Effect.ALLOW, mode=Mode.ENFORCE, id="allow"),
    st.lists(accesses(), min_size=5, max_size=15),
)
def test_what_is_shadowed_is_never_heard(found: list[Rule], allow: Rule, asked: list[NetworkAccess]) -> None:
    denies = [rule for rule in found if rule.effect is Effect.DENY]
    if Coverage(denies).of(allow):
        policy = compose(Sources(local=(*denies, allow)), revision=1, now=0.0)
        for access in asked:
            assert decide(policy, access, now=0.0).verdict is Verdict.BLOCKED
